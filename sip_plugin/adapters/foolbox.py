"""Foolbox 3.3: the wrapper is a ``foolbox.attacks.base.Attack`` and is called with a model, like one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

try:
    import eagerpy as ep
    from foolbox.attacks.base import (
        Attack,
        AttackWithDistance,
        FixedEpsilonAttack,
        MinimizationAttack,
        Repeated,
        get_criterion,
    )
    from foolbox.criteria import Criterion, Misclassification, TargetedMisclassification
    from foolbox.models.base import Model
except ImportError as error:
    raise ImportError("Foolbox is not installed: pip install 'sip-plugin[foolbox]'") from error

from sip_plugin.adapters.base import Batch, SalienceAttack, attacks_in, call_lock, delegate, map_tensors, project_result
from sip_plugin.adapters.projection import BatchProjection, warn_if_not_queried
from sip_plugin.adapters.specs import FOOLBOX
from sip_plugin.checks import check_images
from sip_plugin.constraint import SalienceMap, project
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state
from sip_plugin.utils import patched_attribute


class SalienceFoolboxAttack(SalienceAttack, Attack):  # type: ignore[misc]
    """An attack of Foolbox whose every step leaves salient elements alone."""

    def __init__(self, attack: Attack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        FOOLBOX.check_supported(attack)
        for inner in attacks_in(attack, Attack):
            FOOLBOX.check_supported(inner)
        super().__init__(attack, mask_fn, one_by_one=one_by_one)

    def __call__(
        self,
        model: Model,
        inputs: Any,
        criterion: Any,
        *,
        epsilons: Any,
        mask: SalienceMap | None = None,
        **kwargs: Any,
    ) -> Any:
        """Foolbox's own call; images in it equal the clean ones on salient elements.

        Args:
            model: A ``PyTorchModel``, or a Foolbox model around one.
            inputs: Images ``(N, C, H, W)`` within the model's bounds, a PyTorch tensor (or EagerPy's of one).
            criterion: Class indices ``(N,)``, or a criterion.
            epsilons: One budget or several, or None where the attack minimises.
            mask: The map for this call, in place of ``mask_fn``, which sees the images scaled to ``[0, 1]``, and labels
                where the criterion holds any (misclassification).
            **kwargs: The attack's own further arguments.

        Returns:
            Raw and clipped adversarial images and whether each succeeds, as Foolbox returns them: the clipped images are the
            raw ones, salience preserved, cut to the budget; success is the network's verdict on them.

        Raises:
            TypeError: If the map is of the wrong type.
            ValueError: If shapes or values do not fit. Foolbox itself raises an ``AssertionError`` for inputs outside the
                model's bounds.
        """
        epsilons = list(epsilons) if isinstance(epsilons, Iterable) else epsilons

        def call(*args: Any, **options: Any) -> Any:
            return self.wrapped(*args, epsilons=epsilons, **options)

        def unchanged(batch: Batch, projected: Model) -> Any:
            success = batch.labels(batch.images, projected(batch.images))
            if not isinstance(epsilons, list):
                return batch.images, batch.images, success
            count = len(epsilons)
            return [batch.images] * count, [batch.images] * count, success.expand(count, -1)

        return self._around(call, unchanged, model, inputs, criterion, mask, kwargs)

    def run(self, model: Model, inputs: Any, criterion: Any, **kwargs: Any) -> Any:
        """Foolbox's own, by which one attack finds the starting points of another: images, salience preserved."""

        def call(*args: Any, **options: Any) -> Any:
            return self.wrapped.run(*args, **options)  # looked up now: it is replaced for the length of the call

        return self._around(call, lambda batch, _: batch.images, model, inputs, criterion, None, kwargs)

    def repeat(self, times: int) -> Any:
        """Foolbox's ``repeat``: the best of several runs with the same map."""
        repeated = self.wrapped.repeat(times)
        return adapter_of(repeated)(repeated, self.mask_fn, one_by_one=self.one_by_one)

    def _around(
        self,
        call: Callable[..., Any],
        unchanged: Callable[[Batch, Model], Any],
        model: Model,
        inputs: Any,
        criterion: Any,
        mask: SalienceMap | None,
        kwargs: dict[str, Any],
    ) -> Any:
        x, restore = ep.astensor_(inputs)
        images = x.raw.detach()
        check_images(images.clamp(0, 1), name="inputs")  # all but the range, which is the model's
        low, high = model.bounds
        plain = ((images - low) / (high - low)).clamp(0, 1)
        criterion = get_criterion(criterion.raw if isinstance(criterion, ep.Tensor) else criterion)
        labels = criterion.labels.raw if isinstance(criterion, Misclassification) else None
        if labels is not None:
            labels = labels.long() if labels.shape == images.shape[:1] else None  # of others Foolbox says what is wrong
        with self._lock, preserve_model_state(_network(model)):
            batch = Batch(images, criterion, self.salience(plain, labels, mask), kwargs=kwargs)
            everything = torch.arange(len(images), device=images.device)
            full = batch.salience.expand(len(images), -1, -1, -1).flatten(1).all(1)
            innermost = self.wrapped.attack if isinstance(self.wrapped, Repeated) else self.wrapped
            apart = FOOLBOX.spec_for(innermost).searches_start and bool(full.any())

            def run(alone: bool) -> Any:
                if not alone and not apart:
                    return self._attack_batch(call, model, batch)
                rows = everything.split(1) if alone else (everything[full], everything[~full])
                parts = [_take(batch, some) for some in rows if len(some)]
                outcomes = [
                    unchanged(part, model) if bool(part.salience.all()) else self._attack_batch(call, model, part)
                    for part in parts
                ]
                order = torch.cat(rows).argsort()

                def in_order(*found: Tensor) -> Tensor:
                    dim = 0 if found[0].dim() == 4 else -1  # images, or whether they succeed
                    return torch.cat(found, dim).index_select(dim, order)

                return map_tensors(in_order, *outcomes)

            outcome = self._alone_if_need_be(run, batch.salience)
        return map_tensors(lambda found: restore(ep.astensor(found)), outcome)

    def _attack_batch(self, call: Callable[..., Any], model: Model, batch: Batch) -> Any:
        images, salience = batch.images, batch.salience
        projection = BatchProjection(images, salience)
        projected = ProjectedFoolboxModel(model, projection)
        same = []

        def selected(found: Tensor) -> Tensor:
            if found.shape != images.shape:
                return found  # whether the images succeed
            found = project(found, images, salience)
            same.append(torch.equal(found, images))
            return found

        try:
            with _runs_projected(self.wrapped, projection):
                outcome = call(projected, images.clone(), batch.labels, **batch.kwargs)
        except AssertionError as error:
            if error.args or not batch.marked or batch.kwargs.get("starting_points") is None:
                raise
            raise ValueError(
                f"{type(self.wrapped).__name__} needs starting points that are adversarial also with the clean values on "
                "salient elements, and some are not: find them with the same map (init_attack=SIPWrapper(..., mask_fn))."
            ) from error
        result = map_tensors(selected, outcome)
        if FOOLBOX.registered_name(self.wrapped) is None and not isinstance(self.wrapped, Repeated):
            warn_if_not_queried(self.wrapped, projected.queried, all(same))
        return result


