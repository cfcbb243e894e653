"""torchattacks 3.5: the wrapper is a ``torchattacks.attack.Attack`` and is called like one."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

try:
    from torchattacks.attack import Attack
    from torchattacks.wrappers.lgv import LightEnsemble
except ImportError as error:
    raise ImportError("torchattacks is not installed: pip install 'sip-plugin[torchattacks]'") from error

from sip_plugin.adapters.base import Batch, SalienceAttack, call_lock, check_ball, check_inner, delegate, project_result
from sip_plugin.adapters.composite import MemberProxy
from sip_plugin.adapters.projection import (
    BatchProjection,
    IterateProjection,
    ProjectedModel,
    RowSelections,
    counted_calls,
    model_replaced,
    plain_tensor,
    warn_if_not_queried,
    watched,
)
from sip_plugin.adapters.specs import ITERATE, MEMBERS, QUERY, TORCHATTACKS, AttackSpec
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state
from sip_plugin.utils import patched_attribute, takes_targets

_NORMALIZED_TOLERANCE = 1e-5  # pixels that were normalised and back miss [0, 1] by rounding


class SalienceTorchAttack(SalienceAttack, Attack):  # type: ignore[misc]
    """A torchattacks attack whose every step leaves salient elements alone."""

    def __init__(self, attack: Attack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        for inner in attack._attacks.values() if TORCHATTACKS.registered_name(attack) is None else ():
            spec = TORCHATTACKS.spec_for(inner)
            check_inner(attack, inner, spec.mechanism is QUERY and not spec.tiled)
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

        ``inputs`` are ``(N, C, H, W)`` in ``[0, 1]``, or normalised after ``set_normalization_used``, ``labels`` class
        indices ``(N,)``. ``mask`` is the map for this call, in place of ``mask_fn``; further arguments are the attack's own.
        The result is on the attack's device, in the space of ``inputs``. Raises a ``TypeError`` or ``ValueError`` if inputs,
        labels or map do not fit.
        """
        attack = self.wrapped
        with self._lock:
            _build_lgv(attack)
            with preserve_model_state(attack.model):
                check_images(
                    _plain(attack, inputs),
                    name="inputs (de-normalised)" if attack._normalization_applied else "inputs",
                    tolerance=0.0 if attack.normalization_used is None else _NORMALIZED_TOLERANCE,
                )
                inputs = inputs.detach().to(attack.device or inputs.device)
                labels = None if labels is None else check_labels(labels, inputs)
                batch = Batch(inputs, labels, self._salience_of(inputs, labels, mask), args, kwargs)
                return self._alone_if_need_be(lambda alone: attack_batch(attack, batch, alone=alone), batch.salience)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The same as a call."""
        return self(inputs, labels, *args, **kwargs)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """torchattacks' ``save(data_loader, ...)``, with this object's own calls in it."""
        attack = self.wrapped
        with self._lock:
            _build_lgv(attack)
            with preserve_model_state(attack.model), patched_attribute(attack, "__call__", self.__call__):
                return attack.save(*args, **kwargs)

    def _salience_of(self, inputs: Tensor, labels: Tensor | None, mask: SalienceMap | None = None) -> Tensor:
        """The map of a batch; maps are made of images in [0, 1], also where the attack's inputs are normalised."""
        if self.wrapped.normalization_used is not None:
            inputs = _plain(self.wrapped, inputs).clamp(0, 1)
        return self.salience(inputs, None if takes_targets(self.wrapped) else labels, mask)


_methods = {name for name, member in vars(Attack).items() if callable(member) and not name.startswith("__")}
delegate(SalienceTorchAttack, _methods - vars(SalienceTorchAttack).keys())


def attack_batch(attack: Attack, batch: Batch, *, training: bool = False, alone: bool = False) -> Tensor:
    """Run a bare attack, or one that is wrapped itself, with every step projected; arguments are checked already.

    ``training`` says whether it finds its network in train mode (see :class:`ProjectedModel`).
    """
    # A wrapped member of a wrapped attack: what either map marks is salient.
    while isinstance(attack, SalienceTorchAttack):
        batch = batch.marking(attack._salience_of(batch.images, batch.labels))
        alone |= attack.one_by_one
        attack = attack.wrapped
    spec = TORCHATTACKS.spec_for(attack)
    if spec.contiguous in ("any", getattr(attack, "norm", "none")):
        batch = dataclasses.replace(batch, images=batch.images.contiguous(), salience=batch.salience.contiguous())
    size = 1 if alone or (spec.alone and batch.marked) else _images_at_once(attack, len(batch.images))
    with call_lock(attack), preserve_model_state(attack.model), ExitStack() as stack:
        if size < len(batch.images) and attack.attack_mode == "targeted(custom)":
            # The user's function says what it says of the whole batch.
            targets = iter(attack._target_map_function(_plain(attack, batch.images), batch.labels).split(size))
            stack.enter_context(patched_attribute(attack, "_target_map_function", lambda *_: next(targets)))
        return batch.in_parts(size, lambda part: _attack_part(attack, spec, part, training))


