"""The networks of the tables. All take images in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """Five convolutions with BatchNorm, for a CPU.

    Args:
        channels: Of the images.
        classes: Of the data set.
        width: Channels after the first convolution; doubled at each later halving.
        stem: Kernel and stride of the first convolution.
    """

    def __init__(self, channels: int, classes: int, width: int, stem: tuple[int, int] = (3, 1)) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in (
            (channels, width, *stem),
            (width, width, 3, 1),
            (width, 2 * width, 3, 2),
            (2 * width, 2 * width, 3, 1),
            (2 * width, 4 * width, 3, 2),
        ):
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


class _WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        # Where the width changes, the shortcut starts from the activation, elsewhere from the input.
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(active))))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-factor for 32×32 images (Zagoruyko and Komodakis 2016), without dropout."""

    def __init__(self, classes: int, depth: int = 34, factor: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest:
            raise ValueError(f"The depth of a WideResNet is 6·n + 4, got {depth}.")
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        stages, inputs = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            outputs = width * factor
            stage = [_WideBlock(inputs, outputs, stride)]
            stage += [_WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of images ``(N, 3, H, W)``."""
        features = F.relu(self.norm(self.stages(self.stem(x))))
        return self.head(features.mean((2, 3)))  # type: ignore[no-any-return]


def _cifar_resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 with the stem that is usual for 32×32 images: one 3×3 convolution, no pooling."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network  # type: ignore[no-any-return]


def _narrow_resnet18(channels: int, classes: int) -> nn.Module:
    """ResNet-18 for 32×32 images of half the width, which torchvision's constructor does not offer."""
    from torchvision.models.resnet import BasicBlock

    layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    inputs = 32
    for width, stride in ((32, 1), (64, 2), (128, 2), (256, 2)):
        shortcut = None
        if width != inputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        layers += [BasicBlock(inputs, width, stride, shortcut), BasicBlock(width, width)]
        inputs = width
    for module in (module for layer in layers for module in layer.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, classes))


def _imagenet(arch: str, channels: int, classes: int, pretrained: bool) -> nn.Module:
    """A network of torchvision with ImageNet's weights and a new head, mean and deviation of ImageNet inside."""
    from torchvision import models

    _colour(arch, channels)
    try:
        network = getattr(models, arch)(weights="DEFAULT" if pretrained else None)
    except (URLError, OSError) as error:
        raise OSError(
            f"torchvision's ImageNet weights of {arch} could not be fetched ({error}). Put the file into the folder "
            "checkpoints/ of torch.hub.get_dir(), or train from scratch with --no-pretrained."
        ) from error
    if arch == "resnet50":
        network.fc = nn.Linear(network.fc.in_features, classes)
    else:
        network.classifier = nn.Linear(network.classifier.in_features, classes)
    return nn.Sequential(_Normalised(), network)


class _Normalised(nn.Module):
    """ImageNet's normalisation, inside the network so that ε keeps its meaning."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _wide(channels: int, classes: int) -> nn.Module:
    _colour("wrn-34-10", channels)
    return WideResNet(classes)


def _colour(arch: str, channels: int) -> None:
    if channels != 3:
        raise ValueError(f"{arch} takes images of 3 channels, the data set's have {channels}.")


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": _cifar_resnet18,
    "resnet18-w32": _narrow_resnet18,
    "wrn-34-10": _wide,
    "resnet50": partial(_imagenet, "resnet50"),
    "densenet121": partial(_imagenet, "densenet121"),
    "convnet8": partial(ConvNet, width=8),  # for 8×8 images
    "convnet16": partial(ConvNet, width=16),
    "convnet24": partial(ConvNet, width=24, stem=(5, 2)),  # for 32×32 images on two CPU cores
    "convnet32": partial(ConvNet, width=32, stem=(5, 2)),
    "convnet48": partial(ConvNet, width=48, stem=(5, 2)),
}
"""Name -> (channels, classes) -> network; those with ImageNet's weights take ``pretrained``, too."""


def build_network(arch: str, channels: int, classes: int, pretrained: bool = False) -> nn.Module:
    """A network by its name.

    Raises:
        OSError: If pretrained weights cannot be fetched.
        ValueError: If there is no such network, or not with these channels or weights.
    """
    if arch not in NETWORKS:
        raise ValueError(f"Unknown network {arch!r}. Known: {', '.join(NETWORKS)}.")
    if arch in ("resnet50", "densenet121"):
        return NETWORKS[arch](channels, classes, pretrained)
    if pretrained:
        raise ValueError(f"There are no pretrained weights for {arch}: add --no-pretrained.")
    return NETWORKS[arch](channels, classes)
