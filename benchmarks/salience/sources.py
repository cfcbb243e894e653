"""Other sources of maps, and how far the maps of a robust network's gradient agree with theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sip_plugin.salience import CAMSalience, GradientSalience, MaskStore
from sip_plugin.salience.compare import SalienceComparison, compare_salience

Source = Callable[[Tensor, Tensor], Tensor]
"""The maps of images, given which ones they are ``(n,)`` and themselves ``(n, C, H, W)``."""


def other_sources(store: MaskStore, robust: nn.Module, standard: nn.Module, *, seed: int) -> dict[str, Source]:
    """What the store's maps are compared with: another network, another method, and three that know nothing of the image."""
    of_standard, cam = GradientSalience(standard), CAMSalience(robust)
    share = store[:].float().mean().item()
    return {
        "gradient, standard": lambda rows, images: of_standard(images),
        "Grad-CAM, Madry": lambda rows, images: cam(images),
        "another image's map": lambda rows, images: store[(rows + 1) % len(store)],
        "disc in the middle": lambda rows, images: disc(images, share),
        "random elements": lambda rows, images: scattered(store[rows], seed),
    }


def disc(images: Tensor, share: float) -> Tensor:
    """The pixels nearest to the middle, as many as make up ``share`` of the image, for every image."""
    height, width = images.shape[2:]
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    distance = (rows[:, None] ** 2 + columns**2).flatten()
    chosen = torch.zeros(height * width, dtype=torch.bool)
    chosen[distance.argsort(stable=True)[: round(share * height * width)]] = True
    return chosen.view(1, 1, height, width).expand_as(images)


def scattered(maps: Tensor, seed: int) -> Tensor:
    """For each map one of as many elements at random places."""
    order = torch.rand(maps.flatten(1).shape, generator=torch.Generator().manual_seed(seed)).argsort(1).argsort(1)
    return (order < maps.flatten(1).sum(1, keepdim=True)).view(maps.shape)


def compared(
    name: str, store: MaskStore, others: dict[str, Source], images: Tensor, robust: nn.Module, batch_size: int
) -> dict[str, SalienceComparison]:
    """The store's maps against every other source, over all images; the mass is that of the robust network's gradient."""
    magnitude = GradientSalience(robust).magnitude
    parts: dict[str, list[SalienceComparison]] = {other: [] for other in others}
    for rows in torch.arange(len(images)).split(batch_size):
        x = images[rows]
        maps, scores = store[rows], magnitude(x)
        for other, source in others.items():
            parts[other].append(compare_salience(maps, source(rows, x), x, scores=scores, names=(name, other)))
    return {other: SalienceComparison.join(found) for other, found in parts.items()}


def table(comparisons: dict[str, SalienceComparison]) -> str:
    """The comparisons as Markdown; in per cent, but for the IoU."""
    first = next(iter(comparisons.values()))
    held = f"{100 * first.mass_first.mean():.1f}" if first.mass_first is not None else ""
    lines = [
        "| Source | Salient elements | IoU with the first | IoU by chance | Gradient mass held |",
        "|---|---|---|---|---|",
        f"| {first.names[0]} (the first) | {_percent(first.share_first)} | | | {held} |",
    ]
    for other, found in comparisons.items():
        assert found.mass_second is not None
        lines.append(
            f"| {other} | {_percent(found.share_second)} | {found.iou.mean():.3f} ± {found.iou.std(correction=0):.3f} "
            f"| {found.expected_iou.mean():.3f} | {100 * found.mass_second.mean():.1f} |"
        )
    return "\n".join(lines) + "\n"


def _percent(shares: Tensor) -> str:
    return f"{100 * shares.mean():.1f} ± {100 * shares.std(correction=0):.1f}"
