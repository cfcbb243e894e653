"""ART 1.20: the wrapper is an ``art.attacks.EvasionAttack``, takes and gives NumPy arrays, and goes into ART's trainers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    inner_attacks,
    network_dtype,
    preserve_classifier_state,
    silent_progress,
    starts_projected,
)
from sip_plugin.adapters.art_inputs import as_indices, check_inputs, check_labels, check_mask, to_map_source
from sip_plugin.adapters.base import (
    SalienceAttack,
    call_lock,
    check_ball,
    one_map_if_empty,
    patched_attribute,
    project_result,
)
from sip_plugin.adapters.composite import MemberProxy
from sip_plugin.adapters.projection import (
    Mechanism,
    RowSelections,
    salience_rows,
    warn_if_not_queried,
    watched_array,
)
from sip_plugin.adapters.specs import ART, MEMBERS, ArtSpec
from sip_plugin.constraint import SalienceMap, prepare_mask
from sip_plugin.mask_source import MaskSource, compute_mask

_PER_IMAGE = ("x_adv_init", "starting_points")  # arguments of generate that hold one row for each image


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
            mask: ART's own mask, broadcastable to ``x``: where it is 0 nothing changes. It is intersected with the map, and
                works for any attack.
            salience: The map for this call, in place of ``mask_fn``.
            **kwargs: The attack's own further arguments.

        Maps that are arrays have the layout of ``x`` (``(H, W)`` in either). A ``mask_fn`` that is called sees the images
        as a tensor ``(N, C, H, W)`` in ``[0, 1]`` (scaled by ``clip_values``, if there are any) on the classifier's device,
        and gives its map in that layout; its labels are class indices, or None where ``y`` is None or holds targets.

        Returns:
            An array of the shape of ``x``, and of the bare attack's dtype (so that float64 images come back rounded to
            float32 from most attacks, salient elements too).

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If its shape or values do not fit; if images of an attack that looks for one universal perturbation
                have different maps.
        """
        attack = self.wrapped
        with self._lock, preserve_classifier_state(attack.estimator):
            check_inputs(x, attack.estimator.clip_values)
            guides = ART.spec_for(attack).y == "guides"
            y = check_labels(y, x, None if guides else attack.estimator.nb_classes)
            allowed = check_mask(mask, x)
            map_ = self._map(x, y, salience)
            if allowed is not None:
                map_ = map_ | torch.from_numpy(allowed == 0)
            return self._alone_if_need_be(
                lambda alone: attack_batch(attack, x, y, map_, allowed, kwargs, alone=alone), map_
            )

    def _map(self, x: np.ndarray, y: np.ndarray | None, given: SalienceMap | None = None) -> Tensor:
        """The map of a batch in its own layout, on the CPU."""
        source = self.mask_fn if given is None else given
        estimator = self.wrapped.estimator
        first = getattr(estimator, "channels_first", True)
        if callable(source):
            images = to_map_source(x, estimator)
            labels = None if y is None or _holds_targets(self.wrapped) else as_indices(y).to(images.device)
            map_ = prepare_mask(compute_mask(source, images, labels), images).cpu()
            return map_ if first else map_.permute(0, 2, 3, 1)
        if source is not None and source.ndim == 2 and not first:
            source = source[None, :, :, None]
        images = torch.from_numpy(np.ascontiguousarray(x))
        return prepare_mask(compute_mask(source, images, None, keyword="salience"), images)


def attack_batch(
    attack: EvasionAttack,
    x: np.ndarray,
    y: np.ndarray | None,
    salience: Tensor,
    allowed: np.ndarray | None,
    kwargs: dict[str, Any],
    *,
    alone: bool = False,
) -> np.ndarray:
    """Run a bare attack, or one that is wrapped itself, with every step projected; arguments are checked already."""
    # A wrapped member of a wrapped attack: what either map marks is salient.
    while isinstance(attack, SalienceArtAttack):
        salience = salience | attack._map(x, y)
        alone |= attack.one_by_one
        attack = attack.wrapped
    spec = ART.spec_for(attack)
    if spec.native == "attribute" and attack.mask is not None:
        own = check_mask(attack.mask, x)
        allowed = own if allowed is None else own * (allowed != 0)
    if allowed is not None:
        salience = salience | torch.from_numpy(allowed == 0)
    salience = one_map_if_empty(salience)
    if spec.universal:
        salience = _shared(attack, salience)
    at_once = spec.at_once if bool(salience.any()) else "all"
    with call_lock(attack), preserve_classifier_state(attack.estimator):
        size = 1 if alone else {"all": len(x), "batch": getattr(attack, "batch_size", len(x)), "one": 1}[at_once]
        if size >= len(x) and not spec.starts:
            return _attack_part(attack, spec, x, y, salience, allowed, kwargs, None)
        return _attack_parts(attack, spec, size, x, y, salience, allowed, kwargs)


