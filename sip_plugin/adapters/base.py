"""What every wrapped attack shares: finding and checking the map, reaching the attack's attributes, one by one."""

from __future__ import annotations

import copy
import functools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sip_plugin.adapters.projection import UnknownRowsError
from sip_plugin.constraint import SalienceMap, prepare_mask, project
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask

_Result = TypeVar("_Result")
_OWN = frozenset({"wrapped", "mask_fn", "one_by_one"})
_locks: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


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

    # --- the attack's own attributes ---

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
        source = self.mask_fn
        if isinstance(source, (Tensor, np.ndarray)):
            shown = f"map of shape {tuple(source.shape)}"
        else:
            shown = getattr(source, "__qualname__", None) or repr(source)
        alone = self.one_by_one or self._queries_unknown_rows
        return f"SIPWrapper({self.wrapped!r}, mask_fn={shown}{', one_by_one=True' if alone else ''})"

    # --- one call ---

    def _attack(self, images: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Run the wrapped attack on one batch with its checked map."""
        raise NotImplementedError  # each library's adapter has its own

    def _attack_rows(self, images: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Run the wrapped attack on the batch, or on each of its images in turn."""

        def run(alone: bool) -> Tensor:
            parts = split_batch(images, labels, salience, 1 if alone else len(images))
            return concat([self._attack(*part, args, kwargs) for part in parts])

        return self._alone_if_need_be(run, salience)

    def _alone_if_need_be(self, run: Callable[[bool], _Result], salience: Tensor) -> _Result:
        """What ``run(False)`` gives; or ``run(True)``, image by image, if wanted or if a query's rows cannot be known."""
        if not self.one_by_one and not (self._queries_unknown_rows and bool(salience.any())):
            try:
                return run(False)
            except UnknownRowsError as unknown:
                self.__dict__["_queries_unknown_rows"] = True
                warnings.warn(
                    f"Which images the queries of {type(self.wrapped).__name__} are about cannot be known. {unknown} Each "
                    "image is attacked in a batch of its own from now on, as with one_by_one=True.",
                    RuntimeWarning,
                    stacklevel=4,
                )
        return run(True)

    def salience(self, images: Tensor, labels: Tensor | None, mask: SalienceMap | None = None) -> Tensor:
        """The binary map for a batch: ``mask`` if given, else what ``mask_fn`` says.

        Returns:
            A ``bool`` tensor broadcastable to ``(N, C, H, W)``.

        Raises:
            TypeError: If the map is not a tensor or array.
            ValueError: If there is no map, or :func:`sip_plugin.constraint.prepare_mask` refuses it.
        """
        return one_map_if_empty(
            prepare_mask(compute_mask(self.mask_fn if mask is None else mask, images, labels), images)
        )


def call_lock(attack: Any) -> Any:
    """An attack's lock: its model is swapped during a call, so its calls take turns, whichever wrapper they go through.

    It lives as long as somebody holds it. A composite takes its own and then, one after the other, those of its members.
    """
    return _locks.setdefault(id(attack), threading.RLock())


@contextmanager
def patched_attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an object's own attribute for the length of a block.

    Past any ``__setattr__``: torchattacks' would keep it (and with it the images) alive in a mutable default argument.
    """
    missing = object()
    before = vars(holder).get(name, missing)
    vars(holder)[name] = value
    try:
        yield
    finally:
        if before is missing:
            del vars(holder)[name]
        else:
            vars(holder)[name] = before


def one_map_if_empty(salience: Tensor) -> Tensor:
    """The maps, as one for all images where they mark nothing: there are no rows to be told apart then."""
    return salience if bool(salience.any()) else salience[:1, :1, :1, :1]


def split_batch(
    images: Tensor, labels: Tensor | None, salience: Tensor, size: int
) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Images, labels and maps of ``size`` images at a time; the batch itself, not copied, where that is all of it."""
    if size >= len(images):
        return [(images, labels, salience)]
    pieces = images.split(size)
    each = [None] * len(pieces) if labels is None else labels.split(size)
    maps = [salience] * len(pieces) if len(salience) == 1 else salience.split(size)
    return list(zip(pieces, each, maps, strict=True))


def concat(parts: list[Tensor]) -> Tensor:
    """The parts of a batch in one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def project_result(attack: Any, adversarial: Any, images: Tensor, salience: Tensor) -> Tensor:
    """An attack's result with the clean values on salient elements.

    Raises:
        RuntimeError: If it is not a batch of images of the clean ones' shape.
    """
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        got = tuple(adversarial.shape) if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise RuntimeError(
            f"{attack!r} returned {got} where adversarial images of shape {tuple(images.shape)} were expected."
        )
    result = project(adversarial.detach(), images.detach(), salience)
    broken = ~result.isfinite().flatten(1).all(1) & salience.flatten(1).any(1)
    if bool(broken.any()):
        # Attacks that divide by the gradient's norm give NaN where it is zero on all the elements left to them.
        warnings.warn(
            f"{type(attack).__name__} gave NaN or infinity for {int(broken.sum())} of {len(images)} images "
            f"(indices {broken.nonzero().flatten().tolist()[:10]}), most likely because the gradient is zero on all "
            "their non-salient elements; their clean images are returned.",
            RuntimeWarning,
            stacklevel=3,
        )
        result = torch.where(broken[:, None, None, None], images, result)
    return result


def check_ball(attack: Any, adversarial: Tensor, images: Tensor) -> None:
    """Refuse a result outside the ball of radius ``attack.eps`` in ``attack.norm``, in which the bare attack stays.

    Raises:
        RuntimeError: If an image has changed by more than that and rounding.
    """
    order = {"Linf": math.inf, "inf": math.inf, "L2": 2.0, "L1": 1.0}.get(attack.norm, attack.norm)
    if not (adversarial.is_floating_point() and images.is_floating_point()):
        return
    pairs = zip(adversarial.split(32), images.split(32), strict=True)  # never the whole batch once more in memory
    size = max(float(torch.linalg.vector_norm((a - x).flatten(1).float(), order, dim=1).max()) for a, x in pairs)
    precision = max(torch.finfo(tensor.dtype).eps for tensor in (adversarial, images))
    rounding = 4 * precision * float(images.abs().max()) * images[0].numel() ** (1 / order)
    if size > attack.eps * (1 + 1e-4) + rounding:
        raise RuntimeError(
            f"{type(attack).__name__} left its ball: it changed an image by {size:g} in {attack.norm}, and eps is "
            f"{attack.eps:g}. If the bare attack does not, that is an error of sip-plugin; please report it."
        )
