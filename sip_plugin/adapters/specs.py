"""Every attack of torchattacks 3.5, ART 1.20 and Foolbox 3.3, how it is projected, and those that are refused.

This file needs none of the libraries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Generic, Literal, TypeVar

from sip_plugin.adapters.projection import Mechanism

QUERY, ITERATE, MEMBERS = Mechanism.QUERY, Mechanism.ITERATE, Mechanism.MEMBERS
_Spec = TypeVar("_Spec")


class Registry(Generic[_Spec]):
    """The attacks of one library by the names of their classes.

    Args:
        package: Where the library keeps its attacks, with a final dot.
        default: How an attack is projected that is none of the library's own nor derived from one.
        specs: How each attack is projected.
        refused: The attacks that cannot be made to preserve salience, and why.
    """

    def __init__(
        self, package: str, default: _Spec, specs: Mapping[str, _Spec], refused: Mapping[str, str] | None = None
    ) -> None:
        self.package, self.default, self.specs, self.refused = package, default, specs, refused or {}

    def registered_name(self, attack: object) -> str | None:
        """The library's class that ``attack`` is, or is derived from."""
        names = (kind.__name__ for kind in type(attack).__mro__ if kind.__module__.startswith(self.package))
        return next((name for name in names if name in self.specs or name in self.refused), None)

    def is_own(self, attack: object) -> bool:
        """Whether ``attack`` is of the library itself and not derived, so that what its spec says of its steps holds."""
        return type(attack).__module__.startswith(self.package)

    def check_supported(self, attack: object) -> None:
        """Refuse an attack that cannot be made to preserve salience.

        Raises:
            TypeError: If it is one; says why.
        """
        reason = self.refused.get(self.registered_name(attack) or "")
        if reason is not None:
            raise TypeError(f"{type(attack).__name__} cannot be made to preserve salience: {reason}.")

    def spec_for(self, attack: object) -> _Spec:
        """How an attack is projected."""
        name = self.registered_name(attack)
        return self.default if name is None else self.specs[name]


# --- torchattacks -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """How one attack of torchattacks is projected.

    Attributes:
        mechanism: Where its steps are projected.
        reason: Why not its queries, or another remark for the documentation.
        alone: Whether it works on one image after the other anyhow, so that handing it one at a time changes nothing but
            that each query's image is known.
        selects: Whether it goes on with part of its batch, which it selects by an index.
        tiled: Whether it queries the whole batch several times in one query.
        offset: Whether its variable is the perturbation and not the image.
    """

    mechanism: Mechanism
    reason: str = ""
    alone: bool = False
    selects: bool = False
    tiled: bool = False
    offset: bool = False


TORCHATTACKS = Registry(
    "torchattacks.",
    AttackSpec(QUERY),
    {
        "VANILA": AttackSpec(QUERY, "makes no query"),
        "GN": AttackSpec(QUERY, "makes no query: its noise is projected"),
        "FGSM": AttackSpec(QUERY),
        "BIM": AttackSpec(QUERY),
        "RFGSM": AttackSpec(QUERY),
        "PGD": AttackSpec(QUERY),
        "EOTPGD": AttackSpec(QUERY),
        "FFGSM": AttackSpec(QUERY),
        "TPGD": AttackSpec(QUERY),
        "MIFGSM": AttackSpec(QUERY),
        "UPGD": AttackSpec(QUERY),
        "APGD": AttackSpec(ITERATE, "a random start on salient elements would eat the L2 budget", selects=True),
        "APGDT": AttackSpec(ITERATE, "a random start on salient elements would eat the L2 budget", selects=True),
        "DIFGSM": AttackSpec(ITERATE, "the network sees a transform of the iterate"),
        "TIFGSM": AttackSpec(ITERATE, "the network sees a transform of the iterate"),
        "Jitter": AttackSpec(ITERATE, "its loss measures the perturbation"),
        "NIFGSM": AttackSpec(QUERY),
        "PGDRS": AttackSpec(ITERATE, "smoothing noise stays on all elements, the perturbation does not", offset=True),
        "SINIFGSM": AttackSpec(ITERATE, "the network sees a transform of the iterate"),
        "VMIFGSM": AttackSpec(QUERY),
        "VNIFGSM": AttackSpec(QUERY),
        "SPSA": AttackSpec(QUERY, tiled=True),
        "JSMA": AttackSpec(QUERY, alone=True),
        "EADL1": AttackSpec(QUERY),
        "EADEN": AttackSpec(QUERY),
        "PIFGSM": AttackSpec(QUERY),
        "PIFGSMPP": AttackSpec(QUERY),
        "CW": AttackSpec(QUERY, "its variable lives in tanh space and is no image"),
        "PGDL2": AttackSpec(ITERATE, "a random start on salient elements would eat the norm budget"),
        "DeepFool": AttackSpec(QUERY, alone=True),
        "PGDRSL2": AttackSpec(ITERATE, "smoothing noise stays on all elements, the perturbation does not", offset=True),
        "SparseFool": AttackSpec(QUERY, alone=True),
        "OnePixel": AttackSpec(QUERY, alone=True),
        "Pixle": AttackSpec(QUERY, alone=True),
        "FAB": AttackSpec(QUERY, selects=True),
        "Square": AttackSpec(QUERY, selects=True),
        "AutoAttack": AttackSpec(MEMBERS, "each of its members as in its own row", selects=True),
        "MultiAttack": AttackSpec(MEMBERS, "each of its members as in its own row", selects=True),
        "LGV": AttackSpec(MEMBERS, "its attack on the collected networks as in its own row", selects=True),
    },
)


# --- ART --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArtSpec:
    """How one attack of ART is projected.

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


