"""SIP-AT with what people marked (SIP-H): CUB-200-2011, or without it a few drawn birds in an archive of the same layout.

python examples/human_salience.py
python examples/human_salience.py --root CUB_200_2011 --network resnet50 --pretrained --size 224 --epochs 80 --steps 32
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from sip_plugin import AdversarialTrainer
from sip_plugin.salience import SalientDataset
from sip_plugin.salience.annotations import CUB200

EPS = 8 / 255


def draw_archive(root: Path, images: int = 40) -> Path:
    """Three species that differ in their plumage, on any ground, each bird marked by five annotators."""
    folder = root / "CUB_200_2011"
    species = ["001.Plain_Bird", "002.Striped_Bird", "003.Barred_Bird"]
    generator = np.random.default_rng(0)
    lists: dict[str, list[object]] = {"images": [], "image_class_labels": [], "train_test_split": [], "classes": []}
    lists["classes"] += species
    y, x = np.mgrid[:48, :60]
    plumage = [np.ones_like(x), x // 6 % 2, y // 6 % 2]
    for number in range(images):
        for label, name in enumerate(species):
            votes = np.zeros((48, 60), dtype=np.int64)
            for _ in range(5):
                middle, radii = generator.normal((24, 30), 1), generator.normal((15, 20), 1)
                votes += ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 < 1
            pixels = generator.integers(0, 256, (8, 10, 3)).repeat(6, axis=0).repeat(6, axis=1)
            pixels[votes > 2] = 60 + 120 * plumage[label][votes > 2, None]
            file = f"{name}/{name[4:]}_{number:04d}"
            for kind, values, suffix in (("images", pixels, "jpg"), ("segmentations", 51 * votes, "png")):
                path = folder / kind / f"{file}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(path)
            lists["images"].append(f"{file}.jpg")
            lists["image_class_labels"].append(label + 1)
            lists["train_test_split"].append(number % 2)
    for kind, entries in lists.items():
        text = "".join(f"{number} {entry}\n" for number, entry in enumerate(entries, start=1))
        (folder / f"{kind}.txt").write_text(text)
    return folder


def network(name: str, classes: int, pretrained: bool) -> nn.Module:
    """A classifier of images in [0, 1]; what normalises them is a part of it, so that eps keeps its meaning."""
    if name == "small":
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(512, classes),
        )
    body: Any = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    body.fc = nn.Linear(body.fc.in_features, classes)
    return nn.Sequential(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), body)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Accuracy on the test images, clean and under unrestricted PGD, of a SIP-H network."""
    parser = argparse.ArgumentParser(description="Train SIP-H.")
    parser.add_argument("--root", type=Path, help="the folder CUB_200_2011; drawn birds without it")
    parser.add_argument("--network", default="small", choices=["small", "resnet18", "resnet50"])
    parser.add_argument(
        "--pretrained", action="store_true", help="start from ImageNet weights (torchvision loads them)"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="the share of annotators")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.root is not None:
        return train(options.root, options)
    with tempfile.TemporaryDirectory() as folder:
        return train(draw_archive(Path(folder)), options)


def train(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train on the training split, test on the test split."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(options.size, scale=(0.7, 1)),  # the map follows, by its nearest neighbour
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    birds = CUB200(root, train=True)
    data = SalientDataset(birds, birds.masks(threshold=options.threshold), augment)
    loader = DataLoader(data, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers)

    model = network(options.network, len(birds.classes), options.pretrained).to(device)
    criterion = AdversarialTrainer(model, "sip-at", eps=EPS, alpha=1 / 255, steps=options.steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.75)
    model.train()
    for epoch in range(options.epochs):
        criterion.set_epoch(epoch, options.epochs)
        losses = []
        for images, labels, maps in loader:
            loss = criterion(images.to(device), labels.to(device), mask=maps.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {maps.float().mean():.0%} of the last batch salient")
    model.eval()

    plain = v2.Compose([v2.ToImage(), v2.Resize((options.size, options.size)), v2.ToDtype(torch.float32, scale=True)])
    test = DataLoader(CUB200(root, train=False, transform=plain), options.batch_size, num_workers=options.workers)
    attack = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=10)  # it knows no map
    clean = robust = seen = 0
    for images, labels in test:
        images, labels = images.to(device), labels.to(device)
        adversarial = attack(images, labels)
        with torch.no_grad():
            clean += int((model(images).argmax(1) == labels).sum())
            robust += int((model(adversarial).argmax(1) == labels).sum())
        seen += len(labels)
    print(f"SIP-H on {seen} test images: clean {clean / seen:.1%}, PGD-10 at eps = 8/255: {robust / seen:.1%}")
    return {"clean": clean / seen, "robust": robust / seen}


if __name__ == "__main__":
    main()
