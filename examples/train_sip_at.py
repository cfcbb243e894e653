"""SIP-AT in a training loop of one's own: one object takes the place of the criterion. Runs on scikit-learn's digits.

python examples/train_sip_at.py
"""

import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import GradientSalience

EPS, EPOCHS = 0.2, 10


def network() -> nn.Module:
    """A small classifier of 8×8 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def train(model: nn.Module, criterion: AdversarialTrainer, loader: DataLoader[tuple[torch.Tensor, ...]]) -> None:
    """The loop that one already has."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch, EPOCHS)
        for images, labels in loader:
            loss = criterion(images, labels)  # was criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def main() -> dict[str, tuple[float, float]]:
    """Clean accuracy and accuracy under unrestricted PGD, of a Madry and of a SIP-AT network."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    loader = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True)
    test = x[1400:], y[1400:]

    teacher = network()
    train(teacher, AdversarialTrainer(teacher, "madry", eps=EPS, alpha=EPS / 4), loader)
    student = network()
    mask_fn = GradientSalience(teacher)  # what the robust teacher looks at stays as it is
    train(student, AdversarialTrainer(student, "sip-at", salience=mask_fn, eps=EPS, alpha=EPS / 4), loader)

    results = {}
    for name, model in {"Madry": teacher, "SIP-AT": student}.items():
        adversarial = torchattacks.PGD(model, eps=EPS / 2, alpha=EPS / 8, steps=20)(*test)
        clean, robust = (
            (model(images).argmax(1) == test[1]).float().mean().item() for images in (test[0], adversarial)
        )
        results[name] = clean, robust
        print(f"{name}: clean {clean:.1%}, PGD-20 at eps = {EPS / 2}: {robust:.1%}")
    return results


if __name__ == "__main__":
    main()
