"""The training methods: each a small class that says only in what it differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sip_plugin.cam import CAM, KINDS, Reshape, class_activation_maps
from sip_plugin.checks import check_choice, check_eps, check_int, check_logits
from sip_plugin.constraint import FeasibleSet
from sip_plugin.training.method import Method, TrainingProgress

_Schedule = Callable[[float], int | None]


class Standard(Method):
    """Cross-entropy on the clean images: no adversary, so no map is asked for either."""

    name = "standard"
    adversarial = False
    takes_attack = False

    def loss(self, network: Callable[[Tensor], Any], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy on the clean images."""
        return F.cross_entropy(check_logits(network(images), len(labels)), labels)


class Madry(Method):
    """Adversarial training with projected gradient descent (Madry et al. 2018).

    With a salience map it is SIP-AT; without, every element has the budget ε. ``K + 1`` forward passes.
    """

    name = "madry"


class SIPAT(Method):
    """Salient Information Preserving Adversarial Training (eq. 6 and 9): Madry with the budget ``ε·(1 − M)``."""

    name = "sip-at"
    needs_salience = True


class _KLMethod(Method):
    """A loss with a KL term of the weight ``beta``, and a search from ``x + 0.001·N(0, 1)``."""

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = check_eps(beta, "L2", name="beta")

    def start(self, feasible: FeasibleSet) -> Tensor:
        """A normally distributed step of about 0.001 per element, inside the set: salient elements stay."""
        images = feasible.images
        return feasible.project(images.add(torch.randn_like(images), alpha=0.001))


