"""Foolbox 3.3: the wrapper is a ``foolbox.attacks.base.Attack`` and is called with a model, like one."""

from __future__ import annotations

import functools
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

from sip_plugin.adapters.base import SalienceAttack, patched_attribute, project_result
from sip_plugin.adapters.projection import BatchProjection, salience_rows, warn_if_not_queried
from sip_plugin.adapters.specs import FOOLBOX
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap, project
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state

_PER_IMAGE = ("starting_points",)  # arguments of a call that hold one row for each image


class SalienceFoolboxAttack(SalienceAttack, Attack):  # type: ignore[misc]
    """An attack of Foolbox whose every step leaves salient elements alone."""

    def __init__(self, attack: Attack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        FOOLBOX.check_supported(attack)
        for inner in _inner_attacks(attack):
            adapter_of(inner)(inner)  # refuses what may not be part of it either
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
            TypeError: If inputs or map are of the wrong type.
            ValueError: If their shapes or values do not fit.
        """

        call = functools.partial(self.wrapped, epsilons=epsilons)
        return self._around(call, model, inputs, criterion, mask, epsilons, kwargs)

    def repeat(self, times: int) -> Any:
        """Foolbox's ``repeat``: the best of several runs with the same map."""
        repeated = self.wrapped.repeat(times)
        return adapter_of(repeated)(repeated, self.mask_fn, one_by_one=self.one_by_one)

    def _run(self, model: Model, inputs: Any, criterion: Any, kwargs: dict[str, Any]) -> Any:
        """What an attack of which this one finds the starting points calls."""

        # Looked up when it is called: it is replaced for the length of the call.
        return self._around(
            lambda *args, **options: self.wrapped.run(*args, **options), model, inputs, criterion, None, None, kwargs
        )

    def _around(
        self,
        call: Callable[..., Any],
        model: Model,
        inputs: Any,
        criterion: Any,
        mask: SalienceMap | None,
        epsilons: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        images, restore = _images(inputs)
        if not isinstance(model, Model):
            raise TypeError(f"model must be a Foolbox model (foolbox.PyTorchModel), got {type(model).__name__}.")
        with self._lock, preserve_model_state(_network(model)):
            _check_bounds(images, model)
            plain = _in_unit_range(images, model)
            criterion = get_criterion(criterion.raw if isinstance(criterion, ep.Tensor) else criterion)
            salience = self.salience(plain, _labels(criterion, plain), mask)

            def run(alone: bool) -> Any:
                rows = self._rows(images, criterion, salience, alone)
                if rows is None:
                    return self._attack_images(call, model, images, criterion, salience, kwargs)
                outcomes = []
                for part in rows:
                    maps = salience_rows(salience, part)
                    some = _some(criterion, part)
                    if bool(maps.all()):
                        outcomes.append(_unchanged(model, images[part], some, epsilons))
                    else:
                        own = {name: _rows_of(given, part) for name, given in kwargs.items() if name in _PER_IMAGE}
                        outcomes.append(self._attack_images(call, model, images[part], some, maps, {**kwargs, **own}))
                return _in_order(outcomes, torch.cat(rows).argsort())

            return _each(self._alone_if_need_be(run, salience), restore)

    def _rows(self, images: Tensor, criterion: Criterion, salience: Tensor, alone: bool) -> list[Tensor] | None:
        """The parts in which the batch is attacked, None for all at once."""
        everything = torch.arange(len(images), device=images.device)
        if alone:
            _check_splits(criterion, "one_by_one")
            return list(everything.split(1))
        full = salience.expand(len(images), -1, -1, -1).flatten(1).all(1)
        innermost = self.wrapped
        while isinstance(innermost, Repeated):
            innermost = innermost.attack
        if not FOOLBOX.spec_for(innermost).searches_start or not bool(full.any()):
            return None
        _check_splits(criterion, "a map that marks all of an image")
        return [part for part in (everything[full], everything[~full]) if len(part)]

    def _attack_images(
        self,
        call: Callable[..., Any],
        model: Model,
        images: Tensor,
        criterion: Criterion,
        salience: Tensor,
        kwargs: dict[str, Any],
    ) -> Any:
        projection = BatchProjection(images, salience)
        projected = ProjectedFoolboxModel(model, projection)
        with _runs_projected(self.wrapped, projection):
            outcome = call(projected, images.clone(), criterion, **kwargs)
        result = _each(outcome, lambda found: _selected(found, images, salience))
        if FOOLBOX.registered_name(self.wrapped) is None and not isinstance(self.wrapped, Repeated):
            changed = result if isinstance(result, Tensor) else result[0]
            first = changed if isinstance(changed, Tensor) else changed[0]
            warn_if_not_queried(self.wrapped, projected, torch.equal(first, images))
        return result


class SalienceAttackWithDistance(SalienceFoolboxAttack, AttackWithDistance):  # type: ignore[misc]
    """An attack that measures a distance."""

    repeat = SalienceFoolboxAttack.repeat

    @property
    def distance(self) -> Any:
        """The wrapped attack's own."""
        return self.wrapped.distance


class SalienceMinimizationAttack(SalienceAttackWithDistance, MinimizationAttack):  # type: ignore[misc]
    """An attack that looks for the smallest perturbation; it also finds starting points for other attacks."""

    __call__ = SalienceFoolboxAttack.__call__

    def run(self, model: Model, inputs: Any, criterion: Any, **kwargs: Any) -> Any:
        """Foolbox's own: adversarial images, which equal the clean ones on salient elements."""
        return self._run(model, inputs, criterion, kwargs)


class SalienceFixedEpsilonAttack(SalienceAttackWithDistance, FixedEpsilonAttack):  # type: ignore[misc]
    """An attack within a budget."""

    __call__ = SalienceFoolboxAttack.__call__

    def run(self, model: Model, inputs: Any, criterion: Any, **kwargs: Any) -> Any:
        """Foolbox's own: adversarial images, which equal the clean ones on salient elements."""
        return self._run(model, inputs, criterion, kwargs)


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
        queries = inputs.raw if isinstance(inputs, ep.Tensor) else inputs
        projected = self.projection(queries).to(self.projection.images.dtype)
        return self.model(ep.astensor(projected) if isinstance(inputs, ep.Tensor) else projected)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)


def adapter_of(attack: Attack) -> type[SalienceFoolboxAttack]:
    """The wrapper's class for an attack, of the same of Foolbox's kinds."""
    if isinstance(attack, MinimizationAttack):
        return SalienceMinimizationAttack
    if isinstance(attack, FixedEpsilonAttack):
        return SalienceFixedEpsilonAttack
    return SalienceAttackWithDistance if isinstance(attack, AttackWithDistance) else SalienceFoolboxAttack


@contextmanager
def _runs_projected(attack: Attack, projection: BatchProjection) -> Iterator[None]:
    """Project random starts and what ``run`` gives, of an attack and those it is built upon, for the length of a block.

    Foolbox cuts what ``run`` gives to the budget afterwards: salient elements must not count there.
    """
    with ExitStack() as stack:
        for holder in (attack, *_inner_attacks(attack)):
            if isinstance(holder, SalienceFoolboxAttack):
                continue  # sees to itself
            for name in ("run", FOOLBOX.spec_for(holder).start):
                if hasattr(holder, name):
                    projected = _with_projected_result(holder, getattr(holder, name), projection)
                    stack.enter_context(patched_attribute(holder, name, projected))
        yield


def _with_projected_result(
    attack: Attack, function: Callable[..., Any], projection: BatchProjection
) -> Callable[..., Any]:
    def projected(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        raw = result.raw if isinstance(result, ep.Tensor) else result
        raw = project_result(attack, raw, projection.images, projection.salience)
        return ep.astensor(raw) if isinstance(result, ep.Tensor) else raw

    return projected


def _inner_attacks(attack: Attack) -> list[Attack]:
    """The attacks that an attack is built upon, to any depth."""
    inner = [held for held in vars(attack).values() if isinstance(held, Attack)]
    return inner + [
        deeper for one in inner if not isinstance(one, SalienceFoolboxAttack) for deeper in _inner_attacks(one)
    ]


# --- inputs and outputs -------------------------------------------------------------------------------------------------


def _images(inputs: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Inputs as a tensor, and what makes a result of the same type."""
    if isinstance(inputs, ep.PyTorchTensor):
        return inputs.raw.detach(), ep.astensor
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor of images (N, C, H, W), got {type(inputs).__name__}.")
    return inputs.detach(), lambda result: result


def _network(model: Any) -> nn.Module | None:
    """The network of a Foolbox model, which it keeps in a function's closure."""
    while (held := getattr(model, "_model", None)) is not None:
        model = held
    cells = (cell.cell_contents for cell in getattr(model, "__closure__", None) or ())
    return next((held for held in (model, *cells) if isinstance(held, nn.Module)), None)


def _in_unit_range(images: Tensor, model: Model) -> Tensor:
    """Images scaled from the model's bounds to ``[0, 1]``, as maps are made of."""
    low, high = model.bounds
    return images if (low, high) == (0, 1) else ((images - low) / (high - low)).clamp(0, 1)


def _check_bounds(images: Tensor, model: Model) -> None:
    low, high = model.bounds
    check_images(images.clamp(0, 1), name="inputs")  # all but the range, which is the model's (a clamp keeps NaN)
    smallest, largest = (value.item() for value in images.aminmax())
    if smallest < low or largest > high:
        raise ValueError(
            f"inputs must lie within the model's bounds ({low}, {high}), got values from {smallest:g} to {largest:g}. Scale "
            "them, or give the model their bounds; normalise by its preprocessing."
        )


def _labels(criterion: Criterion, images: Tensor) -> Tensor | None:
    """The class indices of the images, where the criterion holds them; checked, as target classes are."""
    if isinstance(criterion, Misclassification):
        return check_labels(criterion.labels.raw, images, name="the criterion's labels")
    if isinstance(criterion, TargetedMisclassification):
        check_labels(criterion.target_classes.raw, images, name="the criterion's target classes")
    return None


def _check_splits(criterion: Criterion, what: str) -> None:
    if not isinstance(criterion, (Misclassification, TargetedMisclassification)):
        raise TypeError(
            f"{what} needs the criterion to be cut to some of the images, which only Misclassification (or class "
            f"indices) and TargetedMisclassification can be, got {type(criterion).__name__}."
        )


def _some(criterion: Criterion, rows: Tensor) -> Criterion:
    """The criterion for some of the images."""
    if isinstance(criterion, Misclassification):
        return Misclassification(criterion.labels.raw[rows])
    return TargetedMisclassification(criterion.target_classes.raw[rows])


def _rows_of(given: Any, rows: Tensor) -> Any:
    return None if given is None else ep.astensor(given).raw[rows]


def _unchanged(model: Model, images: Tensor, criterion: Criterion, epsilons: Any) -> Any:
    """What an attack gives for images of which nothing may change."""
    success = criterion(images, model(images))
    if not isinstance(epsilons, Iterable):  # Foolbox's own rule
        return images, images, success
    epsilons = list(epsilons)
    return [images] * len(epsilons), [images] * len(epsilons), success.expand(len(epsilons), -1)


def _each(outcome: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each tensor of an outcome."""
    if isinstance(outcome, (list, tuple)):
        return type(outcome)(_each(part, function) for part in outcome)
    return function(outcome)


def _in_order(outcomes: list[Any], order: Tensor) -> Any:
    """The outcomes for parts of the batch as one for all of it."""
    first = outcomes[0]
    if isinstance(first, (list, tuple)):
        return type(first)(_in_order(list(parts), order) for parts in zip(*outcomes, strict=True))
    joined = torch.cat(outcomes, dim=-1 if first.dim() < 4 else 0)
    return joined[..., order] if first.dim() < 4 else joined[order]


def _selected(found: Tensor, images: Tensor, salience: Tensor) -> Tensor:
    """Images with the clean values on salient elements; whether they succeed, as it is."""
    return project(found, images, salience) if found.shape == images.shape else found
