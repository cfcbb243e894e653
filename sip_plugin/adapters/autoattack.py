"""AutoAttack: the packaged ``pyautoattack`` and the original ``autoattack``, which share one interface."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sip_plugin.adapters.base import (
    Batch,
    SalienceAttack,
    call_lock,
    check_ball,
    map_tensors,
    one_map_if_empty,
    project_result,
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
    watched,
)
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap, project
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state
from sip_plugin.utils import patched_attribute

MEMBERS: dict[str, Mechanism] = {
    "apgd": Mechanism.ITERATE,  # a random start on salient elements would eat an L1 or L2 budget
    "apgd_targeted": Mechanism.ITERATE,
    "fab": Mechanism.QUERY,
    "square": Mechanism.QUERY,
}
"""AutoAttack's attributes that hold its attacks, and how each is projected."""

_BATCH = 250  # AutoAttack's own default


def is_autoattack(attack: Any) -> bool:
    """Whether an object has AutoAttack's interface on PyTorch, from whichever package or copy of it."""
    interface = all(hasattr(attack, name) for name in ("run_standard_evaluation", "model", *MEMBERS))
    return interface and not getattr(attack, "is_tf_model", False)


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

        ``x_orig`` are ``(N, C, H, W)`` in ``[0, 1]``, ``y_orig`` class indices ``(N,)``. ``mask`` is the map for this call,
        in place of ``mask_fn``, which is asked for a batch at a time; further arguments are the package's own
        (``batch_size`` or ``bs``, ``state_path``, ...). Raises a ``TypeError`` or ``ValueError`` if images, labels or map do
        not fit.
        """
        return self._evaluate("run_standard_evaluation", x_orig, y_orig, mask, args, kwargs)

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, *args: Any, mask: SalienceMap | None = None, **kwargs: Any
    ) -> Any:
        """Each attack by itself on all images; arguments and errors as in :meth:`run_standard_evaluation`."""
        return self._evaluate("run_standard_evaluation_individual", x_orig, y_orig, mask, args, kwargs)

    def _evaluate(self, method: str, images: Tensor, labels: Tensor, mask: Any, args: Any, kwargs: Any) -> Any:
        check_images(images, name="x_orig")
        check_labels(labels, images, name="y_orig")
        labels = labels.long()
        images = images.detach().contiguous()  # on others most of its attacks fail

        def evaluate(batch: Batch) -> Any:
            def clean_selected(found: Tensor) -> Tensor:
                images = found.dim() == 4  # and not the predicted labels
                return project(found, batch.images.to(found), batch.salience.to(found.device)) if images else found

            with _members_projected(self.wrapped, batch) as given:
                return map_tensors(clean_selected, getattr(self.wrapped, method)(given, batch.labels, *args, **kwargs))

        def run(alone: bool) -> Any:
            if alone and kwargs.get("state_path") is not None:
                raise ValueError("one_by_one runs one evaluation an image, which one state_path cannot hold.")
            return batch.in_parts(1 if alone else len(images), evaluate)

        with self._lock, preserve_model_state(self.wrapped.model):
            # The batch size under either package's name for it; the original also takes it by position.
            size = kwargs.get("batch_size", kwargs.get("bs", args[0] if args else _BATCH))
            batch = Batch(images, labels, one_map_if_empty(self._maps(images, labels, mask, size)))
            return self._alone_if_need_be(run, batch.salience)

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
def _members_projected(attack: Any, batch: Batch) -> Iterator[Tensor]:
    """Have AutoAttack's attacks project their steps on whichever images they are handed; give it the images to attack."""
    selections = RowSelections(batch.images) if batch.marked else None
    with ExitStack() as stack:
        # Its own queries are about clean or projected images.
        stack.enter_context(model_replaced(attack, ProjectedModel(attack.model, labels=batch.labels, logits=True)))
        for name, mechanism in MEMBERS.items():
            run = functools.partial(_attack_member, mechanism)
            proxy = MemberProxy(getattr(attack, name), run, batch.salience, selections, method="perturb")
            stack.enter_context(patched_attribute(attack, name, proxy))
        # The package's individual evaluation changes these, and leaves only its last attack to run.
        for name in {"attacks_to_run", "verbose"} & vars(attack).keys():
            stack.enter_context(patched_attribute(attack, name, vars(attack)[name]))
        yield watched(batch.images, selections)


def _attack_member(mechanism: Mechanism, member: Any, batch: Batch) -> Tensor:
    """Run one of AutoAttack's attacks with every step projected, whatever it calls its network."""
    x = batch.images.detach()
    maps = batch.salience.to(x.device)
    own = type(member).__module__.split(".")[0] in ("autoattack", "pyautoattack")
    selections = RowSelections(x) if own and batch.marked else None
    projection = BatchProjection(x, maps, selections=selections)
    queries = projection if mechanism is Mechanism.QUERY else None
    mode = None if queries or projection.free else IterateProjection(projection)
    models = {name: held for name in ("model", "predict") if (held := vars(member).get(name)) is not None}
    if not models:
        raise TypeError(f"{type(member).__name__} has no network in .model or .predict: its steps cannot be projected.")
    with call_lock(member), ExitStack() as stack:
        for name, model in models.items():
            stand_in = ProjectedModel(model, queries, mode)
            value = stand_in.forward if inspect.isroutine(model) else stand_in
            stack.enter_context(patched_attribute(member, name, value))
            stack.enter_context(preserve_model_state(model))
        if mode is not None:
            stack.enter_context(mode)
        adversarial = plain_tensor(member.perturb(watched(x, selections), batch.labels, *batch.args, **batch.kwargs))
    result = project_result(member, adversarial, x, maps)
    if not projection.free:
        check_ball(member, result, x)
    return result
