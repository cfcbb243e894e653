"""Nested balls: how far an image is from the clean one, which balls hold it, and putting it exactly inside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sip_plugin.checks import Norm

_UNIT = 2.0**-24  # half the spacing of float32 numbers below 1: what rounding can shift one element by


def perturbation_norms(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """The norm of each image's perturbation, ``(N,)``, computed in float64."""
    delta = (adversarial.double() - images.double()).flatten(1)
    return delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)


def rounding(images: Tensor, norm: Norm) -> float:
    """How far outside its ball an attack's result may lie by float32 rounding alone."""
    elements = images[0].numel()
    return 4 * _UNIT * (1.0 if norm == "Linf" else elements**0.5)


def into_nearest_ball(adversarial: Tensor, images: Tensor, radii: Sequence[float], norm: Norm) -> Tensor:
    """Put images that lie outside a ball by no more than rounding exactly inside it; leave the others as they are.

    Args:
        adversarial: ``(N, C, H, W)``, float32 in ``[0, 1]``.
        images: The clean images, same shape.
        radii: Radii of the balls, ascending.
        norm: The balls' norm.

    Returns:
        ``(N, C, H, W)``, float32: wherever :func:`perturbation_norms` was at most rounding above a radius, it no longer is.
    """
    norms, slack = perturbation_norms(adversarial, images, norm), rounding(images, norm)
    result = adversarial.clone()
    for radius in radii:
        rows = (norms > radius) & (norms <= radius + slack)
        if rows.any():
            result[rows] = into_ball(adversarial[rows], images[rows], radius, norm)
    return result


def into_ball(adversarial: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """The projection of images in ``[0, 1]`` to the ball, rounded towards the clean image: exactly inside, in float64."""
    if norm == "Linf":
        low, high = images.double() - eps, images.double() + eps
        result = torch.minimum(torch.maximum(adversarial.double(), low), high).to(images.dtype)
        above, below = result.double() > high, result.double() < low
        towards = torch.where(above, -torch.inf, torch.inf).to(result.dtype)
        return torch.where(above | below, torch.nextafter(result, towards), result)
    result = adversarial.clone()
    while (outside := (norms := perturbation_norms(result, images, norm)) > eps).any():
        scale = (eps / norms[outside] * (1 - 2.0**-20)).view(-1, *[1] * (images.dim() - 1))
        clean = images[outside].double()
        result[outside] = (clean + (result[outside].double() - clean) * scale).to(images.dtype)
    return result