def _attack_parts(
    attack: EvasionAttack,
    spec: ArtSpec,
    size: int,
    x: np.ndarray,
    y: np.ndarray | None,
    salience: Tensor,
    allowed: np.ndarray | None,
    kwargs: dict[str, Any],
) -> np.ndarray:
    """Run an attack on ``size`` images at a time, and show its progress over all of them.

    Images of which nothing may change are left out: attacks that search for a starting point would fail or never end.
    """
    infers = spec.infers_range and attack.estimator.clip_values is None
    value_range = (x.min(), x.max()) if infers else None
    per_image = {name: kwargs[name] for name in _PER_IMAGE if kwargs.get(name) is not None}
    free = np.flatnonzero(~salience.expand(len(x), -1, -1, -1).flatten(1).all(1).numpy())
    first_iteration = vars(attack).get("curr_iter")
    results: dict[int, np.ndarray] = {}
    with silent_progress(attack) as verbose, tqdm(total=len(x), desc=type(attack).__name__, disable=not verbose) as bar:
        bar.update(len(x) - len(free))
        for start in range(0, len(free), size):
            rows = free[start : start + size]
            if kwargs.get("resume") and first_iteration is not None:
                attack.curr_iter = first_iteration  # each image goes on where the last call ended
            with budgets_of(attack, rows, len(x)):
                part = _attack_part(
                    attack,
                    spec,
                    x[rows],
                    None if y is None else y[rows],
                    salience_rows(salience, torch.from_numpy(rows)),
                    allowed if allowed is None or len(allowed) == 1 else allowed[rows],
                    {**kwargs, **{name: np.array(given[rows]) for name, given in per_image.items()}},
                    value_range,
                )
            results.update(zip(rows.tolist(), part, strict=True))
            bar.update(len(rows))
    dtype = next(iter(results.values())).dtype if results else x.dtype
    return np.stack([results.get(row, x[row]) for row in range(len(x))]).astype(dtype, copy=False)


def _attack_part(
    attack: EvasionAttack,
    spec: ArtSpec,
    x: np.ndarray,
    y: np.ndarray | None,
    salience: Tensor,
    allowed: np.ndarray | None,
    kwargs: dict[str, Any],
    value_range: tuple[Any, Any] | None,
) -> np.ndarray:
    images = torch.from_numpy(np.array(x))  # a copy: an attack may write into what it is handed
    known, own = ART.registered_name(attack) is not None, ART.is_own(attack)
    selections = RowSelections(images) if own and bool(salience.any()) else None
    projection = EstimatorProjection(
        images,
        salience,
        dtype=network_dtype(attack.estimator),
        selections=selections,
        masked=own and spec.native == "argument",
        in_place=spec.mechanism is Mechanism.ITERATE,
        exempt=torch.from_numpy(np.asarray(y)) if spec.y == "guides" and y is not None else None,
    )
    with ExitStack() as stack:
        if spec.native:
            free = np.broadcast_to(1.0 if allowed is None else allowed, x.shape)
            native = np.where(salience.numpy(), 0, free).astype(np.float32)
            if spec.native == "argument":
                kwargs = {**kwargs, "mask": native}
            else:
                stack.enter_context(patched_attribute(attack, "mask", native))
        if spec.mechanism is MEMBERS:
            stack.enter_context(_members_projected(attack, spec, salience, selections))
        else:
            stack.enter_context(estimators_projected(attack, projection, value_range))
        if spec.starts:
            stack.enter_context(starts_projected(attack, spec.starts, projection))
        try:
            given = x.copy(order="K") if selections is None else watched_array(x, selections)
            adversarial = attack.generate(given, y, **kwargs)
        except AssertionError as error:
            if not spec.starts:
                raise
            raise ValueError(
                f"{type(attack).__name__} found no adversarial starting point for one of the {len(x)} images, and ART "
                "gives up on all of them then. With a map fewer points are adversarial: give it x_adv_init=... or "
                "starting_points=..., which have to be so with their salient elements as in the image, or raise init_size."
            ) from error
    result = _selected(attack, adversarial, images, salience)
    if spec.mechanism is Mechanism.ITERATE and bool(salience.any()):
        check_ball(attack, torch.from_numpy(result), images)
    if not known:
        warn_if_not_queried(attack, projection, np.array_equal(result, x))
    return result


