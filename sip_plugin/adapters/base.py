"""What every wrapped attack shares: finding and checking the map, reaching the attack's attributes, one by one."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.constraint import SalienceMap, prepare_mask, project
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask

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
        self.__dict__["_lock"] = call_lock(attack)

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
        return _rebuild, (self.wrapped, self.mask_fn, self.one_by_one)

    def __repr__(self) -> str:
        source = self.mask_fn
        if isinstance(source, (Tensor, np.ndarray)):
            shown = f"map of shape {tuple(source.shape)}"
        else:
            shown = getattr(source, "__qualname__", None) or repr(source)
        return f"SIPWrapper({self.wrapped!r}, mask_fn={shown}{', one_by_one=True' if self.one_by_one else ''})"

    # --- one call ---

    def _attack(self, images: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Run the wrapped attack on one batch with its checked map."""
        raise NotImplementedError  # each library's adapter has its own

    def _attack_rows(self, images: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Run the wrapped attack on the batch, or on each of its images in turn."""
        parts = split_batch(images, labels, salience, 1 if self.one_by_one else len(images))
        return joined([self._attack(*part, args, kwargs) for part in parts])

    def salience(self, images: Tensor, labels: Tensor | None, mask: SalienceMap | None = None) -> Tensor:
        """The binary map for a batch: ``mask`` if given, else what ``mask_fn`` says.

        Returns:
            A ``bool`` tensor broadcastable to ``(N, C, H, W)``.

        Raises:
            TypeError: If the map is not a tensor or array.
            ValueError: If there is no map, or :func:`sip_plugin.constraint.prepare_mask` refuses it.
        """
        return prepare_mask(compute_mask(self.mask_fn if mask is None else mask, images, labels), images)


def call_lock(attack: Any) -> Any:
    """An attack's lock: its model is swapped during a call, so its calls take turns, whichever wrapper they go through.

    It lives as long as somebody holds it. A composite takes its own and then, one after the other, those of its members.
    """
    return _locks.setdefault(id(attack), threading.RLock())


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
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


def joined(parts: list[Tensor]) -> Tensor:
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


def _rebuild(attack: Any, mask_fn: MaskSource, one_by_one: bool) -> Any:
    """Unpickle through the front door: an adapter's class may be made for the attack's class."""
    from sip_plugin.wrapper import SIPWrapper

    return SIPWrapper(attack, mask_fn, one_by_one=one_by_one)
