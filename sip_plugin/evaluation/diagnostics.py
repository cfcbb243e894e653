"""Signs that an evaluation overestimates robustness (Carlini et al. 2019, arXiv:1902.06705; AutoAttack's own flags)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
    """Classify a batch of clean images, and look at its logits and gradients.

    Returns:
        For each image, on the CPU: whether it is classified ``correct``-ly; the number of ``classes``; whether its logits
        are ``differentiable`` with respect to it; whether the gradients of the logit margin (``zero_margin``) and of the
        cross-entropy (``zero_cross_entropy``) are exactly zero; whether its logits look like ``probabilities``.

    Raises:
        TypeError: If the network gives no tensor.
        ValueError: If it gives no logits, NaN, or fewer classes than the labels need.
    """
    images = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = check_logits(model(images), len(images))
        check_not_nan(logits)
        check_classes(labels, logits)
        true = F.one_hot(labels, logits.shape[1]).bool()
        margin = logits[true] - logits.masked_fill(true, -torch.inf).amax(1)
        cross_entropy = F.cross_entropy(logits, labels, reduction="sum")
    rows, count = logits.detach(), len(images)
    return {
        "correct": (rows.argmax(1) == labels).cpu(),
        "classes": torch.full((count,), logits.shape[1]),
        "differentiable": torch.full((count,), logits.requires_grad),
        "zero_margin": _zero_gradient(margin.sum(), images),
        "zero_cross_entropy": _zero_gradient(cross_entropy, images),
        "probabilities": _are_probabilities(rows).cpu(),
    }


def check_not_nan(logits: Tensor) -> None:
    """Refuse logits of clean images that are NaN.

    Raises:
        ValueError: If any is.
    """
    if logits.detach().isnan().any():
        raise ValueError("The network gives NaN on clean images, so nothing can be said of its robustness.")


def network_warnings(model: nn.Module, images: Tensor, *, dynamic: bool, randomness_expected: bool) -> list[str]:
    """What is suspicious about a network in eval mode, from some images ``(N, C, H, W)`` on its device."""
    found = []
    if training := sorted({type(module).__name__ for module in model.modules() if module.training}):
        found.append(f"Modules stay in train mode after model.eval(): {', '.join(training)}.")
    if dynamic:
        found.append(
            "The network computes gradients in its forward pass (a dynamic defence): AutoAttack does not attack that part, "
            "and an adaptive attack may break more."
        )
    with torch.no_grad():
        first, second = model(images), model(images)
        pair = torch.cat([images[:1], 1 - images[:1]])
        alone = _normalised(model(pair))[0], _normalised(model(pair[[0, 0]]))[0]
    if differ(first, second):
        if not randomness_expected:
            found.append(
                "The network is randomised: two passes of the same images differ. Attacks that do not average over the "
                'randomness overestimate robustness; use version="rand".'
            )
    elif float((alone[0] - alone[1]).norm()) > _COMPANY:
        found.append(
            "An image's logits depend on the other images of its batch (BatchNorm without running statistics?), so the "
            "figures depend on the batch size."
        )
    if torch.is_autocast_enabled(images.device.type):
        found.append("The evaluation ran under autocast: gradients of small size may have been rounded to zero.")
    return found


def differ(first: Tensor, second: Tensor) -> bool:
    """Whether two passes of the same images, ``(N, classes)`` each, differ: the network is randomised."""
    return float((_normalised(first) - _normalised(second)).norm(dim=1).max()) > _DIFFERENT


def is_dynamic(model: nn.Module, images: Tensor) -> bool:
    """Whether the network computes gradients in its own forward pass (test-time adaptation, purification)."""
    calls = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event == "call" and frame.f_code in codes:
            calls += 1

    codes = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}
    before = sys.getprofile()
    with torch.no_grad():
        model(images)  # a compiled network is compiled now, which may compute gradients too
        sys.setprofile(watch)
        try:
            model(images)
        finally:
            sys.setprofile(before)
    return calls > 0


def clean_warnings(clean: Mapping[str, Tensor]) -> list[str]:
    """What is suspicious about the :func:`clean_statistics` of the images that are classified correctly."""
    margin = clean["zero_margin"][clean["correct"]]
    saturated = clean["zero_cross_entropy"][clean["correct"]] & ~margin
    found = []
    if not clean["differentiable"].all():
        found.append(
            "The network's output has no gradient with respect to the image: only black-box attacks say something."
        )
    elif margin.any():
        found.append(
            f"The gradient of the logit margin is exactly zero for {_share(margin)}: gradient-based attacks are blind there."
        )
    if saturated.any():
        found.append(
            f"The gradient of the cross-entropy is exactly zero for {_share(saturated)} (saturated softmax): attacks on the "
            "cross-entropy are blind there."
        )
    if clean["probabilities"].all():
        found.append(
            "The network's outputs look like probabilities (not negative, of sum 1). Attacks need the logits; a softmax "
            "hides gradients."
        )
    return found


def attack_warnings(
    radii: Sequence[float],
    *,
    images: int,
    outside: Mapping[str, int],
    nan: int,
    black_box: int,
    contradicted: Sequence[int],
) -> list[str]:
    """What became suspicious in the course of the attacks, from the number of images.

    Args:
        radii: The ε, ascending.
        images: All of them.
        outside: Examples that left the ball of their attack, by its name.
        nan: Images that an example of made the network give NaN.
        black_box: Images that Square broke after they had withstood the white-box attacks at the same ε.
        contradicted: Images that withstood every attack at each ε though an example found at another ε lies in the ball.
    """
    found = [
        f"{count} adversarial example(s) of {name} lay outside the ball they were asked for; they count only in larger "
        "balls that hold them."
        for name, count in outside.items()
    ]
    if nan:
        found.append(
            f"The network gave NaN for adversarial examples of {nan} of {images} images, which count as broken: it fails "
            "there, and attacks that follow its gradients may be blind."
        )
    if black_box > 0.002 * images:  # as in AutoAttack
        found.append(
            f"Square, a black-box attack, broke {black_box} of {images} images that had withstood the white-box attacks at "
            "the same eps: the network may mask its gradients, and stronger or adaptive attacks may break more."
        )
    return found + [
        f"{count} image(s) withstood every attack at eps = {radius:g}, though an example found at another eps lies in that "
        "ball; they count as broken. The attacks are weak there."
        for radius, count in zip(radii, contradicted, strict=True)
        if count
    ]


def larger_ball_warning(attack: str, radii: Sequence[float], probed: int, withstood: int) -> str:
    """What it means that an attack fails at a large ε where it succeeds at a small one."""
    return (
        f"Of {probed} images that {attack} broke at eps = {radii[0]:g}, {withstood} withstood the same attack at "
        f"eps = {radii[-1]:g}: the attack is unreliable on this network."
    )


def assumption_warning(attack: str, radii: Sequence[float], probed: int, broken: int) -> str:
    """What it means that images that were assumed to survive at the smallest ε do not."""
    return (
        f"Of {probed} images that survived eps = {radii[-1]:g} and were assumed to survive eps = {radii[0]:g}, {attack} "
        f"broke {broken} at that eps (they count as broken): assume_survivors does not hold for this network."
    )


def _zero_gradient(value: Tensor, images: Tensor) -> Tensor:
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, images, retain_graph=True, allow_unused=True)
    if gradient is None:
        return torch.ones(len(images), dtype=torch.bool)
    return (gradient.flatten(1) == 0).all(1).cpu()


def _are_probabilities(rows: Tensor) -> Tensor:
    rounding = max(_PROBABILITY, torch.finfo(rows.dtype).eps)  # of each share, relatively
    return (rows >= -_PROBABILITY).all(1) & ((rows.float().sum(1) - 1).abs() <= rounding)


def _normalised(logits: Tensor) -> Tensor:
    return F.normalize(logits.float(), dim=1)


def _share(rows: Tensor) -> str:
    return f"{int(rows.sum())} of {len(rows)} correctly classified images"
