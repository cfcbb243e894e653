"""TRADES with salience under Hugging Face Accelerate: the criterion takes the prepared model.

python examples/train_with_accelerate.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin import AdversarialTrainer

EPS = 0.2


def main(epochs: int = 8) -> dict[str, float]:
    """Clean and robust accuracy."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
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
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=32, shuffle=True)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    # Any map will do; here what is bright (the strokes of the digits) stays as it is.
    criterion = AdversarialTrainer(
        network, "trades", salience=lambda images: images > 0.9, eps=EPS, alpha=EPS / 4, steps=7
    )
    for epoch in range(epochs):
        criterion.set_epoch(epoch, epochs)
        network.train()
        for images, labels in loader:
            with accelerator.accumulate(network):
                accelerator.backward(criterion(images, labels))
                optimizer.step()
                optimizer.zero_grad()

    network.eval()
    attack = AdversarialTrainer(network, "madry", eps=EPS / 2, alpha=EPS / 8, steps=10)
    test = x[1400:], y[1400:]
    results = {}
    with torch.no_grad():
        for name, shown in {"clean": test[0], "robust": attack.perturb(*test)}.items():
            results[name] = (network(shown).argmax(1) == test[1]).float().mean().item()
    print(f"clean {results['clean']:.1%}, PGD-10 at eps = {EPS / 2}: {results['robust']:.1%}")
    return results


if __name__ == "__main__":
    main()
