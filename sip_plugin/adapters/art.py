"""ART 1.20: the wrapper is an ``art.attacks.EvasionAttack``, takes and gives NumPy arrays, and goes into ART's trainers."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from art.attacks.attack import Attack, EvasionAttack
    from art.estimators.classification import ClassifierMixin
    from art.estimators.pytorch import PyTorchEstimator
except ImportError as error:
    raise ImportError("ART is not installed: pip install 'sip-plugin[art]'") from error
from tqdm.auto import tqdm  # ART's own progress bars

from sip_plugin.adapters.art_estimator import (
    EstimatorProjection,
    budgets_of,
    estimators_projected,
    network_dtype,
    preserve_classifier_state,
    starts_projected,
)
from sip_plugin.adapters.base import (
    Batch,
    SalienceAttack,
    attacks_in,
    call_lock,
    check_ball,
    check_inner,
    delegate,
    one_map_if_empty,
    project_result,
)
from sip_plugin.adapters.composite import MemberProxy
from sip_plugin.adapters.projection import BatchProjection, RowSelections, warn_if_not_queried, watched_array
from sip_plugin.adapters.specs import ART, ITERATE, MEMBERS, ArtSpec
from sip_plugin.constraint import SalienceMap, prepare_mask
from sip_plugin.mask_source import MaskSource, compute_mask
from sip_plugin.utils import patched_attribute, takes_targets


class SalienceArtAttack(SalienceAttack, EvasionAttack):  # type: ignore[misc]
    """An evasion attack of ART whose every step leaves salient elements alone."""

    def __init__(self, attack: EvasionAttack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        _check_attack(attack)
        super().__init__(attack, mask_fn, one_by_one=one_by_one)

    def __copy__(self) -> SalienceArtAttack:
        duplicate = copy.copy(self.wrapped)
        for name, held in vars(duplicate).items():
            if isinstance(held, Attack):  # or the copy's settings would reach the inner attack of the original
                vars(duplicate)[name] = copy.copy(held)
        return type(self)(duplicate, self.mask_fn, one_by_one=self.one_by_one)

    def __setattr__(self, name: str, value: Any) -> None:
        # By set_params where that is the way: ProjectedGradientDescent, for one, hands its parameters on to an inner attack.
        if "wrapped" in self.__dict__ and name in self.wrapped.attack_params and name != "summary_writer":
            self.wrapped.set_params(**{name: value})
        else:
            super().__setattr__(name, value)

    def generate(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        *,
        salience: SalienceMap | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Adversarial images that equal the clean ones on salient elements.

        Args:
            x: Images ``(N, C, H, W)``, or ``(N, H, W, C)`` if the classifier says so, within its ``clip_values``.
            y: Class indices ``(N,)`` or one-hot rows ``(N, K)``, targets of a targeted attack, or whatever the attack takes;
                None as far as the attack allows it.
            mask: ART's own mask of 0 and 1, broadcastable to ``x``: where it is 0 nothing changes. It is intersected with
                the map, and works for any attack.
            salience: The map for this call, in place of ``mask_fn``.
            **kwargs: The attack's own further arguments.

        Maps that are arrays have the layout of ``x`` (``(H, W)`` in either). A ``mask_fn`` that is called sees the images
        as a tensor ``(N, C, H, W)`` in ``[0, 1]`` (scaled by ``clip_values``, if there are any) on the classifier's device,
        and gives its map in that layout; its labels are class indices, or None where ``y`` is None or holds targets.

        Returns:
            An array of the shape of ``x``, and of the bare attack's dtype (so that float64 images come back rounded to
            float32 from most attacks, salient elements too).

        Raises:
            TypeError: If the map is of the wrong type.
            ValueError: If an argument's shape or values do not fit; if images of an attack that looks for one universal
                perturbation have different maps.
        """
        attack = self.wrapped
        with self._lock, preserve_classifier_state(attack.estimator):
            _check_inputs(x, attack.estimator.clip_values)
            y = None if y is None else np.asarray(y)
            if y is not None and len(y) != len(x):
                raise ValueError(f"y must hold one row for each of the {len(x)} images, got shape {y.shape}.")
            batch = Batch(x, y, self._map(x, y, salience), kwargs=kwargs)
            if mask is not None:
                batch = batch.marking(_forbidden(mask, x))
            return self._alone_if_need_be(lambda alone: attack_batch(attack, batch, alone=alone), batch.salience)

    def _map(self, x: np.ndarray, y: np.ndarray | None, given: SalienceMap | None = None) -> Tensor:
        """The map of a batch in its own layout, on the CPU."""
        source = self.mask_fn if given is None else given
        estimator = self.wrapped.estimator
        if callable(source):
            images = _to_map_source(x, estimator)
            targets = takes_targets(self.wrapped) or ART.spec_for(self.wrapped).y != "labels"
            labels = None if y is None or targets else _as_indices(y).to(images.device)
            map_ = prepare_mask(compute_mask(source, images, labels), images).cpu()
            return map_ if estimator.channels_first else map_.permute(0, 2, 3, 1)
        if source is not None and source.ndim == 2 and not estimator.channels_first:
            source = source[None, :, :, None]
        images = torch.from_numpy(np.ascontiguousarray(x))
        return prepare_mask(compute_mask(source, images, None, keyword="salience"), images)