_GRADIENT = ArtSpec(native="argument")
_UNMASKED_START = ArtSpec(ITERATE, reason="its own mask leaves the random start as it is and is not cut to the images")
_UNIVERSAL = (
    "the attack that finds its steps is projected; one perturbation cannot keep to a map for each image: that is an "
    "error, give one map"
)
_FAR = "starts far from the image, so each image has a call to itself"

_MOVES = "it moves pixels, so that no element keeps its place and none can be held at its clean value"
_PATCH = "it places a patch, whose place is its own to choose"
_PHYSICAL = "it simulates a physical change of the whole scene"
_OBJECTS = "it attacks object detectors, not classifiers of images"
_AUDIO = "it attacks speech recognition, not images"
_TENSORFLOW = "it needs TensorFlow, and sip-plugin works on PyTorch networks"

ART = Registry(
    "art.attacks.evasion.",
    ArtSpec(),
    {
        "FastGradientMethod": _GRADIENT,
        "BasicIterativeMethod": _GRADIENT,
        "ProjectedGradientDescent": _GRADIENT,
        "ProjectedGradientDescentNumpy": _GRADIENT,
        "ProjectedGradientDescentPyTorch": _GRADIENT,
        "MomentumIterativeMethod": _GRADIENT,
        "AutoProjectedGradientDescent": _UNMASKED_START,
        "AutoConjugateGradient": _UNMASKED_START,
        "RescalingAutoConjugateGradient": _UNMASKED_START,
        "AutoAttack": ArtSpec(MEMBERS, reason="each of its attacks as in its own row"),
        "CarliniL0Method": ArtSpec(native="attribute", infers_range=True),
        "CarliniL2Method": ArtSpec(at_once="batch", infers_range=True, reason="its variable lives in tanh space"),
        "CarliniLInfMethod": ArtSpec(at_once="one", infers_range=True, reason="its variable lives in tanh space"),
        "ElasticNet": ArtSpec(),
        "DeepFool": ArtSpec(),
        "NewtonFool": ArtSpec(),
        "UniversalPerturbation": ArtSpec(MEMBERS, universal=True, reason=_UNIVERSAL),
        "TargetedUniversalPerturbation": ArtSpec(MEMBERS, y="targets", universal=True, reason=_UNIVERSAL),
        "VirtualAdversarialMethod": ArtSpec(),
        "SaliencyMapMethod": ArtSpec(y="targets", at_once="batch"),
        "SquareAttack": ArtSpec(ITERATE, reason="squares on salient elements would eat the L2 budget"),
        "SimBA": ArtSpec(at_once="one"),
        "ZooAttack": ArtSpec(at_once="batch"),
        "HopSkipJump": ArtSpec(native="argument", at_once="one", infers_range=True, reason=_FAR),
        "BoundaryAttack": ArtSpec(at_once="one", infers_range=True, reason=_FAR),
        "GeoDA": ArtSpec(at_once="one", infers_range=True, reason=_FAR),
        "SignOPTAttack": ArtSpec(at_once="one", reason=_FAR),
        "BrendelBethgeAttack": ArtSpec(
            starts="_init_sample", reason="starts far from the image; its batch is one search"
        ),
        "PixelAttack": ArtSpec(at_once="one"),
        "ThresholdAttack": ArtSpec(at_once="one"),
        "Wasserstein": ArtSpec(
            reason="moves intensity; where that is forbidden, the result may lie outside its Wasserstein ball"
        ),
        "ShadowAttack": ArtSpec(y="targets", reason="takes one image"),
        "FeatureAdversariesNumpy": ArtSpec(y="guides"),
        "FeatureAdversariesPyTorch": ArtSpec(y="guides", at_once="batch"),
    },
    {
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
    },
)


