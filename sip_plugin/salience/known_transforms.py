"""The transforms of torchvision: which move an image and its map alike, and which cannot and why."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_V2 = "torchvision.transforms.v2"
_CONTAINERS = ("Compose", "RandomApply", "RandomChoice", "RandomOrder")
_MOVE_BOTH = (
    "CenterCrop ElasticTransform Pad RandomAffine RandomCrop RandomHorizontalFlip RandomPerspective RandomResize "
    "RandomResizedCrop RandomRotation RandomShortestSize RandomVerticalFlip RandomZoomOut Resize ScaleJitter"
)
_MOVE_NOTHING = (
    "ColorJitter ConvertImageDtype GaussianBlur GaussianNoise Grayscale Identity JPEG Normalize PILToTensor RGB "
    "RandomAdjustSharpness RandomAutocontrast RandomChannelPermutation RandomEqualize RandomErasing RandomGrayscale "
    "RandomInvert RandomPhotometricDistort RandomPosterize RandomSolarize ToDtype ToImage ToTensor"
)
KNOWN = frozenset((*_CONTAINERS, *_MOVE_BOTH.split(), *_MOVE_NOTHING.split()))
_NO_FILL_FOR_A_MAP = ("Pad", "RandomCrop", "RandomZoomOut")
_MOVES_ONLY_THE_IMAGE = (
    "moves the image and not the map. Use the single transforms (v2.RandomRotation, v2.ColorJitter, …)"
)
MIXES_CHANNELS = (
    "moves values between channels, and these maps differ from channel to channel. Use per-pixel maps "
    "(GradientSalience(…, per_pixel=True))"
)
REFUSED = {
    **dict.fromkeys(("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix"), _MOVES_ONLY_THE_IMAGE),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "makes several images of one. Use v2.RandomCrop"),
    **dict.fromkeys(("CutMix", "MixUp"), "mixes the images of a batch, and there is no map of a mixture"),
    "LinearTransformation": "mixes all elements of an image, after which they have no position",
    "RandomIoUCrop": "needs bounding boxes. Use v2.RandomResizedCrop",
    "ToPureTensor": "takes away by what later ones know image and map. Leave it out: SalientDataset gives plain tensors",
    "ToPILImage": "makes the image one that Pillow moves, whose rounding differs from that of the map. Leave it a tensor",
    "UniformTemporalSubsample": "is for videos",
}
PER_ELEMENT = dict.fromkeys(
    ("ColorJitter", "Grayscale", "RandomChannelPermutation", "RandomGrayscale", "RandomPhotometricDistort"),
    MIXES_CHANNELS,
)


def check_transform(transform: Any, refused: Mapping[str, str]) -> bool:
    """Whether all parts are known to move image and map alike; refuse those that cannot.

    Args:
        transform: A transform, or a container of some.
        refused: Names of transforms of torchvision, each with what speaks against it.

    Raises:
        TypeError: If there is such a one, one of the old torchvision.transforms, or one that does not take (image, map).
    """
    kinds = [(kind.__module__, kind.__name__) for kind in type(transform).__mro__]
    if any(module.startswith("torchvision.transforms.") and not module.startswith(_V2) for module, _ in kinds):
        raise TypeError(
            f"{type(transform).__name__} is of the old torchvision.transforms, which move images alone; take "
            f"torchvision.transforms.v2.{type(transform).__name__}, which moves image and map together."
        )
    if isinstance(transform, nn.Sequential):
        raise TypeError("nn.Sequential hands on one thing, not image and map together; take v2.Compose.")
    _check_takes_both(transform)
    module, name = kinds[0]
    own = module.startswith(_V2)
    for base_module, base in kinds:
        if base_module.startswith(_V2) and base in refused and not _keeps_channels(transform, base):
            raise TypeError(f"v2.{base} {refused[base]}.")
        if base_module.startswith(_V2) and base in _NO_FILL_FOR_A_MAP:
            _check_fill(transform, base)
    known = own and name in KNOWN
    parts = getattr(transform, "transforms", None)
    if isinstance(parts, (list, tuple, nn.ModuleList)):
        unknown = [part for part in parts if not check_transform(part, refused)]
        known = known and not unknown
    return known


def _keeps_channels(transform: Any, name: str) -> bool:
    return name == "ColorJitter" and not getattr(transform, "saturation", None) and not getattr(transform, "hue", None)


def _check_takes_both(transform: Any) -> None:
    name = getattr(transform, "__name__", type(transform).__name__)
    if isinstance(transform, type):
        raise TypeError(f"transform must be a transform, got the class {name}: {name}(…) makes one.")
    if (getattr(transform, "__module__", None) or "").startswith(f"{_V2}.functional") and inspect.isfunction(transform):
        raise TypeError(
            f"v2.functional.{name} takes one thing, not image and map. Take the transform of torchvision.transforms.v2, or "
            f"lambda image, salience: ({name}(image, …), {name}(salience, …))."
        )
    try:
        signature = inspect.signature(transform.forward if isinstance(transform, nn.Module) else transform)
    except (TypeError, ValueError):  # a builtin does not say
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"The transform {name}{signature} cannot be called as transform(image, map): {error}."
        ) from error


def _check_fill(transform: Any, name: str) -> None:
    if isinstance(getattr(transform, "fill", None), (list, tuple)):
        raise TypeError(
            f"v2.{name} cannot fill a map with {transform.fill}. Write fill={{tv_tensors.Image: {transform.fill}, "
            "tv_tensors.Mask: 0}."
        )
