"""FAT with salience under Lightning Fabric, in bfloat16: the criterion takes the set-up model.

python examples/train_with_fabric.py
"""

from typing import Any

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer

EPS = 0.2


def main(epochs: int = 8, precision: Any = "bf16-mixed") -> dict[str, float]:
    """Clean and robust accuracy."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    fabric.seed_everything(0, verbose=False)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9))
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=64, shuffle=True))
    # Any map will do; here what is bright (the strokes of the digits) stays as it is.
    criterion = AdversarialTrainer(model, "fat", salience=lambda images: images > 0.9, eps=EPS, alpha=EPS / 4, steps=7)
    for epoch in range(epochs):
        criterion.set_epoch(epoch, epochs)
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            fabric.backward(criterion(images, labels))
            optimizer.step()

    model.eval()
    attack = AdversarialTrainer(model, "madry", eps=EPS / 2, alpha=EPS / 8, steps=10)
    test = x[1400:], y[1400:]
    results = {}
    with torch.no_grad():
        for name, shown in {"clean": test[0], "robust": attack.perturb(*test)}.items():
            results[name] = (model(shown).argmax(1) == test[1]).float().mean().item()
    print(f"clean {results['clean']:.1%}, PGD-10 at eps = {EPS / 2}: {results['robust']:.1%}")
    return results


if __name__ == "__main__":
    main()