class TRADES(_KLMethod):
    """The trade-off of accuracy and robustness (Zhang et al. 2019, eq. 5): ``CE(f(x), y) + β·KL(f(x) ‖ f(x'))``.

    The search maximises the KL term from ``x + 0.001·N(0, 1)``; the distribution at ``x`` is computed once, where the
    public code does so at each step. ``1 + K + 2`` forward passes (published: ``2K + 3``).

    Args:
        beta: Weight of the KL term (``1/λ`` in the paper).

    Raises:
        ValueError: If ``beta`` is negative or not finite.
    """

    name = "trades"
    needs_random_start = True  # at the image itself the gradient of the KL term is zero

    def target(self, network: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        """The logarithms of the probabilities at the clean images."""
        return F.log_softmax(_float_logits(network(images), labels), 1)

    def objective(self, target: Tensor) -> Callable[[Any], Tensor]:
        """The KL divergence from the clean distribution, summed."""
        return lambda logits: _kl(_float_logits(logits, target), target)

    def loss(self, network: Callable[[Tensor], Any], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Both terms have a gradient through the clean images' pass, as in the public code."""
        clean, attacked = (_float_logits(network(x), labels) for x in (images, adversarial))
        divergence = _kl(attacked, F.log_softmax(clean, 1)) / len(labels)
        return F.cross_entropy(clean, labels) + self.beta * divergence


class MART(_KLMethod):
    """Misclassification-aware adversarial training (Wang et al. 2020, eq. 11).

    ``BCE(x') + β·mean(KL(f(x) ‖ f(x'))·(1 − p_y(x)))`` with ``BCE = −log p_y(x') − log(1 − max_{k≠y} p_k(x'))`` and the
    small constants of the public code. The search is Madry's from ``x + 0.001·N(0, 1)``. ``K + 2`` forward passes.

    Args:
        beta: Weight of the KL term (λ in the paper).

    Raises:
        ValueError: If ``beta`` is negative or not finite.
    """

    name = "mart"

    def loss(self, network: Callable[[Tensor], Any], images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
        """Images that the network gets wrong anyway count more in the KL term."""
        clean, attacked = (_float_logits(network(x), labels) for x in (images, adversarial))
        p_clean, p_attacked = F.softmax(clean, 1), F.softmax(attacked, 1)
        of_label = labels[:, None]
        runner_up = p_attacked.scatter(1, of_label, 0).max(1).values
        boosted = F.cross_entropy(attacked, labels) - torch.log(1.0001 - runner_up + 1e-12).mean()
        divergence = F.kl_div(torch.log(p_attacked + 1e-12), p_clean, reduction="none").sum(1)
        doubt = 1.0000001 - p_clean.gather(1, of_label).squeeze(1)
        return boosted + self.beta * (divergence * doubt).mean()


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    """The summed KL divergence of the logits' distributions from the one whose logarithms are the target."""
    return F.kl_div(F.log_softmax(logits, 1), target, reduction="sum", log_target=True)


def _float_logits(output: Any, rows: Tensor) -> Tensor:
    """Logits in at least float32 (autocast leaves the softmax of a CPU in bfloat16), one for each of ``rows``."""
    logits = check_logits(output, len(rows))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Rising(tuple[int | None, ...]):
    def __call__(self, share: float) -> int | None:
        return self[min(int(share * len(self)), len(self) - 1)]

    def __repr__(self) -> str:
        return f"rising({', '.join(map(repr, self))})"


def rising(first: int | None, *later: int | None) -> _Schedule:
    """A schedule for ``FAT(tau=…)``: each value over an equal part of training, None for the full search.

    ``rising(0, 1, 3, None)`` gives 0 in the first quarter of the epochs, then 1, then 3, and the full search in the last.

    Raises:
        ValueError: If a value is neither None nor an integer from 0.
    """
    return _Rising(tuple(tau if tau is None else check_int(tau, "tau", 0) for tau in (first, *later)))


class FAT(Method):
    """Friendly adversarial training (Zhang et al. 2020, Algorithm 1): the search stops soon after it succeeds.

    An image is done at its ``τ + 1``-th misclassification and leaves the batch, so the search costs at most the sum over
    the images of the steps they use, in forward passes, and the loss one more (published: the same, with gradients of the
    parameters at each step, which are not used).

    Args:
        tau: Misclassifications after which an image still goes on (τ). None for the published schedule: 0, from 50/120 of
            the epochs on 1, from 90/120 on 2. Or a callable, such as :func:`rising`, from the share of training that is
            done (below 1) to τ, or to None for the full search. A schedule needs ``trainer.set_epoch(epoch, epochs)``.
        omega: Standard deviation of the normal noise that each step adds (ω).
        random_start: Start uniformly in the budget, not at the image.

    Raises:
        ValueError: If ``tau``, or what a schedule gives, is not an integer, or a number is negative.
    """

    name = "fat"
    takes_attack = False

    def __init__(self, tau: int | _Schedule | None = None, omega: float = 0.001, random_start: bool = True) -> None:
        self.tau = tau if tau is None or callable(tau) else check_int(tau, "tau", 0)
        self.omega = check_eps(omega, "L2", name="omega")
        self.random_start = random_start

    @property
    def step_noise(self) -> float:  # type: ignore[override]
        """ω."""
        return self.omega

    def start(self, feasible: FeasibleSet) -> Tensor:
        """Uniform in the budget, or the image."""
        return feasible.random_start() if self.random_start else feasible.images

    def patience(self, progress: TrainingProgress) -> int | None:
        """τ, given or by the schedule."""
        if isinstance(self.tau, int):
            return self.tau
        share = progress.fraction(self)
        tau = int(share >= 50 / 120) + int(share >= 90 / 120) if self.tau is None else self.tau(share)
        return None if tau is None else check_int(tau, "tau", 0)


class PART(Method):
    """Pixel-reweighted adversarial training (Zhang et al. 2024): a smaller budget where a pixel matters little.

    The class activation map of the network as it is now, for the class that it predicts, is standardised per image; where
    it is above 1 the budget is ε, elsewhere ``eps_low``. Maps are made for the very images of the batch, so they cannot
    go out of step with shuffling and augmentation. ``K + 1`` forward passes and one for the maps of the batch, with a
    backward pass down to the layer (published: one image at a time, once per epoch, and by way of an 8-bit colour picture of
    the map, which is left out here).

    Args:
        cam: ``"gradcam"``, ``"xgradcam"`` or ``"layercam"``.
        eps_low: Budget of unimportant pixels, in the trainer's norm; ε if that is smaller.
        warmup: Share of the epochs, from the first, that are trained as Madry; unless it is 0, it needs
            ``trainer.set_epoch(epoch, epochs)``.
        layer: Name of the module whose output the maps are made from; None for the last stage.
        reshape: From that module's output to ``(N, K, h, w)``; as in :class:`~sip_plugin.salience.CAMSalience`.

    Raises:
        ValueError: If ``cam`` is unknown or a number is out of range.
    """

    name = "part"
    takes_attack = False
    reshape: Reshape | None = None

    def __init__(
        self,
        cam: CAM = "gradcam",
        eps_low: float = 7 / 255,
        warmup: float = 0.25,
        layer: str | None = None,
        reshape: Reshape | None = None,
    ) -> None:
        check_choice("cam", cam, *KINDS)
        self.cam: CAM = cam
        self.eps_low = check_eps(eps_low, "L2", name="eps_low")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a share of the epochs, from 0 to 1, got {warmup!r}.")
        self.warmup = float(warmup)
        self.layer = layer
        if reshape is not None:  # states of trainers without it say nothing of it
            self.reshape = reshape

    def budget(self, network: nn.Module, images: Tensor, eps: float, progress: TrainingProgress) -> Tensor | None:
        """ε on important pixels and ``eps_low`` on the others, ``(N, 1, H, W)``."""
        if self.warmup and progress.fraction(self) < self.warmup:
            return None
        maps = class_activation_maps(network, images, self.cam, self.layer, reshape=self.reshape)
        # (map − mean) / std > 1 without the division: a constant map has no important pixel.
        std, mean = torch.std_mean(maps, (1, 2, 3), correction=0, keepdim=True)
        return torch.where(maps - mean > std, images.new_full((), eps), images.new_full((), self.eps_low))


METHODS: dict[str, type[Method]] = {method.name: method for method in (Standard, Madry, TRADES, FAT, PART, MART, SIPAT)}
"""The methods by name."""


def as_method(method: str | Method) -> Method:
    """A method object from its name, or itself.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(f"method must be a Method object or one of {', '.join(METHODS)}, got {method!r}.")
    return METHODS[method]()
