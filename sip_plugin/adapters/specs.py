"""Every attack of torchattacks 3.5, ART 1.20 and Foolbox 3.3, how it is projected, and those that are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Generic, Literal, TypeVar

from sip_plugin.adapters.projection import Mechanism

QUERY, ITERATE, MEMBERS = Mechanism.QUERY, Mechanism.ITERATE, Mechanism.MEMBERS
_Spec = TypeVar("_Spec")


@dataclasses.dataclass(frozen=True)
class Registry(Generic[_Spec]):
    """The attacks of one library by the names of their classes.

    Attributes:
        package: Where the library keeps its attacks, with a final dot.
        default: How an attack is projected that is none of the library's own nor derived from one.
        specs: How each attack is projected.
        refused: The attacks that cannot be made to preserve salience, and why.
    """

    package: str
    default: _Spec
    specs: Mapping[str, _Spec]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def registered_name(self, attack: object) -> str | None:
        """The library's class that ``attack`` is, or is derived from."""
        names = (kind.__name__ for kind in type(attack).__mro__ if kind.__module__.startswith(self.package))
        return next((name for name in names if name in self.specs or name in self.refused), None)

    def is_own(self, attack: object) -> bool:
        """Whether ``attack`` is of the library itself and not derived, so that what its spec says of its steps holds."""
        return type(attack).__module__.startswith(self.package)

    def check_supported(self, attack: object) -> None:
        """Refuse an attack that cannot be made to preserve salience, and say why."""
        reason = self.refused.get(self.registered_name(attack) or "")
        if reason is not None:
            raise TypeError(f"{type(attack).__name__} cannot be made to preserve salience: {reason}.")

    def spec_for(self, attack: object) -> _Spec:
        """How an attack is projected."""
        name = self.registered_name(attack)
        return self.default if name is None else self.specs[name]


def _by_name(groups: Mapping[_Spec, str]) -> dict[str, _Spec]:
    """Each of the names with what its group has in common."""
    return {name: common for common, names in groups.items() for name in names.split()}


# --- torchattacks -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """How one attack of torchattacks is projected.

    Attributes:
        mechanism: Where its steps are projected.
        reason: Why not its queries, or another remark for the documentation.
        alone: Whether it works on one image after the other anyhow, so that it is handed one at a time.
        selects: Whether it goes on with part of its batch, which it selects by an index.
        tiled: Whether it queries the whole batch several times in one query.
        offset: Whether its variable is the perturbation and not the image.
        contiguous: The norm in which it fails on images that are not contiguous, or "any": it gets contiguous copies.
    """

    mechanism: Mechanism = QUERY
    reason: str = ""
    alone: bool = False
    selects: bool = False
    tiled: bool = False
    offset: bool = False
    contiguous: str = ""


_EATS = "a random start on salient elements would eat the norm budget"
_SMOOTHED = "smoothing noise stays on all elements, the perturbation does not"

TORCHATTACKS = Registry(
    "torchattacks.",
    AttackSpec(),
    _by_name(
        {
            AttackSpec(): """FGSM BIM RFGSM FFGSM PGD EOTPGD TPGD UPGD MIFGSM NIFGSM VMIFGSM VNIFGSM PIFGSM PIFGSMPP EADL1
                EADEN""",
            AttackSpec(reason="makes no query"): "VANILA",
            AttackSpec(reason="makes no query: its noise is projected"): "GN",
            AttackSpec(reason="its variable lives in tanh space and is no image"): "CW",
            AttackSpec(tiled=True): "SPSA",
            AttackSpec(alone=True): "DeepFool OnePixel Pixle",
            AttackSpec(alone=True, contiguous="any"): "JSMA SparseFool",
            AttackSpec(selects=True, contiguous="any"): "FAB",
            AttackSpec(selects=True, contiguous="L2"): "Square",
            AttackSpec(ITERATE, _EATS, selects=True): "APGD APGDT",
            AttackSpec(ITERATE, _EATS, contiguous="any"): "PGDL2",
            AttackSpec(ITERATE, "the network sees a transform of the iterate"): "DIFGSM TIFGSM SINIFGSM",
            AttackSpec(ITERATE, "its loss measures the perturbation"): "Jitter",
            AttackSpec(ITERATE, _SMOOTHED, offset=True): "PGDRS PGDRSL2",
            AttackSpec(MEMBERS, "each of its members as in its own row", selects=True): "AutoAttack MultiAttack",
            AttackSpec(MEMBERS, "its attack on the collected networks as in its own row", selects=True): "LGV",
        }
    ),
)


# --- ART --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArtSpec:
    """How one attack of ART is projected.

    Attributes:
        mechanism: Where its steps are projected. ITERATE: at its queries and in the queried array, which is its iterate.
        native: Where it takes a mask of its own (1 = may change) that can be trusted with a map for each image: it is
            used besides the projection.
        at_once: What one call of its ``generate`` is handed, if the map marks anything: not all images where its queries
            about parts of a batch do not tell which images they are.
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