delegate(SalienceFoolboxAttack, ["distance"])


class SalienceAttackWithDistance(SalienceFoolboxAttack, AttackWithDistance):  # type: ignore[misc]
    """An attack that measures a distance."""


class SalienceMinimizationAttack(SalienceFoolboxAttack, MinimizationAttack):  # type: ignore[misc]
    """An attack that looks for the smallest perturbation; it also finds starting points for other attacks."""


class SalienceFixedEpsilonAttack(SalienceFoolboxAttack, FixedEpsilonAttack):  # type: ignore[misc]
    """An attack within a budget."""


def adapter_of(attack: Attack) -> type[SalienceFoolboxAttack]:
    """The wrapper's class for an attack, of the same of Foolbox's kinds."""
    if isinstance(attack, MinimizationAttack):
        return SalienceMinimizationAttack
    if isinstance(attack, FixedEpsilonAttack):
        return SalienceFixedEpsilonAttack
    return SalienceAttackWithDistance if isinstance(attack, AttackWithDistance) else SalienceFoolboxAttack


class ProjectedFoolboxModel(Model):  # type: ignore[misc]
    """``f∘P_x`` in the attack's own space: before any preprocessing of the model."""

    def __init__(self, model: Model, projection: BatchProjection) -> None:
        self.model = model
        self.projection = projection
        self.queried = False

    @property
    def bounds(self) -> Any:
        """The model's own."""
        return self.model.bounds

    def __call__(self, inputs: Any) -> Any:
        """The model's output at the projected queries."""
        self.queried = True
        queries, restore = ep.astensor_(inputs)
        projected = self.projection(queries.raw).to(self.projection.images.dtype)
        return self.model(restore(ep.astensor(projected)))

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)


@contextmanager
def _runs_projected(attack: Attack, projection: BatchProjection) -> Iterator[None]:
    """Project an attack's random starts, and its results before Foolbox cuts them to a budget; its inner attacks', too."""

    def projecting(holder: Attack, function: Callable[..., Any]) -> Callable[..., Any]:
        def projected(*args: Any, **kwargs: Any) -> Any:
            result, restore = ep.astensor_(function(*args, **kwargs))
            return restore(ep.astensor(project_result(holder, result.raw, projection.images, projection.salience)))

        return projected

    with ExitStack() as stack:
        for holder in (attack, *attacks_in(attack, Attack)):
            stack.enter_context(call_lock(holder))  # others may be built upon the same one
            names = () if isinstance(holder, SalienceFoolboxAttack) else ("run", FOOLBOX.spec_for(holder).start)
            for name in names:  # a wrapped one sees to itself
                if hasattr(holder, name):
                    stack.enter_context(patched_attribute(holder, name, projecting(holder, getattr(holder, name))))
        yield


def _network(model: Any) -> nn.Module | None:
    """The network of a Foolbox model, which it keeps in a function's closure."""
    while (held := getattr(model, "_model", None)) is not None:
        model = held
    cells = (cell.cell_contents for cell in getattr(model, "__closure__", None) or ())
    return next((held for held in (model, *cells) if isinstance(held, nn.Module)), None)


def _take(batch: Batch, rows: Tensor) -> Batch:
    """Some of the images, with the criterion for them."""
    criterion: Criterion = batch.labels
    if isinstance(criterion, Misclassification):
        criterion = Misclassification(criterion.labels.raw[rows])
    elif isinstance(criterion, TargetedMisclassification):
        criterion = TargetedMisclassification(criterion.target_classes.raw[rows])
    else:
        raise TypeError(
            "With one_by_one, or a map that marks all of an image, the criterion must be Misclassification (or class "
            f"indices) or TargetedMisclassification, which can be cut to some of the images, got {type(criterion).__name__}."
        )
    return dataclasses.replace(dataclasses.replace(batch, labels=None).take(rows), labels=criterion)