def _selected(attack: EvasionAttack, adversarial: Any, images: Tensor, salience: Tensor) -> np.ndarray:
    given = adversarial
    if isinstance(adversarial, np.ndarray):
        given = torch.from_numpy(np.ascontiguousarray(adversarial))
        images = images.to(given.dtype)
    result: np.ndarray = project_result(attack, given, images, salience).numpy()
    return result


# --- what an attack holds, for the length of a call --------------------------------------------------------------------


@contextmanager
def _members_projected(
    attack: EvasionAttack, spec: ArtSpec, salience: Tensor, selections: RowSelections | None
) -> Iterator[None]:
    """Have the attacks that an attack is made of project their own steps."""
    made: list[MemberProxy] = []
    run = _Run(salience, None if spec.universal else selections)

    def stand_in(member: EvasionAttack) -> MemberProxy:
        made.append(MemberProxy(member, run, method="generate"))
        return made[-1]

    get_attack = getattr(attack, "_get_attack", None)

    def get_stand_in(*args: Any) -> MemberProxy:
        return stand_in(get_attack(*args))  # type: ignore[misc]

    name = "_get_attack" if spec.universal else "attacks"
    value: Any = get_stand_in if spec.universal else [stand_in(member) for member in attack.attacks]
    try:
        with ExitStack() as stack:
            for member in getattr(attack, "attacks", ()):
                stack.enter_context(preserve_classifier_state(member.estimator))
            stack.enter_context(patched_attribute(attack, name, value))
            yield
    finally:
        for member in made:
            member.release()


class _Run:
    """What a composite's stand-ins do when they are called; a class, because ART's parallel AutoAttack pickles it."""

    def __init__(self, salience: Tensor, selections: RowSelections | None) -> None:
        self.salience, self.selections = salience, selections

    def __call__(self, member: EvasionAttack, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """Attack some images of the batch with their maps."""
        maps = self.salience if self.selections is None else salience_rows(self.salience, self.selections.of(len(x)))
        return attack_batch(member, np.asarray(x), y, maps, None, kwargs)


# --- what can be wrapped ------------------------------------------------------------------------------------------------


def _check_attack(attack: Any) -> None:
    """Refuse what cannot be made to preserve salience.

    Raises:
        TypeError: If it is no evasion attack on images by a PyTorch classifier, and why.
    """
    if isinstance(attack, SalienceArtAttack):
        return  # a wrapped member
    name = type(attack).__name__
    if not isinstance(attack, EvasionAttack):
        raise TypeError(
            f"{name} is no evasion attack (art.attacks.EvasionAttack), so it perturbs no images to be wrapped."
        )
    ART.check_supported(attack)
    known = ART.registered_name(attack)
    estimator = attack.estimator
    if not (isinstance(estimator, PyTorchEstimator) and isinstance(estimator, ClassifierMixin)):
        raise TypeError(
            f"{name} attacks a {type(estimator).__name__}; sip-plugin works on PyTorch networks. Wrap the network in an "
            "art.estimators.classification.PyTorchClassifier."
        )
    members = attack.attacks if known == "AutoAttack" else ()
    for member in members:
        _check_attack(member)
    for inner in inner_attacks(attack) if known is None else ():
        _check_attack(inner)
        spec = ART.spec_for(inner)
        if isinstance(inner, SalienceArtAttack) or spec.mechanism is MEMBERS or spec.at_once != "all":
            raise TypeError(
                f"{name} is built upon {type(inner).__name__}, whose steps cannot be projected from outside. Wrap that "
                "attack instead: SIPWrapper(inner, mask_fn)."
            )


def _holds_targets(attack: EvasionAttack) -> bool:
    return attack.targeted or ART.spec_for(attack).y != "labels"


def _shared(attack: EvasionAttack, salience: Tensor) -> Tensor:
    """The one map of all images, for an attack that looks for one perturbation of all images."""
    if bool((salience != salience[:1]).any()):
        raise ValueError(
            f"{type(attack).__name__} looks for one perturbation of all images, which cannot keep to a map for each of "
            "them. Give one map: (H, W) or (1, C, H, W)."
        )
    return salience[:1]


# --- the face of ART's base classes, which reaches the wrapped attack ---------------------------------------------------


def _delegate(name: str) -> None:
    def method(self: SalienceArtAttack, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.wrapped, name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = getattr(Attack, name).__doc__
    setattr(SalienceArtAttack, name, method)


for _name in ("set_params", "is_estimator_valid", "_check_params"):
    _delegate(_name)
for _name in (
    "estimator",
    "summary_writer",
    "estimator_requirements",
    "targeted",
    "attack_params",
    "_estimator_requirements",
):
    setattr(SalienceArtAttack, _name, property(operator.attrgetter(f"wrapped.{_name}")))