_UNMASKED_START = "its own mask leaves the random start as it is and is not cut to the images"
_UNIVERSAL = (
    "the attack that finds its steps is projected; one perturbation cannot keep to a map for each image: that is an "
    "error, give one map"
)
_TANH = "its variable lives in tanh space"
_FAR = "starts far from the image, so each image has a call to itself"
_ONE_SEARCH = "starts far from the image; its batch is one search"
_WASSERSTEIN = "moves intensity; where that is forbidden, the result may lie outside its Wasserstein ball"
_MOVES = "it moves pixels, so that no element keeps its place and none can be held at its clean value"

ART = Registry(
    "art.attacks.evasion.",
    ArtSpec(),
    _by_name(
        {
            ArtSpec(native="argument"): """FastGradientMethod BasicIterativeMethod MomentumIterativeMethod
                ProjectedGradientDescent ProjectedGradientDescentNumpy ProjectedGradientDescentPyTorch""",
            ArtSpec(ITERATE, reason=_UNMASKED_START): """AutoProjectedGradientDescent AutoConjugateGradient
                RescalingAutoConjugateGradient""",
            ArtSpec(MEMBERS, reason="each of its attacks as in its own row"): "AutoAttack",
            ArtSpec(native="attribute", infers_range=True): "CarliniL0Method",
            ArtSpec(at_once="batch", infers_range=True, reason=_TANH): "CarliniL2Method",
            ArtSpec(at_once="one", infers_range=True, reason=_TANH): "CarliniLInfMethod",
            ArtSpec(): "ElasticNet DeepFool NewtonFool VirtualAdversarialMethod",
            ArtSpec(MEMBERS, universal=True, reason=_UNIVERSAL): "UniversalPerturbation",
            ArtSpec(MEMBERS, y="targets", universal=True, reason=_UNIVERSAL): "TargetedUniversalPerturbation",
            ArtSpec(y="targets", at_once="batch"): "SaliencyMapMethod",
            ArtSpec(ITERATE, reason="squares on salient elements would eat the L2 budget"): "SquareAttack",
            ArtSpec(at_once="batch"): "ZooAttack",
            ArtSpec(at_once="one"): "SimBA PixelAttack ThresholdAttack",
            ArtSpec(native="argument", at_once="one", infers_range=True, reason=_FAR): "HopSkipJump",
            ArtSpec(at_once="one", infers_range=True, reason=_FAR): "BoundaryAttack GeoDA",
            ArtSpec(at_once="one", reason=_FAR): "SignOPTAttack",
            ArtSpec(starts="_init_sample", reason=_ONE_SEARCH): "BrendelBethgeAttack",
            ArtSpec(reason=_WASSERSTEIN): "Wasserstein",
            ArtSpec(y="targets", reason="takes one image"): "ShadowAttack",
            ArtSpec(y="guides"): "FeatureAdversariesNumpy",
            ArtSpec(y="guides", at_once="batch"): "FeatureAdversariesPyTorch",
        }
    ),
    _by_name(
        {
            _MOVES: "SpatialTransformation",
            "it places a patch, whose place is its own to choose": """AdversarialPatch AdversarialPatchNumpy
                AdversarialPatchPyTorch AdversarialPatchTensorFlowV2 DPatch RobustDPatch""",
            "it simulates a physical change of the whole scene": "GRAPHITEBlackbox GRAPHITEWhiteboxPyTorch LaserAttack",
            "it turns and recolours whole images, so that salient elements change": "CompositeAdversarialAttackPyTorch",
            "it needs TensorFlow, and sip-plugin works on PyTorch networks": """FeatureAdversariesTensorFlowV2
                ProjectedGradientDescentTensorFlowV2""",
            "it attacks object detectors, not classifiers of images": "OverloadPyTorch SNAL",
            "it attacks object trackers on video, not classifiers of images": "AdversarialTexturePyTorch",
            "it attacks speech recognition, not images": "CarliniWagnerASR ImperceptibleASR ImperceptibleASRPyTorch",
            "it attacks decision trees, not networks": "DecisionTreeAttack",
            "it attacks Gaussian processes, not networks": "HighConfidenceLowUncertainty",
            "it attacks sequences of frames, not images": "FrameSaliencyAttack",
            "it attacks tabular data, not images": "LowProFool",
            "it attacks malware detectors, not images": "MalwareGDTensorFlow",
            "it attacks video, not images": "OverTheAirFlickeringPyTorch",
        }
    ),
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


_DESCENT = FoolboxSpec(start="get_random_start", reason="its random start is projected too, or it would eat the budget")
_DESCENTS = """ProjectedGradientDescentAttack AdamProjectedGradientDescentAttack BasicIterativeAttack
    AdamBasicIterativeAttack MomentumIterativeFastGradientMethod FastGradientAttack"""
_REFINES = "refines `starting_points`, which are projected by its queries"
_FAR_START = FoolboxSpec(searches_start=True, reason="images of which nothing may change are left out")
_NO_QUERY = FoolboxSpec(reason="asks only whether its result is adversarial")

FOOLBOX = Registry(
    "foolbox.attacks.",
    FoolboxSpec(),
    {f"{norm}{kind}": _DESCENT for norm in ("L1", "L2", "Linf") for kind in _DESCENTS.split()}
    | _by_name(
        {
            _DESCENT: "SparseL1DescentAttack",
            _NO_QUERY: """L2AdditiveGaussianNoiseAttack L2AdditiveUniformNoiseAttack LinfAdditiveUniformNoiseAttack
                L2ClippingAwareAdditiveGaussianNoiseAttack L2ClippingAwareAdditiveUniformNoiseAttack
                L2ContrastReductionAttack InversionAttack""",
            FoolboxSpec(): """L2RepeatedAdditiveGaussianNoiseAttack L2RepeatedAdditiveUniformNoiseAttack
                LinfRepeatedAdditiveUniformNoiseAttack L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack
                L2ClippingAwareRepeatedAdditiveUniformNoiseAttack BinarySearchContrastReductionAttack
                LinearSearchContrastReductionAttack LinearSearchBlendedUniformNoiseAttack SaltAndPepperNoiseAttack
                GaussianBlurAttack VirtualAdversarialAttack DDNAttack NewtonFoolAttack EADAttack L2DeepFoolAttack
                LinfDeepFoolAttack L0FMNAttack L1FMNAttack L2FMNAttack LInfFMNAttack GenAttack""",
            FoolboxSpec(reason=_TANH): "L2CarliniWagnerAttack",
            FoolboxSpec(reason=_REFINES): "BinarizationRefinementAttack",
            _FAR_START: """BoundaryAttack HopSkipJumpAttack L0BrendelBethgeAttack L1BrendelBethgeAttack
                L2BrendelBethgeAttack LinfinityBrendelBethgeAttack PointwiseAttack""",
        }
    ),
    {
        "SpatialAttack": _MOVES,
        "DatasetAttack": "it takes over whole images by what the model said of them before, so it has no steps to project",
    },
)
