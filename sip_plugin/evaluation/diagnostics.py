"""Signs that an evaluation overestimates robustness (Carlini et al. 2019, arXiv:1902.06705; AutoAttack's own flags)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.checks import check_classes, check_logits

_DIFFERENT = 1e-4  # distance between normalised logits of equal images, as in AutoAttack
_COMPANY = 1e-2  # the same between batches, whose kernels may round otherwise
_PROBABILITY = 1e-5


def clean_statistics(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Classify a batch of clean images, and look at its logits and gradients; a ValueError if there are NaN.

    Returns:
        For each image, on the CPU: whether it is classified ``correct``-ly; the number of ``classes``; whether its logits
        are ``differentiable`` with respect to it; whether the gradients of the logit margin (``zero_margin``) and of the
        cross-entropy (``zero_cross_entropy``) are exactly zero; whether its logits look like ``probabilities``.
    """
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = check_logits(model(images), len(images))
        if logits.isnan().any():
            raise ValueError("The network gives NaN on clean images, so nothing can be said of its robustness.")
        check_classes(labels, logits)
        true = F.one_hot(labels, logits.shape[1]).bool()
        margin = logits[true] - logits.masked_fill(true, -torch.inf).amax(1)
        cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
        gradients = [
            torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)[0] if value.requires_grad else None
            for value in (margin.sum(), cross_entropy)
        ]
    rows, count = logits.detach(), len(images)
    return {
        "correct": (rows.argmax(1) == labels).cpu(),
        "classes": torch.full((count,), logits.shape[1]),
        "differentiable": torch.full((count,), gradients[0] is not None),
        "zero_margin": _zero_gradient(gradients[0], count),
        "zero_cross_entropy": _zero_gradient(gradients[1], count),
        "probabilities": _are_probabilities(rows).cpu(),
    }


def stable_logits(model: nn.Module, images: Tensor) -> Tensor | None:
    """The logits of some images, ``(N, classes)`` on the CPU; None if the network is randomised."""
    with torch.no_grad():
        first, second = (check_logits(model(images.clone()), len(images)).double().cpu() for _ in range(2))
    apart = (_normalised(first) - _normalised(second)).norm(dim=1)
    return None if float(apart.max()) > _DIFFERENT else first


def network_warnings(model: nn.Module, images: Tensor, dynamic: bool, randomness_expected: bool) -> list[str]:
    """What is suspicious about a network in eval mode, from some images ``(N, C, H, W)`` on its device."""
    # Before torch 2.6 what torch.compile puts around a network has a mode of its own.
    training = sorted({type(m).__name__ for m in model.modules() if m.training and not hasattr(m, "_orig_mod")})
    random = stable_logits(model, images) is None
    with torch.no_grad():
        pair = torch.cat([images[:1], 1 - images[:1]])
        alone = _normalised(model(pair))[0], _normalised(model(pair[[0, 0]]))[0]
    signs = {
        f"Modules stay in train mode after model.eval(): {', '.join(training)}.": training,
        "The network computes gradients in its forward pass (a dynamic defence): AutoAttack does not attack that part, "
        "and an adaptive attack may break more.": dynamic,
        "The network is randomised: two passes of the same images differ. Attacks that do not average over the "
        'randomness overestimate robustness; use version="rand".': random and not randomness_expected,
        "An image's logits depend on the other images of its batch (BatchNorm without running statistics?), so the "
        "figures depend on the batch size.": not random and (alone[0] - alone[1]).norm() > _COMPANY,
        "It ran under autocast: small gradients may be rounded to zero.": torch.is_autocast_enabled(images.device.type),
    }
    return [sign for sign, found in signs.items() if found]


def is_dynamic(model: nn.Module, images: Tensor) -> bool:
    """Whether the network computes gradients in its own forward pass (test-time adaptation, purification)."""
    calls = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in (torch.autograd.grad.__code__, torch.autograd.backward.__code__):
            calls.append(frame.f_code)

    before = sys.getprofile()
    with torch.no_grad():
        model(images)  # a compiled network is compiled now, which may compute gradients too
        sys.setprofile(watch)
        try:
            model(images)
        finally:
            sys.setprofile(before)
    return bool(calls)


def clean_warnings(clean: Mapping[str, Tensor]) -> list[str]:
    """What is suspicious about the :func:`clean_statistics` of the images that are classified correctly."""
    margin = clean["zero_margin"][clean["correct"]]
    saturated = clean["zero_cross_entropy"][clean["correct"]] & ~margin
    blind = not clean["differentiable"].all()
    signs = {
        "The network's output has no gradient with respect to the image: only black-box attacks say something.": blind,
        f"The gradient of the logit margin is exactly zero for {_share(margin)}: attacks are blind there.": not blind
        and margin.any(),
        f"The gradient of the cross-entropy is exactly zero for {_share(saturated)} (saturated softmax): attacks on the "
        "cross-entropy are blind there.": saturated.any(),
        "The network's outputs look like probabilities (not negative, of sum 1). Attacks need the logits; a softmax "
        "hides gradients.": clean["probabilities"].all(),
    }
    return [sign for sign, found in signs.items() if found]


def _zero_gradient(gradient: Tensor | None, count: int) -> Tensor:
    if gradient is None:
        return torch.ones(count, dtype=torch.bool)
    return (gradient.flatten(1) == 0).all(1).cpu()


def _are_probabilities(rows: Tensor) -> Tensor:
    rounding = max(_PROBABILITY, torch.finfo(rows.dtype).eps)  # of each share, relatively
    return (rows >= -_PROBABILITY).all(1) & ((rows.float().sum(1) - 1).abs() <= rounding)


def _normalised(logits: Tensor) -> Tensor:
    return F.normalize(logits.float(), dim=1)


def _share(rows: Tensor) -> str:
    return f"{int(rows.sum())} of {len(rows)} correctly classified images"
