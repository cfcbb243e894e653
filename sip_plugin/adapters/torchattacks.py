"""torchattacks 3.5: the wrapper is a ``torchattacks.attack.Attack`` and is called like one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

try:
    from torchattacks.attack import Attack
except ImportError as error:
    raise ImportError("torchattacks is not installed: pip install 'sip-plugin[torchattacks]'") from error

from sip_plugin.adapters.base import (
    SalienceAttack,
    call_lock,
    check_ball,
    concat,
    patched_attribute,
    project_result,
    split_batch,
)
from sip_plugin.adapters.composite import MemberProxy
from sip_plugin.adapters.projection import (
    BatchProjection,
    IterateProjection,
    ProjectedModel,
    RowSelections,
    model_replaced,
    plain_tensor,
    salience_rows,
    warn_if_not_queried,
    watched,
)
from sip_plugin.adapters.specs import ITERATE, MEMBERS, QUERY, TORCHATTACKS, AttackSpec
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state

_NORMALIZED_TOLERANCE = 1e-5  # pixels that were normalised and back miss [0, 1] by rounding


class SalienceTorchAttack(SalienceAttack, Attack):  # type: ignore[misc]
    """A torchattacks attack whose every step leaves salient elements alone."""

    def __init__(self, attack: Attack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        _check_inner_attacks(attack)
        super().__init__(attack, mask_fn, one_by_one=one_by_one)
        # torchattacks' own decorators read this registry from the instance's __dict__.
        self.__dict__["_attacks"] = attack._attacks

    def __call__(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        *args: Any,
        mask: SalienceMap | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Adversarial images that equal the clean ones on salient elements.

        Args:
            inputs: ``(N, C, H, W)`` in ``[0, 1]``, or normalised after ``set_normalization_used``.
            labels: Class indices ``(N,)``.
            *args: The attack's own further arguments.
            mask: The map for this call, in place of ``mask_fn``.
            **kwargs: The attack's own further arguments.

        Returns:
            ``(N, C, H, W)``, on the attack's device, in the space of ``inputs``.

        Raises:
            TypeError: If ``inputs``, ``labels`` or the map are of the wrong type.
            ValueError: If their shapes or values do not fit.
        """
        with self._lock:
            _collect_networks(self.wrapped)
            with preserve_model_state(self.wrapped.model):
                inputs, labels = self._checked(inputs, labels)
                salience = self._salience_of(inputs, labels, mask)
                return self._alone_if_need_be(
                    lambda alone: attack_batch(self.wrapped, inputs, labels, salience, args, kwargs, alone=alone),
                    salience,
                )

    def forward(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The same as a call."""
        return self(inputs, labels, *args, **kwargs)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """torchattacks' ``save(data_loader, ...)``, with this object's own calls in it."""
        attack = self.wrapped
        with self._lock, preserve_model_state(attack.model), patched_attribute(attack, "__call__", self.__call__):
            return attack.save(*args, **kwargs)

    def _checked(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attack = self.wrapped
        if attack._normalization_applied is True and isinstance(inputs, Tensor):
            check_images(_plain(attack, inputs), name="inputs (de-normalised)", tolerance=_NORMALIZED_TOLERANCE)
        else:
            normalised = attack.normalization_used is not None
            check_images(inputs, name="inputs", tolerance=_NORMALIZED_TOLERANCE if normalised else 0.0)
        inputs = inputs.detach().to(attack.device or inputs.device)
        return inputs, None if labels is None else check_labels(labels, inputs)

    def _salience_of(self, inputs: Tensor, labels: Tensor | None, mask: SalienceMap | None = None) -> Tensor:
        """The map of a batch; maps are made of images in [0, 1], also where the attack's inputs are normalised."""
        if self.wrapped.normalization_used is not None:
            inputs = _plain(self.wrapped, inputs).clamp(0, 1)
        return self.salience(inputs, labels, mask)


def attack_batch(
    attack: Attack,
    inputs: Tensor,
    labels: Tensor | None,
    salience: Tensor,
    args: Any,
    kwargs: Any,
    *,
    training: bool = False,
    alone: bool = False,
) -> Tensor:
    """Run a bare attack, or one that is wrapped itself, with every step projected; arguments are checked already.

    ``training`` says whether it finds its network in train mode (see :class:`ProjectedModel`).
    """
    # A wrapped member of a wrapped attack: what either map marks is salient.
    while isinstance(attack, SalienceTorchAttack):
        salience = salience | attack._salience_of(inputs, labels)
        alone |= attack.one_by_one
        attack = attack.wrapped
    spec = TORCHATTACKS.spec_for(attack)
    size = 1 if alone or (spec.alone and bool(salience.any())) else _images_at_once(attack, len(inputs))
    parts = split_batch(inputs, labels, salience, size)
    results = []
    with call_lock(attack), preserve_model_state(attack.model), ExitStack() as stack:
        if len(parts) > 1 and attack.attack_mode == "targeted(custom)":
            # The user's function says what it says of the whole batch.
            targets = iter(attack._target_map_function(_plain(attack, inputs), labels).split(size))
            stack.enter_context(patched_attribute(attack, "_target_map_function", lambda *_: next(targets)))
        for part in parts:
            results.append(_attack_part(attack, spec, *part, args, kwargs, training))
    return concat(results)


def _attack_part(
    attack: Attack,
    spec: AttackSpec,
    inputs: Tensor,
    labels: Tensor | None,
    salience: Tensor,
    args: Any,
    kwargs: Any,
    training: bool,
) -> Tensor:
    known = TORCHATTACKS.registered_name(attack) is not None
    with _projecting(attack, spec, inputs, salience, training) as stand_in:
        # torchattacks' own attacks copy their images; one of the user's may write into them.
        given = inputs if known else inputs.clone()
        adversarial = attack(given, *(() if labels is None else (labels,)), *args, **kwargs)
    result = project_result(attack, adversarial, inputs, salience)
    if spec.selects and spec.mechanism is not MEMBERS and bool(salience.any()):
        check_ball(attack, _plain(attack, result), _plain(attack, inputs))
    if not known:
        warn_if_not_queried(attack, stand_in, torch.equal(result, inputs))
    return result


@contextmanager
def _projecting(
    attack: Attack, spec: AttackSpec, inputs: Tensor, salience: Tensor, training: bool
) -> Iterator[ProjectedModel]:
    """Put the attack's mechanism in place for the length of a block, and its normalisation flag back after it."""
    applied = attack._normalization_applied
    # The iterate lives in [0, 1]; the network sees it normalised where the attack was told to normalise.
    iterates = _plain(attack, inputs)
    projection = iterate = None
    watches = spec.selects and TORCHATTACKS.is_own(attack) and bool(salience.any())
    selections = RowSelections(inputs) if watches else None
    if spec.mechanism is QUERY:
        queries = attack.normalize(inputs) if applied is False else inputs
        projection = BatchProjection(queries, salience, tiled=spec.tiled, selections=selections)
    elif spec.mechanism is ITERATE:
        clean = iterates.new_zeros(()).expand_as(iterates) if spec.offset else iterates
        iterate = BatchProjection(clean, salience, selections=selections)
    mode = None if iterate is None or iterate.free else IterateProjection(iterate)
    # A composite's own model only hands queries through: what it asks about is clean or projected already.
    model = ProjectedModel(attack.model, projection, mode, training=training)
    with ExitStack() as stack:
        stack.callback(_restore_normalization, attack, applied)
        stack.enter_context(model_replaced(attack, model))
        if selections is not None:
            stack.enter_context(_watched(attack, selections))
        if spec.mechanism is MEMBERS:
            stack.enter_context(_members_projected(attack, salience, selections, model))
        else:
            for inner in attack._attacks.values():  # SparseFool is built upon DeepFool
                stack.enter_context(model_replaced(inner, model))
        if mode is not None:
            stack.enter_context(mode)
        yield model


@contextmanager
def _watched(attack: Attack, selections: RowSelections) -> Iterator[None]:
    """Hand the attack's ``forward`` images whose selections are seen, after torchattacks has undone their normalisation."""
    forward = attack.forward

    def watching(images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return plain_tensor(forward(watched(images, selections), *args, **kwargs))

    with patched_attribute(attack, "forward", watching):
        yield


def _plain(attack: Attack, inputs: Tensor) -> Tensor:
    """An attack's inputs in [0, 1]."""
    plain: Tensor = attack.inverse_normalize(inputs) if attack._normalization_applied is True else inputs
    return plain


def _check_inner_attacks(attack: Attack) -> None:
    """Refuse an attack of the user's own that is built upon attacks which a projection of its queries would not reach.

    Raises:
        TypeError: If there is one.
    """
    if TORCHATTACKS.registered_name(attack) is not None:
        return
    for inner in attack._attacks.values():
        if (
            isinstance(inner, SalienceTorchAttack)
            or TORCHATTACKS.spec_for(inner).mechanism is not QUERY
            or TORCHATTACKS.spec_for(inner).tiled
        ):
            raise TypeError(
                f"{type(attack).__name__} is built upon {inner!r}, whose steps cannot be projected from outside. Wrap that "
                "attack instead: SIPWrapper(inner, mask_fn)."
            )


def _restore_normalization(attack: Attack, applied: bool | None) -> None:
    """torchattacks leaves its flag reversed when an attack raises."""
    if attack._normalization_applied is not applied:
        attack._set_normalization_applied(applied)


@contextmanager
def _members_projected(
    attack: Attack, salience: Tensor, selections: RowSelections | None, model: ProjectedModel
) -> Iterator[None]:
    """Have the members of ``attack`` project their steps on whichever images of the batch they are handed."""
    made: list[MemberProxy] = []

    def run(member: Attack, images: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        maps = salience if selections is None else salience_rows(salience, selections.of(len(images)))
        return attack_batch(member, plain_tensor(images), labels, maps, args, kwargs, training=model.training)

    def stand_in(member: Attack) -> MemberProxy:
        made.append(MemberProxy(member, run))
        return made[-1]

    try:
        with patched_attribute(attack, *_stand_ins(attack, stand_in)):
            yield
    finally:
        members = [member.release() for member in made]
        if isinstance(attack.__dict__.get("base_attack"), MemberProxy):  # LGV built its attack during the call
            attack.base_attack = members[0]


def _stand_ins(attack: Attack, stand_in: Callable[[Attack], MemberProxy]) -> tuple[str, Any]:
    """The attribute that holds a composite's members, and its value with stand-ins for them."""
    name = TORCHATTACKS.registered_name(attack)
    if name == "MultiAttack":
        return "attacks", [stand_in(member) for member in attack.attacks]
    if name == "AutoAttack":
        return "_autoattack", stand_in(attack._autoattack)
    if attack.base_attack is not None:
        return "base_attack", stand_in(attack.base_attack)
    kind = attack.attack_class  # LGV builds its attack at its first call
    return "attack_class", functools.wraps(kind, updated=())(lambda **settings: stand_in(kind(**settings)))


def _collect_networks(attack: Attack) -> None:
    """LGV trains its networks at its first call; that is no part of an attack on images, and is not projected."""
    if isinstance(attack, SalienceTorchAttack):
        _collect_networks(attack.wrapped)
    elif TORCHATTACKS.registered_name(attack) == "MultiAttack":
        for member in attack.attacks:
            _collect_networks(member)
    elif TORCHATTACKS.registered_name(attack) == "LGV" and not attack.list_models:
        attack.collect_models()


def _images_at_once(attack: Attack, count: int) -> int:
    """PGDRS and PGDRSL2 cut a large batch themselves; cut alike, each part has its variable to itself."""
    noise, limit = getattr(attack, "noise_batch_size", None), getattr(attack, "batch_max", None)
    return count if noise is None or limit is None or count * noise <= limit else max(1, int(limit / noise))


def _delegate(name: str) -> None:
    """Let a method of torchattacks' base class run on the wrapped attack, which may override it."""

    def method(self: SalienceTorchAttack, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.wrapped, name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = getattr(Attack, name).__doc__
    setattr(SalienceTorchAttack, name, method)


for _name, _member in vars(Attack).items():
    if callable(_member) and not _name.startswith("__") and _name not in vars(SalienceTorchAttack):
        _delegate(_name)