def _attack_part(attack: Attack, spec: AttackSpec, batch: Batch, training: bool) -> Tensor:
    inputs, salience = batch.images, batch.salience
    known, applied = TORCHATTACKS.registered_name(attack) is not None, attack._normalization_applied
    watches = spec.selects and TORCHATTACKS.is_own(attack) and batch.marked
    selections = RowSelections(inputs) if watches else None
    plain = _plain(attack, inputs)
    projection = mode = None
    if spec.mechanism is QUERY:
        # The iterate lives in [0, 1]; the network sees it normalised where the attack was told to normalise.
        queries = attack.normalize(inputs) if applied is False else inputs
        projection = BatchProjection(queries, salience, tiled=spec.tiled, selections=selections)
    elif spec.mechanism is ITERATE and batch.marked:
        clean = plain.new_zeros(()).expand_as(plain) if spec.offset else plain
        mode = IterateProjection(BatchProjection(clean, salience, selections=selections))
    # A composite's own model only hands queries through: what it asks about is clean or projected already.
    model = ProjectedModel(attack.model, projection, mode, training=training, labels=batch.labels, logits=True)

    def attack_member(member: Attack, some: Batch) -> Tensor:
        return attack_batch(member, some, training=model.training)

    def watching(images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return plain_tensor(forward(watched(images, selections), *args, **kwargs))

    forward = attack.forward
    with ExitStack() as stack:
        stack.callback(_restore_normalization, attack, applied)
        calls = [] if known else stack.enter_context(counted_calls(attack.model))
        stack.enter_context(model_replaced(attack, model))
        if selections is not None:
            stack.enter_context(patched_attribute(attack, "forward", watching))
        if spec.mechanism is MEMBERS:
            name = next(n for n in ("attacks", "_autoattack", "base_attack") if n in vars(attack))
            held = getattr(attack, name)
            members = held if isinstance(held, (list, tuple)) else [held]
            proxies = [MemberProxy(member, attack_member, salience, selections) for member in members]
            stack.enter_context(patched_attribute(attack, name, proxies if members is held else proxies[0]))
        else:
            for inner in attack._attacks.values():  # SparseFool is built upon DeepFool
                stack.enter_context(model_replaced(inner, model))
        if mode is not None:
            stack.enter_context(mode)
        # torchattacks' own attacks copy their images; one of the user's may write into them.
        given = inputs if TORCHATTACKS.is_own(attack) else inputs.clone()
        labels = () if batch.labels is None else (batch.labels,)
        adversarial = attack(given, *labels, *batch.args, **batch.kwargs)
    result = project_result(attack, adversarial, inputs, salience)
    if spec.selects and spec.mechanism is not MEMBERS and batch.marked:
        check_ball(attack, _plain(attack, result), plain)
    if not known:
        warn_if_not_queried(attack, model.queried, torch.equal(result, inputs), calls.count(threading.get_ident()))
    return result


def _plain(attack: Attack, inputs: Tensor) -> Tensor:
    """An attack's inputs in [0, 1]."""
    plain: Tensor = attack.inverse_normalize(inputs) if attack._normalization_applied is True else inputs
    return plain


def _restore_normalization(attack: Attack, applied: bool | None) -> None:
    """torchattacks leaves its flag reversed when an attack raises."""
    if attack._normalization_applied is not applied:
        attack._set_normalization_applied(applied)


def _build_lgv(attack: Attack) -> None:
    """Train LGV's networks and build its attack upon them, as its first call does; no part of an attack on images."""
    if isinstance(attack, SalienceTorchAttack):
        _build_lgv(attack.wrapped)
    elif TORCHATTACKS.registered_name(attack) == "MultiAttack":
        for member in attack.attacks:
            _build_lgv(member)
    elif TORCHATTACKS.registered_name(attack) == "LGV" and attack.base_attack is None:
        if not attack.list_models:
            attack.collect_models()
        ensemble = LightEnsemble(attack.list_models, order=attack.order, n_grad=attack.n_grad).to(attack.device)
        attack.base_attack = attack.attack_class(model=ensemble.eval(), **attack.kwargs_att)


def _images_at_once(attack: Attack, count: int) -> int:
    """PGDRS and PGDRSL2 cut a large batch themselves; cut alike, each part has its variable to itself."""
    noise, limit = getattr(attack, "noise_batch_size", None), getattr(attack, "batch_max", None)
    return count if noise is None or limit is None or count * noise <= limit else max(1, int(limit / noise))
