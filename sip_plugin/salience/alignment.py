"""Whether an image's content lies where its map says: a texture, looked for around each place that it should be at.

A transform moved two images that differ by a known random texture, and a map that carried each pixel's coordinates. So the
difference of what came out shows where the texture went, whatever was done to colours, and the coordinates tell where from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 28  # samples along the side of a tile: a shift may differ from place to place
_FEWEST = 64  # samples in which a texture may be known again
_SURE = 0.6  # correlation with the texture elsewhere,
_BETTER = 0.15  # and by so much better than here
_DEVIATIONS = 5.5  # of a correlation by chance, of which the largest of some ten thousand stays below
_SAMPLES_PER_CHANCE = 4.4  # neighbouring samples of the texture are alike


def texture(height: int, width: int, grain: int, generator: torch.Generator) -> Tensor:
    """Random values ``(H, W)`` from -1 to 1, alike within a few times ``grain`` pixels."""
    size = 2 * grain + 1
    noise = torch.randn(1, 1, height + 2 * grain, width + 2 * grain, generator=generator)
    smooth = F.avg_pool2d(noise, size, stride=1)[0, 0]
    return (smooth * (size / 2)).clamp(-1, 1)


def displacement(
    difference: Tensor, places: Tensor, pattern: Tensor, grain: int, radius: int
) -> tuple[int, int] | None:
    """How far from its place the texture lies, in pixels of the original image; None if it is at its place or not seen.

    Args:
        difference: ``(H', W')``, of the two transformed images.
        places: ``(H', W')``, where each pixel comes from by the map: ``row · W + column``, or -1 from outside.
        pattern: The texture, ``(H, W)``.
        grain: The step of the search.
        radius: How many steps.
    """
    steps = torch.arange(-radius, radius + 1) * grain
    rows, columns = (shift.flatten() for shift in torch.meshgrid(steps, steps, indexing="ij"))
    around = F.pad(pattern, (radius * grain,) * 4)
    for values, rows_of, columns_of, scale in _tiles(difference, places, pattern.shape[1], grain):
        row, column = (index[None] + radius * grain for index in (rows_of, columns_of))
        found = correlation(around[row + rows[:, None], column + columns[:, None]], values)
        # Nearest neighbour and interpolation differ by up to half a pixel of the coarser image.
        here = torch.maximum(rows.abs(), columns.abs()) <= 0.5 * scale + 0.25
        best = int(found.argmax())
        if not here[best] and found[best] > max(_threshold(len(values)), float(found[here].max()) + _BETTER):
            return int(rows[best]), int(columns[best])
    return None


def correlation(patterns: Tensor, values: Tensor) -> Tensor:
    """That of values ``(n,)`` with each of some patterns ``(k, n)``, without sign; 0 where there is nothing."""
    values = values - values.mean()
    norm = patterns.norm(dim=1) * values.norm()
    return torch.where(norm > 1e-6, (patterns @ values).abs() / norm.clamp(min=1e-6), 0.0)


def is_seen(difference: Tensor, places: Tensor, pattern: Tensor) -> bool:
    """Whether the difference of two images shows the texture at its place."""
    inside = places >= 0
    values = difference[inside]
    found = correlation(pattern.flatten()[places[inside]][None], values) if len(values) >= _FEWEST else torch.zeros(1)
    return float(found) > _threshold(max(1, len(values)))


def _threshold(samples: int) -> float:
    return max(_SURE, _DEVIATIONS / math.sqrt(samples / _SAMPLES_PER_CHANCE))


def _tiles(
    difference: Tensor, places: Tensor, width: int, grain: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """Values, and where they are from: rows, columns, and how many original pixels a pixel is wide."""
    difference, places = difference[::grain, ::grain], places[::grain, ::grain]
    for rows in _parts(places.shape[0]):
        for columns in _parts(places.shape[1]):
            tile = places[rows, columns]
            inside = tile >= 0
            if int(inside.sum()) < _FEWEST:
                continue
            indices = tile[inside]
            scale = max(_step(tile, width), _step(tile.T, width)) / grain
            yield difference[rows, columns][inside], indices // width, indices % width, scale


def _parts(length: int) -> list[slice]:
    count = max(1, length // _TILE)
    return [slice(part * length // count, (part + 1) * length // count) for part in range(count)]


def _step(tile: Tensor, width: int) -> float:
    """The mean distance of a tile's neighbours in the original image."""
    both = (tile[:-1] >= 0) & (tile[1:] >= 0)
    one, next_one = tile[:-1][both], tile[1:][both]
    if not len(one):
        return 1.0
    rows, columns = (next_one // width - one // width).float(), (next_one % width - one % width).float()
    return float(torch.hypot(rows, columns).mean())
