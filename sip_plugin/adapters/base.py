"""What every wrapped attack shares: finding and checking the map, reaching the attack's attributes, one by one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import operator
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sip_plugin.adapters.projection import UnknownRowsError, salience_rows
from sip_plugin.constraint import SalienceMap, prepare_mask, project
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask
from sip_plugin.utils import attack_name, short_repr

_Result = TypeVar("_Result")
_OWN = frozenset({"wrapped", "mask_fn", "one_by_one"})
_PER_IMAGE = ("x_adv_init", "starting_points")  # arguments of an attack that hold one row for each image
_locks: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True)
class Batch:
    """What an attack is handed: images and what belongs to each of them.

    Attributes:
        images: ``(N, ...)``, a tensor or an array.
        labels: One row for each image, or None.
        salience: Their binary map, one row for each image or one for all.
        args, kwargs: The attack's own further arguments.
    """

    images: Any
    labels: Any
    salience: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def marked(self) -> bool:
        """Whether the map marks anything."""
        return bool(self.salience.any())

    def marking(self, more: Tensor) -> Batch:
        """The batch, of which ``more`` is salient, too."""
        return dataclasses.replace(self, salience=self.salience | more)

    def take(self, rows: Any) -> Batch:
        """Some of the images, by a slice or an index."""
        count = len(self.images)

        def cut(value: Any, known: bool = False) -> Any:
            known |= isinstance(value, Tensor) and value.shape[:1] == (count,) and value.dim() != 3  # (C, 1, 1)
            return value[rows] if known and value is not None else value

        return dataclasses.replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            salience=salience_rows(self.salience, rows),
            args=tuple(map(cut, self.args)),
            kwargs={name: cut(value, name in _PER_IMAGE) for name, value in self.kwargs.items()},
        )

    def split(self, size: int) -> list[Batch]:
        """``size`` images at a time; the batch itself where that is all of it."""
        count = len(self.images)
        if size >= count:
            return [self]
        return [self.take(slice(start, start + size)) for start in range(0, count, size)]

    def in_parts(self, size: int, run: Callable[[Batch], _Result]) -> _Result:
        """What ``run`` gives for ``size`` images at a time, joined tensor by tensor; as it is where that is all of them."""
        found = list(map(run, self.split(size)))
        return found[0] if len(found) == 1 else map_tensors(lambda *parts: torch.cat(parts), *found)


class SalienceAttack:
    """An attack of another library whose every step leaves salient elements alone.

    Attributes of the wrapped attack are read and set through this object; its own are ``wrapped``, ``mask_fn`` and
    ``one_by_one``. See :class:`sip_plugin.SIPWrapper` for the arguments.
    """

    wrapped: Any
    mask_fn: MaskSource
    one_by_one: bool

    def __init__(self, attack: Any, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        self.wrapped = attack
        self.mask_fn = mask_fn
        self.one_by_one = one_by_one
        self.__dict__.update(_lock=call_lock(attack), _queries_unknown_rows=False)

    def __getattr__(self, name: str) -> Any:
        # Only reached for what this object lacks. Not for dunders, nor before __init__ (copy and pickle build us bare).
        if (name.startswith("__") and name.endswith("__")) or "wrapped" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            self.__dict__[name] = check_mask_source(value) if name == "mask_fn" else value
        else:
            setattr(self.wrapped, name, value)

    def __copy__(self) -> SalienceAttack:
        return type(self)(copy.copy(self.wrapped), self.mask_fn, one_by_one=self.one_by_one)

    def __reduce__(self) -> Any:
        return functools.partial(type(self), one_by_one=self.one_by_one), (self.wrapped, self.mask_fn)

    def __repr__(self) -> str:
        alone = self.one_by_one or self._queries_unknown_rows
        attack = attack_name(self.wrapped) if isinstance(self.wrapped, functools.partial) else repr(self.wrapped)
        return f"SIPWrapper({attack}, mask_fn={short_repr(self.mask_fn)}{', one_by_one=True' if alone else ''})"

    def _alone_if_need_be(self, run: Callable[[bool], _Result], salience: Tensor) -> _Result:
        """What ``run(False)`` gives; or ``run(True)``, image by image, if wanted or if a query's rows cannot be known."""
        if not self.one_by_one and not (self._queries_unknown_rows and bool(salience.any())):
            try:
                return run(False)
            except UnknownRowsError as unknown:
                self.__dict__["_queries_unknown_rows"] = True
                warnings.warn(
                    f"Which images the queries of {attack_name(self.wrapped)} are about cannot be known. {unknown} Each "
                    "image is attacked in a batch of its own from now on, as with one_by_one=True.",
                    RuntimeWarning,
                    stacklevel=4,
                )
        return run(True)

    def salience(self, images: Tensor, labels: Tensor | None, mask: SalienceMap | None = None) -> Tensor:
        """The binary map for a batch, broadcastable to ``(N, C, H, W)``: ``mask`` if given, else what ``mask_fn`` says."""
        source = self.mask_fn if mask is None else mask
        return one_map_if_empty(prepare_mask(compute_mask(source, images, labels), images))