# --- Foolbox ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FoolboxSpec:
    """How one attack of Foolbox is projected: at its queries, which are the whole batch in its order, and at its result.

    Attributes:
        start: Its method that draws a random start, if salient elements would eat the budget of its norm there.
        searches_start: Whether it fails as a whole where it finds no adversarial starting point for one of the images.
        reason: A remark for the documentation.
    """

    start: str = ""
    searches_start: bool = False
    reason: str = ""


_FOOLBOX_QUERY = FoolboxSpec()
_DESCENT = FoolboxSpec(start="get_random_start", reason="its random start is projected too, or it would eat the budget")
_FROM_FAR = FoolboxSpec(searches_start=True, reason="images of which nothing may change are left out")
_NO_QUERY = FoolboxSpec(reason="asks only whether its result is adversarial")

FOOLBOX = Registry(
    "foolbox.attacks.",
    FoolboxSpec(),
    {
        "L2ContrastReductionAttack": _NO_QUERY,
        "VirtualAdversarialAttack": _FOOLBOX_QUERY,
        "DDNAttack": _FOOLBOX_QUERY,
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
        "L2RepeatedAdditiveGaussianNoiseAttack": _FOOLBOX_QUERY,
        "L2RepeatedAdditiveUniformNoiseAttack": _FOOLBOX_QUERY,
        "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": _FOOLBOX_QUERY,
        "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": _FOOLBOX_QUERY,
        "LinfRepeatedAdditiveUniformNoiseAttack": _FOOLBOX_QUERY,
        "SparseL1DescentAttack": _DESCENT,
        "InversionAttack": _NO_QUERY,
        "BinarySearchContrastReductionAttack": _FOOLBOX_QUERY,
        "LinearSearchContrastReductionAttack": _FOOLBOX_QUERY,
        "L2CarliniWagnerAttack": FoolboxSpec(reason="its variable lives in tanh space"),
        "NewtonFoolAttack": _FOOLBOX_QUERY,
        "EADAttack": _FOOLBOX_QUERY,
        "GaussianBlurAttack": _FOOLBOX_QUERY,
        "L2DeepFoolAttack": _FOOLBOX_QUERY,
        "LinfDeepFoolAttack": _FOOLBOX_QUERY,
        "SaltAndPepperNoiseAttack": _FOOLBOX_QUERY,
        "LinearSearchBlendedUniformNoiseAttack": _FOOLBOX_QUERY,
        "BinarizationRefinementAttack": FoolboxSpec(
            reason="refines `starting_points`, which are projected by its queries"
        ),
        "BoundaryAttack": _FROM_FAR,
        "HopSkipJumpAttack": _FROM_FAR,
        "L0BrendelBethgeAttack": _FROM_FAR,
        "L1BrendelBethgeAttack": _FROM_FAR,
        "L2BrendelBethgeAttack": _FROM_FAR,
        "LinfinityBrendelBethgeAttack": _FROM_FAR,
        "L0FMNAttack": _FOOLBOX_QUERY,
        "L1FMNAttack": _FOOLBOX_QUERY,
        "L2FMNAttack": _FOOLBOX_QUERY,
        "LInfFMNAttack": _FOOLBOX_QUERY,
        "GenAttack": _FOOLBOX_QUERY,
        "PointwiseAttack": _FROM_FAR,
    },
    {
        "SpatialAttack": "it moves pixels, so that no element keeps its place and none can be held at its clean value",
        "DatasetAttack": "it takes over whole images by what the model said of them before, so it has no steps to project",
    },
)
