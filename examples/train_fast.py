"""MART with salience in a compiled network under autocast, with a gradient scaler and gradient accumulation.

python examples/train_fast.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer
from sip_plugin.training import MART

EPS, ACCUMULATED = 0.2, 2


def main(epochs: int = 8, backend: str = "inductor") -> float:
    """Clean accuracy."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
    ).to(device)
    model: nn.Module = torch.compile(network, backend=backend)  # type: ignore[assignment]
    # Any map will do; here what is bright (the strokes of the digits) stays as it is.
    criterion = AdversarialTrainer(
        model, MART(beta=5.0), salience=lambda images: images > 0.9, eps=EPS, alpha=EPS / 4, steps=7
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(device)
    loader = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=32, shuffle=True, drop_last=True)
    for epoch in range(epochs):
        criterion.set_epoch(epoch, epochs)
        network.train()
        for number, (images, labels) in enumerate(loader, start=1):
            with torch.autocast(device, torch.bfloat16):
                loss = criterion(images.to(device), labels.to(device)) / ACCUMULATED
            scaler.scale(loss).backward()
            if number % ACCUMULATED == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    network.eval()
    with torch.no_grad():
        accuracy: float = (network(x[1400:].to(device)).argmax(1).cpu() == y[1400:]).float().mean().item()
    print(f"clean {accuracy:.1%}; last batch: {criterion.metrics['adversarial_accuracy']:.1%} right under attack")
    return accuracy


if __name__ == "__main__":
    main()
