"""Salience maps computed once, kept on disk, moved with the augmented images, used in training. On scikit-learn's digits.

python examples/store_and_train.py
"""

import tempfile
from pathlib import Path

import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import GradientSalience, MaskStore, SalientDataset

EPS, EPOCHS = 0.2, 6


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


def train(model: nn.Module, criterion: AdversarialTrainer, data: SalientDataset) -> None:
    """The loop that one already has; its batches bring their maps."""
    loader = DataLoader(data, batch_size=64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for epoch in range(EPOCHS):
        criterion.set_epoch(epoch, EPOCHS)
        for images, labels, maps in loader:
            loss = criterion(images, labels, mask=maps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def main() -> dict[str, float]:
    """Share of salient elements; clean accuracy and accuracy under unrestricted PGD of a network trained by SIP-AT."""
    torch.manual_seed(0)
    pixels, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(targets)
    dataset, test = TensorDataset(x[:1400], y[:1400]), (x[1400:], y[1400:])  # not augmented
    shift = v2.RandomAffine(degrees=5, translate=(0.1, 0.1))

    # The teacher is an adversarially trained network: SIP-AT with maps on which nothing is salient.
    teacher = network()
    nothing = torch.zeros(len(dataset), 1, 8, 8, dtype=torch.bool)
    train(
        teacher, AdversarialTrainer(teacher, "sip-at", eps=EPS, alpha=EPS / 4), SalientDataset(dataset, nothing, shift)
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.masks"
        MaskStore.build(
            path, dataset, GradientSalience(teacher), batch_size=256
        )  # may be killed: the same call resumes
        with MaskStore(path) as store:  # later, in another process
            print(f"{store!r}: {(path / 'maps.npy').stat().st_size} bytes")
            student = network()
            criterion = AdversarialTrainer(student, "sip-at", eps=EPS, alpha=EPS / 4)
            train(student, criterion, SalientDataset(dataset, store, shift))
            salient = store[:].float().mean().item()

    attacked = torchattacks.PGD(student, eps=EPS / 2, alpha=EPS / 8, steps=20)(*test)
    clean, robust = ((student(images).argmax(1) == test[1]).float().mean().item() for images in (test[0], attacked))
    print(f"{salient:.1%} salient; clean {clean:.1%}, PGD-20 at eps = {EPS / 2}: {robust:.1%}")
    return {"salient": salient, "clean": clean, "robust": robust}


if __name__ == "__main__":
    main()
