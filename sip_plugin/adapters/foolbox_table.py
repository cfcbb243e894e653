"""Every attack of Foolbox 3.3 and how it is projected, and those that are refused. This file needs no Foolbox."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FoolboxEntry:
    """How one attack is projected: at its queries, which are always the whole batch in its order, and at its result.

    Attributes:
        start: Its method that draws a random start, if salient elements would eat the budget of its norm there.
        searches_start: Whether it fails as a whole where it finds no adversarial starting point for one of the images.
        reason: A remark for the documentation.
    """

    start: str = ""
    searches_start: bool = False
    reason: str = ""


_QUERY = FoolboxEntry()
_DESCENT = FoolboxEntry(
    start="get_random_start", reason="its random start is projected too, or it would eat the budget"
)
_FROM_FAR = FoolboxEntry(searches_start=True, reason="images of which nothing may change are left out")
_NO_QUERY = FoolboxEntry(reason="asks only whether its result is adversarial")

TABLE: dict[str, FoolboxEntry] = {
    "L2ContrastReductionAttack": _NO_QUERY,
    "VirtualAdversarialAttack": _QUERY,
    "DDNAttack": _QUERY,
    **{
        f"{norm}{kind}": _DESCENT
        for norm in ("L1", "L2", "Linf")
        for kind in (
            "ProjectedGradientDescentAttack",
            "AdamProjectedGradientDescentAttack",
            "BasicIterativeAttack",
            "AdamBasicIterativeAttack",
            "MomentumIterativeFastGradientMethod",
            "FastGradientAttack",
        )
    },
    "L2AdditiveGaussianNoiseAttack": _NO_QUERY,
    "L2AdditiveUniformNoiseAttack": _NO_QUERY,
    "L2ClippingAwareAdditiveGaussianNoiseAttack": _NO_QUERY,
    "L2ClippingAwareAdditiveUniformNoiseAttack": _NO_QUERY,
    "LinfAdditiveUniformNoiseAttack": _NO_QUERY,
    "L2RepeatedAdditiveGaussianNoiseAttack": _QUERY,
    "L2RepeatedAdditiveUniformNoiseAttack": _QUERY,
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": _QUERY,
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": _QUERY,
    "LinfRepeatedAdditiveUniformNoiseAttack": _QUERY,
    "SparseL1DescentAttack": _DESCENT,
    "InversionAttack": _NO_QUERY,
    "BinarySearchContrastReductionAttack": _QUERY,
    "LinearSearchContrastReductionAttack": _QUERY,
    "L2CarliniWagnerAttack": FoolboxEntry(reason="its variable lives in tanh space"),
    "NewtonFoolAttack": _QUERY,
    "EADAttack": _QUERY,
    "GaussianBlurAttack": _QUERY,
    "L2DeepFoolAttack": _QUERY,
    "LinfDeepFoolAttack": _QUERY,
    "SaltAndPepperNoiseAttack": _QUERY,
    "LinearSearchBlendedUniformNoiseAttack": _QUERY,
    "BinarizationRefinementAttack": FoolboxEntry(
        reason="refines `starting_points`, which are projected by its queries"
    ),
    "BoundaryAttack": _FROM_FAR,
    "HopSkipJumpAttack": _FROM_FAR,
    "L0BrendelBethgeAttack": _FROM_FAR,
    "L1BrendelBethgeAttack": _FROM_FAR,
    "L2BrendelBethgeAttack": _FROM_FAR,
    "LinfinityBrendelBethgeAttack": _FROM_FAR,
    "L0FMNAttack": _QUERY,
    "L1FMNAttack": _QUERY,
    "L2FMNAttack": _QUERY,
    "LInfFMNAttack": _QUERY,
    "GenAttack": _QUERY,
    "PointwiseAttack": _FROM_FAR,
}
"""Every attack of Foolbox by the name of its class; one of the user's own is projected at its queries."""

REFUSED: dict[str, str] = {
    "SpatialAttack": "it moves pixels, so that no element keeps its place and none can be held at its clean value",
    "DatasetAttack": "it takes over whole images by what the model said of them before, so it has no steps to project",
}
"""Attacks that cannot be made to preserve salience, and why."""


def known_name(attack: object) -> str | None:
    """The class of Foolbox's attacks that ``attack`` is, or is derived from."""
    kinds = (kind for kind in type(attack).__mro__ if kind.__module__.startswith("foolbox.attacks."))
    return next((kind.__name__ for kind in kinds if kind.__name__ in TABLE or kind.__name__ in REFUSED), None)


def entry_of(attack: object) -> FoolboxEntry:
    """How an attack is projected: at its queries, if it is none of Foolbox's own nor derived from one."""
    name = known_name(attack)
    return FoolboxEntry() if name is None else TABLE[name]
