"""``AdversarialTrainer``: the object that a training loop swaps in for its criterion."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sip_plugin.checks import Norm, check_eps, check_images, check_labels, check_steps
from sip_plugin.constraint import SalienceMap, as_salience_map, element_budget, feasible_set
from sip_plugin.salience_source import MaskSource, call_mask_source, check_mask_source
from sip_plugin.state import evaluating
from sip_plugin.training.methods import Method, as_method
from sip_plugin.training.search import maximise


class AdversarialTrainer:
    """An adversarial training method as a criterion: takes images and labels, gives the loss to minimise.

    The caller keeps the loop, the optimiser, the precision and the devices. The search for adversarial images runs with
    the network in eval mode and leaves no trace in it (modes, BatchNorm statistics, parameter gradients); the loss's own
    forward pass runs in the mode that the loop set.

    Args:
        model: The network in training, images to logits ``(N, classes)``.
        method: ``"standard"``, ``"madry"`` or ``"sip-at"``, or a :class:`~sip_plugin.training.Method` object.
        salience: Where maps come from: a callable ``(images, labels) -> map`` or ``(images) -> map``, or a map itself. A
            call may bring its own instead (``mask=``). Values between 0 and 1 are legal here: the budget is ``ε·(1 − M)``.
        eps: Radius of the ball, in units of images in ``[0, 1]``.
        alpha: Step size.
        steps: Steps of the search (K).
        norm: ``"Linf"`` or ``"L2"``; the defaults of ``eps`` and ``alpha`` are L∞'s.
        random_start: Start the search at a random point of the feasible set, not at the image.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a method is unknown or a number is out of range.

    Example:
        >>> criterion = AdversarialTrainer(model, "sip-at", salience=mask_fn)  # was nn.CrossEntropyLoss()
        >>> loss = criterion(images, labels)  # was criterion(model(images), labels)
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Method = "sip-at",
        *,
        salience: MaskSource = None,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        norm: Norm = "Linf",
        random_start: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        if norm not in get_args(Norm):
            raise ValueError(f'norm must be "Linf" or "L2", got {norm!r}.')
        self.model = model
        self.method = as_method(method)
        self.salience = check_mask_source(salience, "salience")
        self.eps = check_eps(eps, norm)
        self.alpha = check_eps(alpha, norm, name="alpha")
        self.steps = check_steps(steps)
        self.norm: Norm = norm
        self.random_start = random_start
        self.epoch = 0
        self.epochs: int | None = None

    def __call__(self, images: Tensor, labels: Tensor, mask: SalienceMap | None = None) -> Tensor:
        """The loss of a batch, with its graph.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``.
            mask: The batch's salience map, in place of ``salience``.

        Returns:
            A scalar.

        Raises:
            TypeError: If ``images``, ``labels`` or the map are of the wrong type.
            ValueError: If their shapes or values do not fit, or the method needs a map and there is none.
        """
        check_images(images)
        labels = check_labels(labels, images)
        return self.method.loss(self.model, images, self._search(images, labels, mask), labels)

    def perturb(self, images: Tensor, labels: Tensor, mask: SalienceMap | None = None) -> Tensor:
        """The adversarial images that the loss would use, ``(N, C, H, W)``, without a graph.

        Arguments and errors are those of a call. Works inside ``torch.no_grad()`` and ``torch.inference_mode()``.
        """
        check_images(images)
        adversarial = self._search(images, check_labels(labels, images), mask)
        # Without a search they are the caller's images, which must not be written to through the result.
        return adversarial.clone() if adversarial.data_ptr() == images.data_ptr() else adversarial

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Say which epoch begins (from 0), and of how many: drives a method's schedule.

        Raises:
            ValueError: If ``epoch`` is negative or not below ``epochs``.
        """
        if epoch < 0 or (epochs is not None and epoch >= epochs):
            raise ValueError(f"epoch counts from 0 to epochs - 1, got epoch={epoch}, epochs={epochs}.")
        self.epoch = epoch
        self.epochs = epochs if epochs is not None else self.epochs

    def __repr__(self) -> str:
        source = self.salience
        shown = f"map of shape {tuple(source.shape)}" if isinstance(source, (Tensor, np.ndarray)) else repr(source)
        return (
            f"AdversarialTrainer({type(self.model).__name__}, {self.method!r}, salience={shown}, eps={self.eps:.4g}, "
            f"alpha={self.alpha:.4g}, steps={self.steps}, norm={self.norm!r}, random_start={self.random_start})"
        )

    def _search(self, images: Tensor, labels: Tensor, mask: SalienceMap | None) -> Tensor:
        if not self.method.adversarial:
            return images.detach()
        # A caller may be inside inference_mode, whose tensors cannot take part in a gradient; copies of them can.
        with torch.inference_mode(False), torch.no_grad():
            images, labels = (t.clone() if t.is_inference() else t.detach() for t in (images, labels))
            budget = element_budget(images, self.eps, self._map(images, labels, mask))
            feasible = feasible_set(images, budget, self.norm)
            start = feasible.random_start() if self.random_start else images
            # The search must not wake DistributedDataParallel's reducer: it goes past it, to the network itself.
            network = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
            with evaluating(network):
                objective = self.method.objective(labels)
                return maximise(network, objective, start, feasible, alpha=self.alpha, steps=self.steps)

    def _map(self, images: Tensor, labels: Tensor, mask: SalienceMap | None) -> Tensor | None:
        source = self.salience if mask is None else mask
        if source is not None:
            return as_salience_map(call_mask_source(source, images, labels), images, soft=True)
        if self.method.needs_salience:
            raise ValueError(
                f"{self.method.name!r} needs a salience map: AdversarialTrainer(..., salience=mask_fn), or mask=... with "
                "the call. Without one it would be plain Madry training."
            )
        return None
