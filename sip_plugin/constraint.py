"""Which perturbations are allowed: the feasible set Δ'(x) of SIP-AT (eq. 9) and the projections onto it.

One idea covers every method, a *budget per element*: element ``i`` of the image ``x`` may change by at most ``ε_i``.
SIP-AT's budget is ``ε·(1 − M)``, so salient elements (``M = 1``) may not change at all; Madry's is ``ε`` everywhere.
Images are floating point, ``(N, C, H, W)``, in ``[0, 1]``; maps and budgets (from 0) are broadcastable to that shape.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from sip_plugin.checks import Norm

SalienceMap = Tensor | np.ndarray


def prepare_mask(mask: SalienceMap, images: Tensor, *, soft: bool = False) -> Tensor:
    """Turn any legal form of salience map into one tensor that broadcasts against ``images``.

    Legal are ``bool`` or {0, 1} of any real dtype, as a tensor or NumPy array, either ``(H, W)`` (one map for every image
    and channel) or four-dimensional and broadcastable to ``(N, C, H, W)``. 1 marks a salient element.

    Args:
        mask: The map.
        images: The batch that it belongs to, ``(N, C, H, W)``.
        soft: Whether values between 0 and 1 are legal (as budgets in training they are: ``ε·(1 − M)``).

    Returns:
        A four-dimensional ``bool`` tensor on the images' device, or, for a soft map, one of the images' dtype.

    Raises:
        TypeError: If ``mask`` is no tensor or array of numbers.
        ValueError: If its shape does not fit or is ambiguous (3-D), or a value is NaN, outside ``[0, 1]`` or, unless
            ``soft``, strictly between 0 and 1.
    """
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(np.ascontiguousarray(mask))
    if not isinstance(mask, Tensor) or mask.is_complex():
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"A salience map must be a torch.Tensor or NumPy array of real numbers, got {given}.")
    mask = _in_range(mask.detach(), soft)
    shape = tuple(images.shape)
    if mask.dim() == 2 and mask.shape == images.shape[2:]:
        mask = mask[None, None]
    if mask.dim() != 4 or any(m not in (1, s) for m, s in zip(mask.shape, shape, strict=True)):
        raise ValueError(
            f"A salience map must be (H, W) = {shape[2:]} or four-dimensional and broadcastable to the images' shape "
            f"{shape}, got shape {tuple(mask.shape)}. A 3-D map is ambiguous: write mask[None] if it is one (C, H, W) map "
            "for every image, or mask[:, None] if it is one (H, W) map per image."
        )
    mask = mask.to(images.device) if mask.dtype == torch.bool else mask.to(images.device, images.dtype)
    if mask.is_inference() and not torch.is_inference_mode_enabled():
        mask = mask.clone()  # made in inference_mode, where nothing can be saved for a gradient
    # One layout for map and images: a select between different layouts is slower and would change the result's layout.
    if mask.shape == images.shape and images.is_contiguous(memory_format=torch.channels_last):
        mask = mask.contiguous(memory_format=torch.channels_last)
    return mask


def _in_range(mask: Tensor, soft: bool) -> Tensor:
    """A binary map as ``bool``, a legal soft one as it is."""
    if mask.dtype == torch.bool:
        return mask
    marked = mask != 0
    if bool(((mask == 1) | ~marked).all()):
        return marked
    low, high = mask.min().item(), mask.max().item()
    if not (low >= 0 and high <= 1):  # also catches NaN
        raise ValueError(f"A salience map must hold 0 and 1 (or bool) and no NaN, got values from {low:g} to {high:g}.")
    if not soft:
        raise ValueError(
            f"The salience map is soft (values from {low:g} to {high:g}), which a wrapped attack cannot take: "
            "projecting every step by (1 - M) would shrink the perturbation with the number of steps. Binarise it "
            "(mask > threshold), or use it as budgets in AdversarialTrainer, where eps * (1 - M) is well defined."
        )
    return mask


def project(candidate: Tensor, images: Tensor, salience: Tensor) -> Tensor:
    """Put a candidate back into Δ'(x) on its salient elements: ``P_x(z) = x + (z − x)·(1 − M)``.

    For a binary map this is a select, never arithmetic, so salient elements equal the clean image bit for bit. The
    gradient with respect to the candidate is exactly zero there. The result has the candidate's memory layout.

    Args:
        candidate: ``z``, of the images' shape.
        images: The clean images ``x``.
        salience: ``M`` as :func:`prepare_mask` gives it.
    """
    if salience.dtype == torch.bool:
        result = torch.where(salience, images, candidate)
    else:
        result = images + (candidate - images) * (1 - salience)
    return result if result.stride() == candidate.stride() else torch.empty_like(candidate).copy_(result)


def elementwise_budget(images: Tensor, eps: float, salience: Tensor | None = None) -> Tensor:
    """The budget of each element: ``ε`` without a map, ``ε·(1 − M)`` with one (exactly 0 on salient elements).

    Returns:
        A tensor of the images' dtype and device, broadcastable to their shape.
    """
    if salience is None:
        return images.new_full((1, 1, 1, 1), eps)
    if salience.dtype == torch.bool:
        # where() over two scalars would be of the default dtype, whatever the images' is.
        return torch.where(salience, images.new_zeros(()), images.new_full((), eps))
    return eps * (1 - salience)


class FeasibleSet(ABC):
    """Δ'(x) as an inner maximisation asks for it.

    Args:
        images: Clean images, ``(N, C, H, W)`` in ``[0, 1]``.
        budget: Largest change per element, broadcastable to the images.
    """

    def __init__(self, images: Tensor, budget: Tensor) -> None:
        self.images = images
        self.budget = budget

    @abstractmethod
    def random_start(self) -> Tensor:
        """A random point of the set, ``(N, C, H, W)``. Draws from torch's global generator."""

    @abstractmethod
    def ascend(self, point: Tensor, gradient: Tensor, alpha: float | Tensor, noise: float = 0.0) -> Tensor:
        """``point`` after one step of size ``alpha`` up the gradient and ``noise·N(0, 1)``, back in the set."""

    @abstractmethod
    def project(self, candidate: Tensor) -> Tensor:
        """The point of the set for a candidate outside it; the clean values, bit for bit, where the budget is 0."""

    def rows(self, index: Tensor) -> FeasibleSet:
        """The set of some of the images, given by their indices ``(n,)``."""
        part = copy.copy(self)
        for name, tensor in vars(self).items():
            setattr(part, name, tensor if len(tensor) == 1 else tensor[index])  # one row stands for every image
        return part


