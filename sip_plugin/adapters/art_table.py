"""Every image attack of ART 1.20 and how it is projected, and those that are refused. This file needs no ART."""

from __future__ import annotations

import dataclasses
from typing import Literal

from sip_plugin.adapters.projection import Mechanism

QUERY, ITERATE, MEMBERS = Mechanism.QUERY, Mechanism.ITERATE, Mechanism.MEMBERS


@dataclasses.dataclass(frozen=True)
class ArtEntry:
    """How one attack is projected.

    Attributes:
        mechanism: Where its steps are projected: at its queries to the estimator; there and in the queried array itself,
            which is its iterate; or in the attacks it is made of.
        native: The name of its own mask (1 = may change) if it has one that can be trusted with a map for each image:
            the argument of ``generate``, or an attribute. It is used besides the projection.
        at_once: What one call of its ``generate`` is handed, if the map marks anything: all images, its own ``batch_size``
            of them, or one. Not all where it queries parts of a batch in a way that does not tell which images they are.
        y: What ``y`` holds, besides the targets of an attack that is ``targeted``.
        infers_range: Whether it takes the images' range from the batch where the classifier has no ``clip_values``.
        universal: Whether it looks for one perturbation of all images, so that they must have one map.
        starts: Its method that finds one image's starting point, called for each image in order.
        reason: A remark for the documentation.
    """

    mechanism: Mechanism = QUERY
    native: Literal["", "argument", "attribute"] = ""
    at_once: Literal["all", "batch", "one"] = "all"
    y: Literal["labels", "targets", "guides"] = "labels"
    infers_range: bool = False
    universal: bool = False
    starts: str = ""
    reason: str = ""


_GRADIENT = ArtEntry(native="argument")
_UNMASKED_START = ArtEntry(ITERATE, reason="its own mask leaves the random start as it is and is not cut to the images")
_UNIVERSAL = (
    "the attack that finds its steps is projected; one perturbation cannot keep to a map for each image: that is an "
    "error, give one map"
)
_FAR = "starts far from the image, so each image has a call to itself"

TABLE: dict[str, ArtEntry] = {
    "FastGradientMethod": _GRADIENT,
    "BasicIterativeMethod": _GRADIENT,
    "ProjectedGradientDescent": _GRADIENT,
    "ProjectedGradientDescentNumpy": _GRADIENT,
    "ProjectedGradientDescentPyTorch": _GRADIENT,
    "MomentumIterativeMethod": _GRADIENT,
    "AutoProjectedGradientDescent": _UNMASKED_START,
    "AutoConjugateGradient": _UNMASKED_START,
    "RescalingAutoConjugateGradient": _UNMASKED_START,
    "AutoAttack": ArtEntry(MEMBERS, reason="each of its attacks as in its own row"),
    "CarliniL0Method": ArtEntry(native="attribute", infers_range=True),
    "CarliniL2Method": ArtEntry(at_once="batch", infers_range=True, reason="its variable lives in tanh space"),
    "CarliniLInfMethod": ArtEntry(at_once="one", infers_range=True, reason="its variable lives in tanh space"),
    "ElasticNet": ArtEntry(),
    "DeepFool": ArtEntry(),
    "NewtonFool": ArtEntry(),
    "UniversalPerturbation": ArtEntry(MEMBERS, universal=True, reason=_UNIVERSAL),
    "TargetedUniversalPerturbation": ArtEntry(MEMBERS, y="targets", universal=True, reason=_UNIVERSAL),
    "VirtualAdversarialMethod": ArtEntry(),
    "SaliencyMapMethod": ArtEntry(y="targets", at_once="batch"),
    "SquareAttack": ArtEntry(ITERATE, reason="squares on salient elements would eat the L2 budget"),
    "SimBA": ArtEntry(at_once="one"),
    "ZooAttack": ArtEntry(at_once="batch"),
    "HopSkipJump": ArtEntry(native="argument", at_once="one", infers_range=True, reason=_FAR),
    "BoundaryAttack": ArtEntry(at_once="one", infers_range=True, reason=_FAR),
    "GeoDA": ArtEntry(at_once="one", infers_range=True, reason=_FAR),
    "SignOPTAttack": ArtEntry(at_once="one", reason=_FAR),
    "BrendelBethgeAttack": ArtEntry(starts="_init_sample", reason="starts far from the image; its batch is one search"),
    "PixelAttack": ArtEntry(at_once="one"),
    "ThresholdAttack": ArtEntry(at_once="one"),
    "Wasserstein": ArtEntry(
        reason="moves intensity; where that is forbidden, the result may lie outside its Wasserstein ball"
    ),
    "ShadowAttack": ArtEntry(y="targets", reason="takes one image"),
    "FeatureAdversariesNumpy": ArtEntry(y="guides"),
    "FeatureAdversariesPyTorch": ArtEntry(y="guides", at_once="batch"),
}
"""Every image evasion attack by the name of its class; an attack of the user's own is projected at its queries."""

_MOVES = "it moves pixels, so that no element keeps its place and none can be held at its clean value"
_PATCH = "it places a patch, whose place is its own to choose"
_PHYSICAL = "it simulates a physical change of the whole scene"
_OBJECTS = "it attacks object detectors, not classifiers of images"
_AUDIO = "it attacks speech recognition, not images"
_TENSORFLOW = "it needs TensorFlow, and sip-plugin works on PyTorch networks"

REFUSED: dict[str, str] = {
    "AdversarialPatch": _PATCH,
    "AdversarialPatchNumpy": _PATCH,
    "AdversarialPatchPyTorch": _PATCH,
    "AdversarialPatchTensorFlowV2": _PATCH,
    "AdversarialTexturePyTorch": "it attacks object trackers on video, not classifiers of images",
    "CarliniWagnerASR": _AUDIO,
    "CompositeAdversarialAttackPyTorch": "it turns and recolours whole images, so that salient elements change",
    "DPatch": _PATCH,
    "DecisionTreeAttack": "it attacks decision trees, not networks",
    "FeatureAdversariesTensorFlowV2": _TENSORFLOW,
    "FrameSaliencyAttack": "it attacks sequences of frames, not images",
    "GRAPHITEBlackbox": _PHYSICAL,
    "GRAPHITEWhiteboxPyTorch": _PHYSICAL,
    "HighConfidenceLowUncertainty": "it attacks Gaussian processes, not networks",
    "ImperceptibleASR": _AUDIO,
    "ImperceptibleASRPyTorch": _AUDIO,
    "LaserAttack": _PHYSICAL,
    "LowProFool": "it attacks tabular data, not images",
    "MalwareGDTensorFlow": "it attacks malware detectors, not images",
    "OverTheAirFlickeringPyTorch": "it attacks video, not images",
    "OverloadPyTorch": _OBJECTS,
    "ProjectedGradientDescentTensorFlowV2": _TENSORFLOW,
    "RobustDPatch": _PATCH,
    "SNAL": _OBJECTS,
    "SpatialTransformation": _MOVES,
}
"""Evasion attacks that cannot be made to preserve salience, and why."""


def known_name(attack: object) -> str | None:
    """The class of ART's evasion attacks that ``attack`` is, or is derived from."""
    kinds = (kind for kind in type(attack).__mro__ if kind.__module__.startswith("art.attacks.evasion."))
    return next((kind.__name__ for kind in kinds if kind.__name__ in TABLE or kind.__name__ in REFUSED), None)


def entry_of(attack: object) -> ArtEntry:
    """How an attack is projected: at its queries, if it is none of ART's own nor derived from one."""
    name = known_name(attack)
    return ArtEntry() if name is None else TABLE[name]
