"""``SIPWrapper``: finds the adapter that knows an attack's library."""

from __future__ import annotations

from abc import ABC
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from sip_plugin.adapters.autoattack import SalienceAutoAttack, adapter, is_autoattack
from sip_plugin.adapters.base import SalienceAttack
from sip_plugin.adapters.generic import SalienceCallable, SalienceFunction
from sip_plugin.mask_source import MaskSource

_SUPPORTED = (
    "Supported are the attacks of torchattacks (FGSM, PGD, AutoAttack, ...), the evasion attacks of ART on a "
    "PyTorchClassifier, the attacks of Foolbox, AutoAttack of pyautoattack and autoattack, and any object that is called as "
    "attack(images, labels) and keeps its network in the attribute .model, or functools.partial(function, model, ...)."
)


class _TorchAttack(Protocol):
    def __call__(self, images: Any, labels: Any, /, *, mask: Any) -> Any: ...


class _ArtAttack(Protocol):
    def generate(self, x: Any, y: Any, /, *, salience: Any) -> Any: ...


class _FoolboxAttack(Protocol):
    def __call__(self, model: Any, inputs: Any, criterion: Any, /, *, epsilons: Any, mask: Any) -> Any: ...


class _AutoAttack(Protocol):
    def run_standard_evaluation(self, x_orig: Any, y_orig: Any, /) -> Any: ...


class _Callable(Protocol):
    model: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


_Attack = TypeVar("_Attack", bound=_TorchAttack | _ArtAttack | _FoolboxAttack)


class SIPWrapper(ABC):  # noqa: B024  (abstract only so that adapters can register as its subclasses)
    """Turn an attack into one whose every step leaves salient elements alone: ``δ' = δ·(1 − M)`` (SIP-AT, eq. 9).

    The result is an object of the attack's own library (``isinstance(w, torchattacks.attack.Attack)`` holds) and is called
    as the bare attack is. Its attributes are the attack's: ``w.eps = 4/255`` reaches it. Where the map is 0 everywhere the
    result equals the bare attack's bit for bit under the same seed; where it is 1 everywhere it is the clean images.

    A query of as many rows as the batch is taken to have its order. The libraries' own attacks that go on with part of their
    batch are watched as they select it, so each row's image is known. Any other attack that asks about another number of
    rows runs one image at a time, and a ``RuntimeWarning`` and the ``repr`` say so.

    Args:
        attack: The attack. It, its model and the caller's tensors are as before after a call, also when the call raises.
        mask_fn: A callable ``(images, labels) -> map`` or ``(images) -> map``, or a map itself: ``bool`` or {0, 1} of any
            dtype, ``(H, W)`` or four-dimensional and broadcastable to ``(N, C, H, W)``; 1 marks a salient element. None if
            each call brings its own: ``attack(images, labels, mask=...)``.
        one_by_one: Attack each image in a batch of its own. Exact for any attack, slower, and not the bare attack's
            random draws on the batch.

    Raises:
        TypeError: If the attack is not of a supported kind, or ``mask_fn`` is neither callable nor a map.

    Example:
        >>> attack = SIPWrapper(torchattacks.PGD(model, eps=8/255, alpha=2/255, steps=10), mask_fn)
        >>> adversarial = attack(images, labels)
    """

    if TYPE_CHECKING:  # for mypy before version 2, which takes the wrapped attack for one of this class
        __call__: Any

        def __getattr__(self, name: str) -> Any: ...

    @overload
    def __new__(  # type: ignore[misc]
        cls, attack: partial[Any], mask_fn: MaskSource = None, *, one_by_one: bool = False
    ) -> SalienceFunction: ...
    @overload  # the libraries' attacks take any keyword, so their own types are also those of the wrapped ones
    def __new__(cls, attack: _Attack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> _Attack: ...  # type: ignore[misc]
    @overload
    def __new__(  # type: ignore[misc]
        cls, attack: _AutoAttack, mask_fn: MaskSource = None, *, one_by_one: bool = False
    ) -> SalienceAutoAttack: ...
    @overload
    def __new__(  # type: ignore[misc]
        cls, attack: _Callable, mask_fn: MaskSource = None, *, one_by_one: bool = False
    ) -> SalienceCallable: ...
    def __new__(cls, attack: Any, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> Any:
        """The wrapped attack, an instance of the adapter's class."""
        return _adapter(attack)(attack, mask_fn, one_by_one=one_by_one)


SIPWrapper.register(SalienceAttack)


def _adapter(attack: Any) -> type[SalienceAttack]:
    if isinstance(attack, SalienceAttack):
        raise TypeError("The attack is wrapped already. Combine the maps (logical or) and wrap the bare attack once.")
    # By the names of the classes' modules, so that no library is imported that the caller has not imported.
    modules = [kind.__module__ for kind in type(attack).__mro__]
    if any(name.split(".")[0] == "torchattacks" for name in modules):
        from sip_plugin.adapters.torchattacks import SalienceTorchAttack

        return SalienceTorchAttack
    if any(name.startswith("art.attacks.") for name in modules):
        from sip_plugin.adapters.art import SalienceArtAttack

        return SalienceArtAttack
    if any(name.startswith("foolbox.attacks.") for name in modules):
        from sip_plugin.adapters.foolbox import adapter_of

        return adapter_of(attack)
    if is_autoattack(attack):
        return adapter(type(attack))  # type: ignore[arg-type]
    if isinstance(attack, partial):
        return SalienceFunction
    if callable(attack) and callable(getattr(attack, "model", None)):
        return SalienceCallable
    what = f"the class {attack.__qualname__}" if isinstance(attack, type) else f"an object of {type(attack)}"
    raise TypeError(f"Cannot wrap {what}. {_SUPPORTED}")
