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

    mechanism: Mechanism = QUERY
    reason: str = ""
    alone: bool = False
    selects: bool = False
    tiled: bool = False
    offset: bool = False


_EATS = "a random start on salient elements would eat the norm budget"
_TRANSFORMED = AttackSpec(ITERATE, "the network sees a transform of the iterate")
_SMOOTHED = AttackSpec(ITERATE, "smoothing noise stays on all elements, the perturbation does not", offset=True)

TORCHATTACKS = Registry(
    "torchattacks.",
    AttackSpec(),
    {
        **dict.fromkeys(("FGSM", "BIM", "RFGSM", "FFGSM", "PGD", "EOTPGD", "TPGD", "UPGD"), AttackSpec()),
        **dict.fromkeys(("MIFGSM", "NIFGSM", "VMIFGSM", "VNIFGSM", "PIFGSM", "PIFGSMPP"), AttackSpec()),
        **dict.fromkeys(("EADL1", "EADEN"), AttackSpec()),
        "VANILA": AttackSpec(reason="makes no query"),
        "GN": AttackSpec(reason="makes no query: its noise is projected"),
        "CW": AttackSpec(reason="its variable lives in tanh space and is no image"),
        "SPSA": AttackSpec(tiled=True),
        **dict.fromkeys(("JSMA", "DeepFool", "SparseFool", "OnePixel", "Pixle"), AttackSpec(alone=True)),
        **dict.fromkeys(("FAB", "Square"), AttackSpec(selects=True)),
        **dict.fromkeys(("APGD", "APGDT"), AttackSpec(ITERATE, _EATS, selects=True)),
        "PGDL2": AttackSpec(ITERATE, _EATS),
        **dict.fromkeys(("DIFGSM", "TIFGSM", "SINIFGSM"), _TRANSFORMED),
        "Jitter": AttackSpec(ITERATE, "its loss measures the perturbation"),
        **dict.fromkeys(("PGDRS", "PGDRSL2"), _SMOOTHED),
        **dict.fromkeys(
            ("AutoAttack", "MultiAttack"), AttackSpec(MEMBERS, "each of its members as in its own row", selects=True)
        ),
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
_TANH = "its variable lives in tanh space"
_FAR = "starts far from the image, so each image has a call to itself"
_PATCHES = ("AdversarialPatch", "AdversarialPatchNumpy", "AdversarialPatchPyTorch", "AdversarialPatchTensorFlowV2")
_MOVES = "it moves pixels, so that no element keeps its place and none can be held at its clean value"

ART = Registry(
    "art.attacks.evasion.",
    ArtSpec(),
    {
        **dict.fromkeys(("FastGradientMethod", "BasicIterativeMethod", "MomentumIterativeMethod"), _GRADIENT),
        **{f"ProjectedGradientDescent{framework}": _GRADIENT for framework in ("", "Numpy", "PyTorch")},
        "AutoProjectedGradientDescent": _UNMASKED_START,
        "AutoConjugateGradient": _UNMASKED_START,
        "RescalingAutoConjugateGradient": _UNMASKED_START,
        "AutoAttack": ArtSpec(MEMBERS, reason="each of its attacks as in its own row"),
        "CarliniL0Method": ArtSpec(native="attribute", infers_range=True),
        "CarliniL2Method": ArtSpec(at_once="batch", infers_range=True, reason=_TANH),
        "CarliniLInfMethod": ArtSpec(at_once="one", infers_range=True, reason=_TANH),
        **dict.fromkeys(("ElasticNet", "DeepFool", "NewtonFool", "VirtualAdversarialMethod"), ArtSpec()),
        "UniversalPerturbation": ArtSpec(MEMBERS, universal=True, reason=_UNIVERSAL),
        "TargetedUniversalPerturbation": ArtSpec(MEMBERS, y="targets", universal=True, reason=_UNIVERSAL),
        "SaliencyMapMethod": ArtSpec(y="targets", at_once="batch"),
        "SquareAttack": ArtSpec(ITERATE, reason="squares on salient elements would eat the L2 budget"),
        "ZooAttack": ArtSpec(at_once="batch"),
        **dict.fromkeys(("SimBA", "PixelAttack", "ThresholdAttack"), ArtSpec(at_once="one")),
        "HopSkipJump": ArtSpec(native="argument", at_once="one", infers_range=True, reason=_FAR),
        "BoundaryAttack": ArtSpec(at_once="one", infers_range=True, reason=_FAR),
        "GeoDA": ArtSpec(at_once="one", infers_range=True, reason=_FAR),
        "SignOPTAttack": ArtSpec(at_once="one", reason=_FAR),
        "BrendelBethgeAttack": ArtSpec(
            starts="_init_sample", reason="starts far from the image; its batch is one search"
        ),
        "Wasserstein": ArtSpec(
            reason="moves intensity; where that is forbidden, the result may lie outside its Wasserstein ball"
        ),
        "ShadowAttack": ArtSpec(y="targets", reason="takes one image"),
        "FeatureAdversariesNumpy": ArtSpec(y="guides"),
        "FeatureAdversariesPyTorch": ArtSpec(y="guides", at_once="batch"),
    },
    {
        "SpatialTransformation": _MOVES,
        **dict.fromkeys((*_PATCHES, "DPatch", "RobustDPatch"), "it places a patch, whose place is its own to choose"),
        **dict.fromkeys(
            ("GRAPHITEBlackbox", "GRAPHITEWhiteboxPyTorch", "LaserAttack"),
            "it simulates a physical change of the whole scene",
        ),
        **dict.fromkeys(("OverloadPyTorch", "SNAL"), "it attacks object detectors, not classifiers of images"),
        **dict.fromkeys(
            ("CarliniWagnerASR", "ImperceptibleASR", "ImperceptibleASRPyTorch"),
            "it attacks speech recognition, not images",
        ),
        **dict.fromkeys(
            ("FeatureAdversariesTensorFlowV2", "ProjectedGradientDescentTensorFlowV2"),
            "it needs TensorFlow, and sip-plugin works on PyTorch networks",
        ),
        "AdversarialTexturePyTorch": "it attacks object trackers on video, not classifiers of images",
        "CompositeAdversarialAttackPyTorch": "it turns and recolours whole images, so that salient elements change",
        "DecisionTreeAttack": "it attacks decision trees, not networks",
        "FrameSaliencyAttack": "it attacks sequences of frames, not images",
        "HighConfidenceLowUncertainty": "it attacks Gaussian processes, not networks",
        "LowProFool": "it attacks tabular data, not images",
        "MalwareGDTensorFlow": "it attacks malware detectors, not images",
        "OverTheAirFlickeringPyTorch": "it attacks video, not images",
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


_DESCENT = FoolboxSpec(start="get_random_start", reason="its random start is projected too, or it would eat the budget")
_FROM_FAR = FoolboxSpec(searches_start=True, reason="images of which nothing may change are left out")
_NO_QUERY = FoolboxSpec(reason="asks only whether its result is adversarial")
_NORMS = ("L1", "L2", "Linf")
_DESCENTS = (
    "ProjectedGradientDescentAttack",
    "AdamProjectedGradientDescentAttack",
    "BasicIterativeAttack",
    "AdamBasicIterativeAttack",
    "MomentumIterativeFastGradientMethod",
    "FastGradientAttack",
)
_NOISE = (  # each of them also as "...Repeated..."
    ("L2", "AdditiveGaussianNoiseAttack"),
    ("L2", "AdditiveUniformNoiseAttack"),
    ("L2ClippingAware", "AdditiveGaussianNoiseAttack"),
    ("L2ClippingAware", "AdditiveUniformNoiseAttack"),
    ("Linf", "AdditiveUniformNoiseAttack"),
)
_PLAIN = """
    VirtualAdversarialAttack DDNAttack BinarySearchContrastReductionAttack LinearSearchContrastReductionAttack
    NewtonFoolAttack EADAttack GaussianBlurAttack L2DeepFoolAttack LinfDeepFoolAttack SaltAndPepperNoiseAttack
    LinearSearchBlendedUniformNoiseAttack L0FMNAttack L1FMNAttack L2FMNAttack LInfFMNAttack GenAttack
"""

FOOLBOX = Registry(
    "foolbox.attacks.",
    FoolboxSpec(),
    {
        **{f"{norm}{kind}": _DESCENT for norm in _NORMS for kind in _DESCENTS},
        "SparseL1DescentAttack": _DESCENT,
        **{f"{norm}{kind}": _NO_QUERY for norm, kind in _NOISE},
        **dict.fromkeys(("L2ContrastReductionAttack", "InversionAttack"), _NO_QUERY),
        **{f"{norm}Repeated{kind}": FoolboxSpec() for norm, kind in _NOISE},
        **dict.fromkeys(_PLAIN.split(), FoolboxSpec()),
        "L2CarliniWagnerAttack": FoolboxSpec(reason=_TANH),
        "BinarizationRefinementAttack": FoolboxSpec(
            reason="refines `starting_points`, which are projected by its queries"
        ),
        **{f"{norm}BrendelBethgeAttack": _FROM_FAR for norm in ("L0", "L1", "L2", "Linfinity")},
        **dict.fromkeys(("BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"), _FROM_FAR),
    },
    {
        "SpatialAttack": _MOVES,
        "DatasetAttack": "it takes over whole images by what the model said of them before, so it has no steps to project",
    },
)
