"""torchattacks 3.5: the wrapper is a ``torchattacks.attack.Attack`` and is called like one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

try:
    from torchattacks.attack import Attack
except ImportError as error:
    raise ImportError("torchattacks is not installed: pip install 'sip-plugin[torchattacks]'") from error

from sip_plugin.adapters.base import SalienceAttack
from sip_plugin.adapters.projection import BatchProjection, IterateProjection, Mechanism, ProjectedModel
from sip_plugin.constraint import SalienceMap, check_images, check_labels
from sip_plugin.salience_source import MaskSource
from sip_plugin.state import preserved

MECHANISMS: dict[str, Mechanism] = {
    "FGSM": Mechanism.QUERY,
    "BIM": Mechanism.QUERY,
    "PGD": Mechanism.QUERY,
    "MIFGSM": Mechanism.QUERY,
    "CW": Mechanism.QUERY,  # its variable lives in tanh space and is no image
    "Square": Mechanism.QUERY,
    "PGDL2": Mechanism.ITERATE,  # a start on salient elements would eat the norm budget
    "APGD": Mechanism.ITERATE,  # likewise with norm="L2"
    "DIFGSM": Mechanism.ITERATE,  # the network sees a transform of the iterate
    "TIFGSM": Mechanism.ITERATE,
}
"""How each attack is projected, by the name of its class."""

_COMPOSITES = frozenset({"AutoAttack", "MultiAttack", "LGV"})
_NORMALIZED_TOLERANCE = 1e-5  # pixels that were normalised and back miss [0, 1] by rounding


class SalienceTorchAttack(SalienceAttack, Attack):  # type: ignore[misc]
    """A torchattacks attack whose every step leaves salient elements alone."""

    def __init__(self, attack: Attack, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        name = _table_name(attack)
        if name in _COMPOSITES:
            raise TypeError(
                f"torchattacks.{name} is made of other attacks and is not supported yet. Wrap its members instead: "
                "MultiAttack([SIPWrapper(a, mask_fn), SIPWrapper(b, mask_fn)])."
            )
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
        attack = self.wrapped
        with self._lock, preserved(attack.model):
            inputs, labels = self._checked(inputs, labels)
            salience = self.salience(inputs, labels, mask)
            return self._attack_rows(inputs, labels, salience, args, kwargs)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The same as a call."""
        return self(inputs, labels, *args, **kwargs)

    def _checked(self, inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attack = self.wrapped
        if attack._normalization_applied is True and isinstance(inputs, Tensor):
            check_images(
                attack.inverse_normalize(inputs),
                name="inputs (de-normalised)",
                tolerance=_NORMALIZED_TOLERANCE,
            )
        else:
            check_images(inputs, name="inputs")
        inputs = inputs.detach().to(attack.device or inputs.device)
        return inputs, None if labels is None else check_labels(labels, inputs)

    def _attack(self, inputs: Tensor, labels: Tensor | None, salience: Tensor, args: Any, kwargs: Any) -> Tensor:
        attack = self.wrapped
        if _mechanism(attack) is Mechanism.QUERY:
            model = ProjectedModel(attack.model, BatchProjection(inputs, salience))
            mode: Any = nullcontext()
        else:
            # The iterate lives in [0, 1] even where the caller's inputs are normalised.
            clean = attack.inverse_normalize(inputs) if attack._normalization_applied is True else inputs
            mode = IterateProjection(BatchProjection(clean, salience))
            model = ProjectedModel(attack.model, None, mode)
        with _model_swapped(attack, model), mode:
            adversarial = attack(inputs, labels, *args, **kwargs)
        return self._project_result(adversarial, inputs, salience)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """torchattacks' ``save(data_loader, ...)``, with this object's own calls in it."""
        with preserved(self.wrapped.model):
            return type(self.wrapped).save(self, *args, **kwargs)


@contextmanager
def _model_swapped(attack: Attack, model: ProjectedModel) -> Iterator[None]:
    """Give ``attack`` another model for the length of a block.

    Past ``Attack.__setattr__``, which would keep the model (and with it the images) alive in a mutable default argument;
    and past its normalisation flag, which it leaves reversed when an attack raises.
    """
    before, applied = attack.model, attack._normalization_applied
    attack.__dict__["model"] = model
    try:
        yield
    finally:
        attack.__dict__["model"] = before
        if attack._normalization_applied is not applied:
            attack._set_normalization_applied(applied)


def _table_name(attack: Attack) -> str:
    """The torchattacks class that ``attack`` is, or is derived from."""
    known = MECHANISMS.keys() | _COMPOSITES
    return next((kind.__name__ for kind in type(attack).__mro__ if kind.__name__ in known), type(attack).__name__)


def _mechanism(attack: Attack) -> Mechanism:
    return MECHANISMS.get(_table_name(attack), Mechanism.QUERY)


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