# The face of ART's base classes, which reaches the wrapped attack.
_DELEGATED = """set_params is_estimator_valid estimator summary_writer estimator_requirements targeted attack_params
    _estimator_requirements _check_params"""
delegate(SalienceArtAttack, _DELEGATED.split())


def attack_batch(attack: EvasionAttack, batch: Batch, *, alone: bool = False) -> np.ndarray:
    """Run a bare attack, or one that is wrapped itself, with every step projected; arguments are checked already."""
    x = batch.images
    # A wrapped member of a wrapped attack: what either map marks is salient.
    while isinstance(attack, SalienceArtAttack):
        batch = batch.marking(attack._map(x, batch.labels))
        alone |= attack.one_by_one
        attack = attack.wrapped
    spec = ART.spec_for(attack)
    if spec.native == "attribute" and attack.mask is not None:
        batch = batch.marking(_forbidden(attack.mask, x))
    salience = one_map_if_empty(batch.salience)
    if spec.universal:
        if bool((salience != salience[:1]).any()):
            raise ValueError(
                f"{type(attack).__name__} looks for one perturbation of all images, which cannot keep to a map for each of "
                "them. Give one map: (H, W) or (1, C, H, W)."
            )
        salience = salience[:1]
    batch = dataclasses.replace(batch, salience=salience)
    at_once = spec.at_once if batch.marked else "all"
    size = 1 if alone else {"all": len(x), "batch": getattr(attack, "batch_size", len(x)), "one": 1}[at_once]
    with call_lock(attack), preserve_classifier_state(attack.estimator):
        if size >= len(x) and not spec.starts:
            return _attack_part(attack, spec, batch)
        return _attack_parts(attack, spec, batch, size)


def _attack_parts(attack: EvasionAttack, spec: ArtSpec, batch: Batch, size: int) -> np.ndarray:
    """Run an attack on ``size`` images at a time, and show its progress over all of them.

    Images of which nothing may change are left out: attacks that search for a starting point would fail or never end.
    """
    x = batch.images
    infers = spec.infers_range and attack.estimator.clip_values is None
    value_range = (x.min(), x.max()) if infers else None
    free = np.flatnonzero(~batch.salience.expand(len(x), -1, -1, -1).flatten(1).all(1).numpy())
    first_iteration = vars(attack).get("curr_iter")
    parts = []
    verbose = bool(getattr(attack, "verbose", False))
    with ExitStack() as stack, tqdm(total=len(x), desc=type(attack).__name__, disable=not verbose) as bar:
        if verbose:  # its own bars know of one part at a time
            attack.set_params(verbose=False)
            stack.callback(attack.set_params, verbose=True)
        bar.update(len(x) - len(free))
        for start in range(0, len(free), size):
            rows = free[start : start + size]
            if batch.kwargs.get("resume") and first_iteration is not None:
                attack.curr_iter = first_iteration  # each image goes on where the last call ended
            with budgets_of(attack, rows, len(x)):
                parts.append(_attack_part(attack, spec, batch.take(rows), value_range))
            bar.update(len(rows))
    result: np.ndarray = x.astype(parts[0].dtype if parts else x.dtype, order="C")
    if parts:
        result[free] = np.concatenate(parts)
    return result


