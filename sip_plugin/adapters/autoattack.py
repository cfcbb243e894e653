"""AutoAttack: the packaged ``pyautoattack`` and the original ``autoattack``, which share one interface."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sip_plugin.adapters.base import (
    SalienceAttack,
    call_lock,
    check_ball,
    one_map_if_empty,
    project_result,
    split_batch,
)
from sip_plugin.adapters.composite import MemberProxy
from sip_plugin.adapters.projection import (
    BatchProjection,
    IterateProjection,
    Mechanism,
    ProjectedModel,
    RowSelections,
    model_replaced,
    plain_tensor,
    salience_rows,
    watched,
)
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap, project
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state

MEMBERS: dict[str, Mechanism] = {
    "apgd": Mechanism.ITERATE,  # a random start on salient elements would eat an L1 or L2 budget
    "apgd_targeted": Mechanism.ITERATE,
    "fab": Mechanism.QUERY,
    "square": Mechanism.QUERY,
}
"""AutoAttack's attributes that hold its attacks, and how each is projected."""

_BATCH = 250  # AutoAttack's own default


def is_autoattack(attack: Any) -> bool:
    """Whether an object has AutoAttack's interface, from whichever package or copy of it."""
    return all(hasattr(attack, name) for name in ("run_standard_evaluation", "model", *MEMBERS))


@functools.cache
def adapter(kind: type) -> type[SalienceAutoAttack]:
    """The wrapper's class for AutoAttack's class, of which it is a subclass."""
    return type(f"Salience{kind.__name__}", (SalienceAutoAttack, kind), {"__module__": __name__})


class SalienceAutoAttack(SalienceAttack):
    """An AutoAttack whose every step leaves salient elements alone.

    Queries outside its attacks (checks, clean accuracy, whether an attack succeeded) see images that are clean or projected
    already, and go to the network as they are.
    """

    def __reduce__(self) -> Any:
        # The class is made for the attack's, so pickle cannot find it by its name.
        return functools.partial(_rebuild, one_by_one=self.one_by_one), (self.wrapped, self.mask_fn)

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, *args: Any, mask: SalienceMap | None = None, **kwargs: Any
    ) -> Any:
        """AutoAttack's own call; what it returns equals the clean images on salient elements.

        Args:
            x_orig: ``(N, C, H, W)`` in ``[0, 1]``.
            y_orig: Class indices ``(N,)``.
            *args: The package's own further arguments.
            mask: The map for this call, in place of ``mask_fn``, which is asked for a batch at a time.
            **kwargs: The package's own further arguments (``batch_size`` or ``bs``, ``state_path``, ...).

        Returns:
            What the package returns.

        Raises:
            TypeError: If images, labels or the map are of the wrong type.
            ValueError: If their shapes or values do not fit.
        """
        return self._evaluate("run_standard_evaluation", x_orig, y_orig, mask, args, kwargs)

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, *args: Any, mask: SalienceMap | None = None, **kwargs: Any
    ) -> Any:
        """Each attack by itself on all images; arguments and errors as in :meth:`run_standard_evaluation`."""
        return self._evaluate("run_standard_evaluation_individual", x_orig, y_orig, mask, args, kwargs)

    def _evaluate(self, method: str, images: Tensor, labels: Tensor, mask: Any, args: Any, kwargs: Any) -> Any:
        if getattr(self.wrapped, "is_tf_model", False):
            raise TypeError("AutoAttack on a TensorFlow model cannot be wrapped; sip-plugin works on PyTorch networks.")
        check_images(images, name="x_orig")
        check_labels(labels, images, name="y_orig")
        labels = labels.long()
        images = images.detach()
        with self._lock, preserve_model_state(self.wrapped.model):
            salience = one_map_if_empty(self._maps(images, labels, mask, _batch_size(args, kwargs)))

            def run(alone: bool) -> Any:
                if alone and kwargs.get("state_path") is not None:
                    raise ValueError(
                        "one_by_one runs one evaluation an image, which one state_path cannot hold; leave one out."
                    )
                results = []
                for x, y, maps in split_batch(images, labels, salience, 1 if alone else len(images)):
                    with _members_projected(self.wrapped, x, maps) as given:
                        result = getattr(self.wrapped, method)(given, y, *args, **kwargs)
                    results.append(_each(result, functools.partial(_clean_selected, x, maps)))
                return results[0] if len(results) == 1 else _together(results)

            return self._alone_if_need_be(run, salience)

    def _maps(self, images: Tensor, labels: Tensor, mask: SalienceMap | None, size: int) -> Tensor:
        """The map of all images, made a batch at a time on AutoAttack's device, kept beside the images."""
        if mask is not None or not callable(self.mask_fn):
            return self.salience(images, labels, mask)
        device = self.wrapped.device
        parts = [
            self.salience(x.to(device), y.to(device)).to(images.device).expand(len(x), -1, -1, -1)
            for x, y in zip(images.split(size), labels.split(size), strict=True)
        ]
        return torch.cat(parts)


