"""Images, salience maps and perturbations as pictures: tensors in, RGB tensors ``(N, 3, H, W)`` in ``[0, 1]`` out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# What the red, green and blue channel's salience is drawn in. The three add up to white, none is dark, and any two of their
# eight mixtures (black and white among them) can be told apart with normal sight, protanopia and deuteranopia; pure red,
# green and blue fail that.
CHANNEL_COLOURS = torch.tensor([[0.51, 0.26, 0.02], [0.21, 0.71, 0.00], [0.28, 0.03, 0.98]])
SALIENT_COLOUR = torch.tensor([1.0, 0.55, 0.0])


def as_rgb(images: Tensor) -> Tensor:
    """Images of one or three channels as RGB."""
    return images.expand(-1, 3, -1, -1)


def map_picture(maps: Tensor) -> Tensor:
    """Maps ``(N, C, H, W)``: white is salient in every channel, black in none; else a colour for each salient channel."""
    if maps.shape[1] == 1:
        return as_rgb(maps.float())
    return torch.einsum("nchw,cr->nrhw", maps.float(), CHANNEL_COLOURS).clamp(0, 1)


def overlay_picture(images: Tensor, maps: Tensor) -> Tensor:
    """The images in pale grey, and orange over them where the map is salient (the stronger, the more channels)."""
    grey = 0.4 + 0.6 * as_rgb(images.mean(1, keepdim=True))
    tinted = SALIENT_COLOUR.view(1, 3, 1, 1) * (0.4 + 0.6 * grey)
    share = maps.float().mean(1, keepdim=True)
    return torch.lerp(grey, tinted, share.sqrt())


def perturbation_picture(perturbations: Tensor, factor: float) -> Tensor:
    """Perturbations around grey, ``factor`` times enlarged."""
    return as_rgb((0.5 + factor * perturbations).clamp(0, 1))


def enlargement(perturbations: Sequence[Tensor]) -> float:
    """The factor at which (nearly) all that was changed stays between black and white: a whole number from 1 up, or 0.5.

    One in a hundred of the changed elements may be cut off, so that a few large changes do not hide all others.
    """
    changed = torch.cat([each.abs().flatten() for each in perturbations])
    changed = changed[changed > 0]
    if not len(changed):
        return 1.0
    size = changed.kthvalue(math.ceil(0.99 * len(changed))).values.item()
    return max(0.5, float(math.floor(0.5 / size + 1e-3)))