def _attack_part(
    attack: EvasionAttack, spec: ArtSpec, batch: Batch, value_range: tuple[Any, Any] | None = None
) -> np.ndarray:
    x, y, salience, kwargs = batch.images, batch.labels, batch.salience, batch.kwargs
    images = torch.from_numpy(np.array(x))  # a copy: an attack may write into what it is handed
    own = ART.is_own(attack)
    selections = RowSelections(images) if own and batch.marked else None
    projection = EstimatorProjection(
        BatchProjection(images, salience, selections=selections),
        network_dtype(attack.estimator),
        masked=own and spec.native == "argument",
        in_place=spec.mechanism is ITERATE,
        exempt=torch.from_numpy(y) if spec.y == "guides" and y is not None else None,
    )

    def proxy(member: EvasionAttack) -> MemberProxy:
        return MemberProxy(member, attack_batch, salience, None if spec.universal else selections, method="generate")

    with ExitStack() as stack:
        if spec.native:
            native = np.where(salience.numpy(), 0.0, np.broadcast_to(1.0, x.shape)).astype(np.float32)
            if spec.native == "argument":
                kwargs = {**kwargs, "mask": native}
            else:
                stack.enter_context(patched_attribute(attack, "mask", native))
        if spec.universal:
            get_attack = attack._get_attack
            stack.enter_context(patched_attribute(attack, "_get_attack", lambda *args: proxy(get_attack(*args))))
        elif spec.mechanism is MEMBERS:
            for member in attack.attacks:
                stack.enter_context(preserve_classifier_state(member.estimator))
            stack.enter_context(patched_attribute(attack, "attacks", [proxy(member) for member in attack.attacks]))
        else:
            stack.enter_context(estimators_projected(attack, projection, value_range))
        if spec.starts:
            stack.enter_context(starts_projected(attack, spec.starts, projection))
        try:
            given = x.copy(order="K") if selections is None else watched_array(x, selections)
            adversarial = attack.generate(given, y, **kwargs)
        except AssertionError as error:
            if not (spec.starts and batch.marked):
                raise
            raise ValueError(
                f"{type(attack).__name__} found no adversarial starting point for one of the {len(x)} images. Give "
                "x_adv_init=... or starting_points=... (adversarial also with the images' salient elements), or raise "
                "init_size."
            ) from error
    found = torch.from_numpy(np.ascontiguousarray(adversarial))
    result = project_result(attack, found, images.to(found.dtype), salience)
    if spec.mechanism is ITERATE and batch.marked:
        check_ball(attack, result, images)
    if ART.registered_name(attack) is None:
        warn_if_not_queried(attack, projection.queried, np.array_equal(result.numpy(), x))
    return result.numpy()


def _check_attack(attack: Any) -> None:
    """Refuse what cannot be made to preserve salience."""
    if isinstance(attack, SalienceArtAttack):
        return  # a wrapped member
    ART.check_supported(attack)
    estimator = getattr(attack, "estimator", None)
    pytorch = isinstance(estimator, PyTorchEstimator) and isinstance(estimator, ClassifierMixin)
    if not (isinstance(attack, EvasionAttack) and pytorch):
        raise TypeError(
            f"{type(attack).__name__} on {type(estimator).__name__} is no evasion attack (art.attacks.EvasionAttack) on a "
            "PyTorchClassifier (art.estimators.classification), as sip-plugin needs it."
        )
    known = ART.registered_name(attack)
    for member in attack.attacks if known == "AutoAttack" else ():
        _check_attack(member)
    for inner in attacks_in(attack, Attack) if known is None else ():
        _check_attack(inner)
        spec = ART.spec_for(inner)
        check_inner(attack, inner, spec.mechanism is not MEMBERS and spec.at_once == "all")


def _check_inputs(x: np.ndarray, clip_values: tuple[Any, Any] | None) -> None:
    """Refuse anything but images of finite values within the classifier's range."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"x must be a NumPy array of images, got {type(x).__name__}; of a tensor x.cpu().numpy().")
    low, high = (-np.inf, np.inf) if clip_values is None else clip_values
    if x.ndim != 4 or not np.isfinite(x).all() or (x < low).any() or (x > high).any():
        raise ValueError(
            f"x must be images (N, C, H, W) of finite values within the classifier's clip_values {clip_values}, got shape "
            f"{x.shape} and values from {x.min():g} to {x.max():g}. Scale the images, or give the classifier their range."
        )


def _as_indices(y: np.ndarray) -> Tensor:
    """Class indices ``(N,)`` of labels in either of ART's forms."""
    indices = y.argmax(1) if y.ndim > 1 and y.shape[1] > 1 else y.reshape(len(y))
    return torch.from_numpy(np.asarray(indices)).long()


def _forbidden(mask: np.ndarray, x: np.ndarray) -> Tensor:
    """Where ART's own mask (1 = may change), which broadcasts to ``x``, lets nothing change."""
    if not isinstance(mask, np.ndarray) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "mask must be a NumPy array of 0 and 1 (ART's own: 1 = may change). A salience map for one call is "
            "salience=..., where 1 marks what may not change."
        )
    return torch.from_numpy(np.broadcast_to(mask == 0, x.shape).copy())


def _to_map_source(x: np.ndarray, estimator: Any) -> Tensor:
    """The images as functions that make maps expect them: ``(N, C, H, W)`` in ``[0, 1]``, on the classifier's device."""
    images = torch.from_numpy(np.asarray(x, dtype=x.dtype if x.dtype == np.float64 else np.float32))
    if estimator.clip_values is not None:
        low, high = (torch.as_tensor(np.asarray(bound), dtype=images.dtype) for bound in estimator.clip_values)
        images = ((images - low) / (high - low)).clamp(0, 1)
    if not estimator.channels_first:
        images = images.permute(0, 3, 1, 2).contiguous()
    return images.to(estimator.device)
