"""Foolbox's attacks, salience preserved: the same call, the same three results.

python examples/foolbox_attack.py
"""

import foolbox
import torch
from sklearn.datasets import load_digits
from torch import nn

from sip_plugin import SIPWrapper
from sip_plugin.salience import GradientSalience

EPSILONS = [0.1, 0.2, 0.3]


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


def main() -> dict[str, list[float]]:
    """For each attack the accuracy that it leaves at each budget; salient elements never change."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    model = trained_network(x[:1500], y[:1500])
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    images, labels = x[1500:1564], y[1500:1564]
    mask_fn = GradientSalience(model)
    salience = mask_fn(images)

    left = {}
    for attack in (
        foolbox.attacks.LinfPGD(steps=40),
        foolbox.attacks.LinfDeepFoolAttack(),  # looks for the smallest perturbation, and is then cut to each budget
        foolbox.attacks.LinfAdditiveUniformNoiseAttack().repeat(10),
    ):
        raw, clipped, success = SIPWrapper(attack, mask_fn)(fmodel, images, labels, epsilons=EPSILONS)
        for adversarial in (*raw, *clipped):
            assert torch.equal(adversarial[salience], images[salience])
        name = type(getattr(attack, "attack", attack)).__name__
        left[name] = [1 - value for value in success.float().mean(1).tolist()]
        accuracies = ", ".join(f"{value:.0%} at {eps}" for value, eps in zip(left[name], EPSILONS, strict=True))
        print(f"{name}: no salient element changed, accuracy {accuracies}")
    return left


if __name__ == "__main__":
    main()
