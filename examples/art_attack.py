"""ART's attacks, salience preserved: the same classifier, the same `generate`, NumPy in and out.

python examples/art_attack.py
"""

import numpy as np
import torch
from art.attacks.evasion import DeepFool, HopSkipJump, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.salience import GradientSalience


def trained_network(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A small classifier of 8×8 grey images."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(15):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def main() -> dict[str, float]:
    """For each attack the accuracy that it leaves; salient elements never change."""
    torch.manual_seed(0)
    np.random.seed(0)
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    model = trained_network(images[:1500], labels[:1500])
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    x, y = images[1500:1516].numpy(), labels[1500:1516].numpy()
    mask_fn = GradientSalience(model)  # sees tensors in [0, 1], whatever the classifier's range and layout
    salience = mask_fn(images[1500:1516]).numpy()

    left = {}
    for attack in (
        ProjectedGradientDescent(classifier, eps=0.3, eps_step=0.05, max_iter=20, verbose=False),
        DeepFool(classifier, max_iter=20, verbose=False),
        HopSkipJump(classifier, max_iter=5, max_eval=200, init_eval=20, verbose=False),
    ):
        wrapped = SIPWrapper(attack, mask_fn)
        adversarial = wrapped.generate(x, y)
        assert np.array_equal(adversarial[salience], x[salience])
        name = type(attack).__name__
        left[name] = float((classifier.predict(adversarial).argmax(1) == y).mean())
        print(f"{name}: no salient element changed, accuracy {left[name]:.0%}")

    # ART's own mask (1 = may change) is intersected with the map, and now works for every attack.
    top = np.zeros((8, 8), dtype=np.float32)
    top[:4] = 1
    adversarial = SIPWrapper(DeepFool(classifier, verbose=False), mask_fn).generate(x, y, mask=top)
    assert np.array_equal(adversarial[:, :, 4:], x[:, :, 4:])
    return left


if __name__ == "__main__":
    main()