class LinfBox(FeasibleSet):
    """``{x' in [0, 1] : |x' − x| ≤ budget}``, kept as two bounds per element, so that projecting is one clamp."""

    def __init__(self, images: Tensor, budget: Tensor) -> None:
        super().__init__(images, budget)
        self.lower = (images - budget).clamp_(min=0)
        self.upper = (images + budget).clamp_(max=1)

    def random_start(self) -> Tensor:
        """Uniform in the box before it is cut to ``[0, 1]`` (Madry et al. 2018)."""
        noise = torch.empty_like(self.images).uniform_(-1, 1)
        return noise.mul_(self.budget).add_(self.images).clamp_(self.lower, self.upper)

    def ascend(self, point: Tensor, gradient: Tensor, alpha: float | Tensor, noise: float = 0.0) -> Tensor:
        """A signed gradient step, then noise, then the projection."""
        moved = point + gradient.sign() * alpha  # a compiled search has it as a tensor
        if noise:
            moved.add_(torch.randn_like(moved), alpha=noise)
        return moved.clamp_(self.lower, self.upper)

    def project(self, candidate: Tensor) -> Tensor:
        """Each element to the nearer bound."""
        return candidate.clamp(self.lower, self.upper)


class L2Ball(FeasibleSet):
    """``{x' in [0, 1] : ‖(x' − x) / budget‖₂ ≤ 1}``, with no change where the budget is 0.

    With the budget ``ε·(1 − M)`` and binary ``M`` this is the L2 ball of radius ε over the non-salient elements; with
    unequal budgets it is the ellipsoid whose half-axes they are. The search moves in the coordinates ``u = δ / w``, where
    ``w`` is the budget over its largest value in the image, in which the ellipsoid is a ball.
    """

    def __init__(self, images: Tensor, budget: Tensor) -> None:
        super().__init__(images, budget)
        self.radius = budget.amax((1, 2, 3), keepdim=True)
        self.weight = budget / self.radius.clamp(min=torch.finfo(budget.dtype).tiny)
        self.inverse = torch.where(self.weight > 0, 1 / self.weight, torch.zeros_like(self.weight))

    def random_start(self) -> Tensor:
        """Uniform in the ball (in the coordinates ``u``) before it is cut to ``[0, 1]``."""
        free = (self.weight > 0).to(self.images.dtype)
        dimensions = free.expand_as(self.images).sum((1, 2, 3), keepdim=True).clamp_(min=1)
        direction = torch.randn_like(self.images).mul_(free)
        length = torch.rand_like(dimensions).pow_(1 / dimensions).mul_(self.radius)
        return direction.mul_(self.weight * length / _norms(direction)).add_(self.images).clamp_(0, 1)

    def ascend(self, point: Tensor, gradient: Tensor, alpha: float | Tensor, noise: float = 0.0) -> Tensor:
        """A step of length ``alpha`` along the normalised gradient, then noise, scaled back into the ball."""
        gradient = gradient * self.weight
        delta = (point - self.images).add_(gradient.mul_(self.weight * alpha / _norms(gradient)))
        if noise:
            delta.add_(torch.randn_like(delta).mul_(self.weight > 0), alpha=noise)
        return self._shortened(delta)

    def project(self, candidate: Tensor) -> Tensor:
        """The change shortened to the ball, and dropped where the budget is 0."""
        return self._shortened((candidate - self.images).mul_(self.weight > 0))

    def _shortened(self, delta: Tensor) -> Tensor:
        length = _norms(delta * self.inverse)
        return delta.mul_((self.radius / length).clamp_(max=1)).add_(self.images).clamp_(0, 1)


def _norms(batch: Tensor) -> Tensor:
    """The L2 norm of each image, ``(N, 1, 1, 1)``, never 0 (a zero image times any radius over it stays zero)."""
    norms: Tensor = torch.linalg.vector_norm(batch, dim=(1, 2, 3), keepdim=True)
    smallest = torch.finfo(norms.dtype).tiny
    return norms.clamp_(min=smallest if norms.dtype == torch.float16 else smallest**0.75)


def feasible_set(images: Tensor, budget: Tensor, norm: Norm) -> FeasibleSet:
    """The feasible set of ``norm`` around ``images`` with a budget per element."""
    return LinfBox(images, budget) if norm == "Linf" else L2Ball(images, budget)
