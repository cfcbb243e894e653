"""Turn torchattacks' attacks into salience-preserving ones, on a CIFAR-10 ResNet-18 or on any network you have.

python examples/wrap_attack.py

The network is the one that the pyautoattack package carries; the images here are random noise in its range, so that the
example needs no data set: what matters is what stays equal.
"""

import torch
import torchattacks
from pyautoattack.examples.resnet import ResNet18

from sip_plugin import SIPWrapper
from sip_plugin.salience import GradientSalience


def main() -> dict[str, float]:
    """For each attack the share of non-salient elements that it changed; salient ones never change."""
    torch.manual_seed(0)
    model = ResNet18().eval()
    images = torch.rand(4, 3, 32, 32)
    labels = model(images).argmax(1)
    mask_fn = GradientSalience(model)
    salience = mask_fn(images)
    print(f"{salience.float().mean():.0%} of all elements are salient: they hold half of the gradient.")

    changed = {}
    for attack in (
        torchattacks.PGD(model, steps=3),
        torchattacks.PGDL2(model, steps=3),
        torchattacks.CW(model, c=100, steps=5),
    ):
        wrapped = SIPWrapper(attack, mask_fn)  # called as the bare attack is
        adversarial = wrapped(images, labels)
        assert torch.equal(adversarial[salience], images[salience])
        changed[wrapped.attack] = (adversarial != images)[~salience].float().mean().item()
        print(f"{wrapped.attack}: no salient element changed, and {changed[wrapped.attack]:.0%} of the others")
    return changed


if __name__ == "__main__":
    main()