def delegate(kind: type, names: Iterable[str]) -> None:
    """Let attributes of a library's base class be the wrapped attack's, which may override them."""
    for name in names:
        setattr(kind, name, property(operator.attrgetter(f"wrapped.{name}")))


def attacks_in(attack: Any, kind: type) -> list[Any]:
    """The attacks of a library that an attack is built upon, to any depth but for what a wrapped one is built upon."""
    found = [attack]
    for holder in found:
        for held in () if isinstance(holder, SalienceAttack) else vars(holder).values():
            parts = held if isinstance(held, (list, tuple)) else [held]
            found += [part for part in parts if isinstance(part, kind) and part not in found]
    return found[1:]


def check_inner(attack: Any, inner: Any, projectable: bool) -> None:
    """Refuse an attack of the user's own that is built upon one which a projection of its queries would not reach."""
    if isinstance(inner, SalienceAttack) or not projectable:
        raise TypeError(
            f"{type(attack).__name__} is built upon {type(inner).__name__}, whose steps cannot be projected from outside. "
            "Wrap that attack instead: SIPWrapper(inner, mask_fn)."
        )


def call_lock(attack: Any) -> Any:
    """An attack's lock: its model is swapped during a call, so its calls take turns, whichever wrapper they go through.

    It lives as long as somebody holds it. A composite takes its own and then, one after the other, those of its members.
    """
    return _locks.setdefault(id(attack), threading.RLock())


def one_map_if_empty(salience: Tensor) -> Tensor:
    """The maps, as one for all images where they mark nothing: there are no rows to be told apart then."""
    return salience if bool(salience.any()) else salience[:1, :1, :1, :1]


def map_tensors(function: Callable[..., Any], *results: Any) -> Any:
    """Apply a function to the tensors at the same place of each result: a tensor, or lists, tuples or a dict of them."""
    first = results[0]
    if isinstance(first, dict):
        return {name: map_tensors(function, *(result[name] for result in results)) for name in first}
    if isinstance(first, (list, tuple)):
        build = getattr(type(first), "_make", type(first))  # also of a named tuple
        return build(map_tensors(function, *parts) for parts in zip(*results, strict=True))
    return function(*results)


def project_result(attack: Any, adversarial: Any, images: Tensor, salience: Tensor) -> Tensor:
    """An attack's result with the clean values on salient elements; refuse one of another shape than the images'."""
    is_tensor = isinstance(adversarial, Tensor)
    if not is_tensor or adversarial.shape != images.shape or not adversarial.is_floating_point():
        got = f"{adversarial.dtype} {tuple(adversarial.shape)}" if is_tensor else type(adversarial).__name__
        raise RuntimeError(f"{attack_name(attack)} returned {got}, not adversarial images {tuple(images.shape)}.")
    result = project(adversarial.detach(), images.detach(), salience)
    broken = ~result.isfinite().flatten(1).all(1) & salience.flatten(1).any(1)
    if bool(broken.any()):
        # Attacks that divide by the gradient's norm give NaN where it is zero on all the elements left to them.
        warnings.warn(
            f"{attack_name(attack)} gave NaN or infinity for {int(broken.sum())} of {len(images)} images "
            f"(indices {broken.nonzero().flatten().tolist()[:10]}), most likely because the gradient is zero on all "
            "their non-salient elements; their clean images are returned.",
            RuntimeWarning,
            stacklevel=3,
        )
        result = torch.where(broken[:, None, None, None], images, result)
    return result


def check_ball(attack: Any, adversarial: Tensor, images: Tensor) -> None:
    """Refuse a result outside the ball of radius ``attack.eps`` in ``attack.norm``, in which the bare attack stays."""
    if not (adversarial.is_floating_point() and images.is_floating_point()):
        return
    order = {"Linf": math.inf, "inf": math.inf, "L2": 2.0, "L1": 1.0}.get(attack.norm, attack.norm)
    pairs = zip(adversarial.split(32), images.split(32), strict=True)  # never the whole batch once more in memory
    size = max(float(torch.linalg.vector_norm((a - x).flatten(1).float(), order, dim=1).max()) for a, x in pairs)
    precision = max(torch.finfo(tensor.dtype).eps for tensor in (adversarial, images))
    rounding = 4 * precision * float(images.abs().max()) * images[0].numel() ** (1 / order)
    if size > attack.eps * (1 + 1e-4) + rounding:
        raise RuntimeError(
            f"{type(attack).__name__} left its ball: it changed an image by {size:g} in {attack.norm}, and eps is "
            f"{attack.eps:g}. If the bare attack does not, please report it as an error of sip-plugin."
        )
