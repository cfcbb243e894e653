"""Robust accuracy at nested ε: AutoAttack's standard version, resumable, and PGD of torchattacks for comparison.

    python examples/evaluate.py

Interrupt it and start it again: it goes on where it was.
"""

from pathlib import Path

import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer
from sip_plugin.evaluation import RobustnessReport, evaluate_robustness

EPS = (0.05, 0.1, 0.2)


def trained(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A network trained by Madry's method."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    criterion = AdversarialTrainer(model, "madry", eps=EPS[-1], alpha=EPS[-1] / 4, steps=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(6):
        for images, labels in DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True):
            optimizer.zero_grad()
            criterion(images, labels).backward()
            optimizer.step()
    return model


def pgd(model: nn.Module, eps: float) -> torchattacks.PGD:
    """An attack for each ε; any function (network, ε) -> attack will do."""
    return torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=20)


def main(images: int = 32, folder: Path = Path("out/evaluate")) -> dict[str, RobustnessReport]:
    """The reports of AutoAttack and PGD."""
    torch.set_num_threads(1)  # for images this small, waking other threads takes longer than the work
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    model = trained(x[:1500], y[:1500])
    loader = DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=100)
    reports = {
        "AutoAttack": evaluate_robustness(model, loader, eps=EPS, max_images=images, checkpoint=folder / "autoattack"),
        "PGD": evaluate_robustness(model, loader, eps=EPS, max_images=images, attack=pgd),
    }
    for report in reports.values():
        print(report)
        print()
    reports["AutoAttack"].to_json(folder / "autoattack.json")
    return reports


if __name__ == "__main__":
    main()