def _rebuild(attack: Any, mask_fn: MaskSource, *, one_by_one: bool) -> SalienceAutoAttack:
    return adapter(type(attack))(attack, mask_fn, one_by_one=one_by_one)  # type: ignore[arg-type]


@contextmanager
def _members_projected(attack: Any, images: Tensor, salience: Tensor) -> Iterator[Tensor]:
    """Have AutoAttack's attacks project their steps on whichever images they are handed; give it the images to attack."""
    selections = RowSelections(images) if bool(salience.any()) else None
    members = {name: getattr(attack, name) for name in MEMBERS}

    def run(member: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mechanism = next(MEMBERS[name] for name, candidate in members.items() if candidate is member)
        x = plain_tensor(x.detach())
        maps = salience if selections is None else salience_rows(salience, selections.of(len(x))).to(x.device)
        own = type(member).__module__.split(".")[0] in ("autoattack", "pyautoattack")
        projection = BatchProjection(x, maps, selections=RowSelections(x) if own and selections else None)
        with call_lock(member), _projecting(member, mechanism, projection):
            adversarial = plain_tensor(member.perturb(watched(x, projection.selections), *args, **kwargs))
        result = project_result(member, adversarial, x, maps)
        if not projection.free:
            check_ball(member, result, x)
        return result

    stand_ins = {name: MemberProxy(member, run, method="perturb") for name, member in members.items()}
    # The package's individual evaluation leaves only its last attack to run.
    kept = {name: vars(attack)[name] for name in ("attacks_to_run", "verbose") if name in vars(attack)}
    for name, stand_in in stand_ins.items():
        setattr(attack, name, stand_in)
    try:
        with model_replaced(attack, ProjectedModel(attack.model)):  # its own queries: clean or projected already
            yield watched(images, selections)
    finally:
        for name, stand_in in stand_ins.items():
            setattr(attack, name, stand_in.release())
        for name, value in kept.items():
            setattr(attack, name, value)


@contextmanager
def _projecting(member: Any, mechanism: Mechanism, projection: BatchProjection) -> Iterator[None]:
    """Give one of AutoAttack's attacks another model for the length of a block, whatever it calls its own."""
    models = {name: held for name in ("model", "predict") if (held := vars(member).get(name)) is not None}
    if not models:
        raise TypeError(
            f"{type(member).__name__} keeps no network in .model or .predict, so its steps cannot be projected."
        )
    queries = projection if mechanism is Mechanism.QUERY else None
    mode = None if queries or projection.free else IterateProjection(projection)
    with ExitStack() as stack:
        for name, model in models.items():
            stand_in = ProjectedModel(model, queries, mode)
            setattr(member, name, stand_in.forward if inspect.isroutine(model) else stand_in)
            stack.callback(setattr, member, name, model)
            stack.enter_context(preserve_model_state(model))
        stack.enter_context(mode or nullcontext())
        yield


def _clean_selected(images: Tensor, salience: Tensor, adversarial: Tensor) -> Tensor:
    return project(adversarial, images.to(adversarial), salience.to(adversarial.device))


def _batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The batch size of a call, under either package's name for it (the original also takes it by position)."""
    size = kwargs.get("batch_size", kwargs.get("bs", args[0] if args else _BATCH))
    return size if isinstance(size, int) and size > 0 else _BATCH


def _each(result: Any, images: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to the images in whatever AutoAttack returned: a tensor, a pair with labels, one for each attack."""
    if isinstance(result, Tensor):
        return images(result) if result.dim() == 4 else result
    if isinstance(result, dict):
        return {name: _each(value, images) for name, value in result.items()}
    return tuple(_each(value, images) for value in result)


def _together(results: list[Any]) -> Any:
    """The results of one image after the other as those of the batch."""
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat(results)
    if isinstance(first, dict):
        return {name: _together([result[name] for result in results]) for name in first}
    return tuple(_together(list(values)) for values in zip(*results, strict=True))
