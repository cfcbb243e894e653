"""Moving an image and its salience map together, by one torchvision transform."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.salience.images import as_tensor

# What a map's elements are while a transform has them: values that no transform would fill an area with, so that whatever is
# neither of them was brought in from outside the image, and is not salient. Exact in float32.
_REST = 1_000_002.0
_SALIENT = _REST + 1

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
_KNOWN = frozenset((*_CONTAINERS, *_MOVE_BOTH.split(), *_MOVE_NOTHING.split()))
_NO_FILL_FOR_A_MAP = ("Pad", "RandomCrop", "RandomZoomOut")
_MOVES_ONLY_THE_IMAGE = (
    "moves the image and not the map. Use the single transforms (v2.RandomRotation, v2.ColorJitter, …)"
)
_MIXES_CHANNELS = "moves values between channels, and these maps differ from channel to channel. Use per-pixel maps"
_REFUSED = {
    **dict.fromkeys(("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix"), _MOVES_ONLY_THE_IMAGE),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "makes several images of one. Use v2.RandomCrop"),
    **dict.fromkeys(("CutMix", "MixUp"), "mixes the images of a batch, and there is no map of a mixture"),
    "LinearTransformation": "mixes all elements of an image, after which they have no position",
    "RandomIoUCrop": "needs bounding boxes. Use v2.RandomResizedCrop",
    "ToPureTensor": "takes away by what later ones know image and map. Leave it out: SalientDataset gives plain tensors",
    "ToPILImage": "makes the image one that Pillow moves, whose rounding differs from that of the map. Leave it a tensor",
    "UniformTemporalSubsample": "is for videos",
}
_PER_ELEMENT = dict.fromkeys(("RandomChannelPermutation", "RandomPhotometricDistort"), _MIXES_CHANNELS)
_ADVICE = (
    "Each part of it must take and give (image, map) as tv_tensors, as those of torchvision.transforms.v2 do; arithmetic "
    "gives plain tensors, which tv_tensors.wrap(result, like=given) makes one again."
)


class Together:
    """A transform that gets an image and its map in one call, and hands both back in the same place.

    Args:
        transform: A transform of ``torchvision.transforms.v2``, or a callable ``(image, map) -> (image, map)``.

    Raises:
        TypeError: If it is or contains one that cannot move both; says which one and why.
    """

    def __init__(self, transform: Callable[..., Any]) -> None:
        if not callable(transform):
            raise TypeError(f"transform must be a torchvision.transforms.v2 transform, got {type(transform).__name__}.")
        try:
            from torchvision import tv_tensors
        except ImportError as error:
            raise ImportError("A transform needs torchvision: pip install 'sip-plugin[vision]'.") from error
        self.transform = transform
        self._image, self._mask = tv_tensors.Image, tv_tensors.Mask
        self.known = _check(transform, _REFUSED)
        self._per_element = False

    def check_per_element(self) -> None:
        """Refuse what moves values between channels, for maps that differ from channel to channel.

        Raises:
            TypeError: If there is such a transform.
        """
        if not self._per_element:
            _check(self.transform, _PER_ELEMENT)
        self._per_element = True

    def __call__(self, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed image, and its map: ``bool``, of the same height and width.

        Args:
            image: ``(C, H, W)``.
            salience: ``bool``, ``(C, H, W)`` or ``(1, H, W)``.

        Raises:
            TypeError: If the transform does not give (image, map), or changed the map's dtype.
            ValueError: If map and image have other sizes afterwards.
        """
        if len(salience) > 1:
            self.check_per_element()
        # As many channels as the image has: a fill of one value a channel holds for the map too.
        coded = salience.to(torch.float32).add_(_REST).expand(len(image), -1, -1)
        if not self.known:
            coded = coded.contiguous()  # which one's own may write to
        given = self.transform(self._image(image.clone()), self._mask(coded))  # the data set keeps its own
        if not isinstance(given, (tuple, list)) or len(given) != 2 or not isinstance(given[1], Tensor):
            raise TypeError(
                f"The transform must give (image, map) for (image, map), got {_kinds(given)}. It must be one of "
                "torchvision.transforms.v2, or take and give both."
            )
        moved, coded = as_tensor(given[0], "The transformed image"), given[1].as_subclass(Tensor)
        if coded.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"The transform made the map {coded.dtype}. Leave its dtype alone (v2.ToDtype(..., others: None)): "
                "SalientDataset gives it as bool."
            )
        if coded.dim() != 3 or coded.shape[1:] != moved.shape[1:]:
            raise ValueError(
                f"After the transform the image is {tuple(moved.shape)} and its map {tuple(coded.shape)}: it did not move "
                f"both. {_ADVICE}"
            )
        if len(salience) > 1 and len(coded) != len(moved):
            raise ValueError(
                f"The map differs from channel to channel, and the transform made the image one of {len(moved)} channels "
                f"where it had {len(image)}. Use per-pixel maps."
            )
        return moved, coded[: len(salience)] == _SALIENT

    def probe(self, image: Tensor, draws: int = 16) -> None:
        """Try the transform on images with a single mark, and see whether map and mark arrive at the same place.

        For what torchvision does not vouch for: lambdas, transforms of one's own. Draws from the global random generators,
        which are put back; a transform that draws from one of its own cannot be tried.

        Args:
            image: One of the images that the transform is for, ``(C, H, W)``; only its form matters.
            draws: How often.

        Raises:
            ValueError: If a mark arrives where the map is not.
        """
        if min(image.shape[1:]) < 8:  # too small for a mark to have a place
            return
        places = torch.Generator().manual_seed(0)
        with _random_state_kept():
            for draw in range(draws):
                here, there = (_marked(image, places) for _ in range(2))
                one, again, other = (self._drawn(draw, *marked) for marked in (here, here, there))
                if one[0].shape != again[0].shape or not torch.equal(one[0], again[0]):
                    return  # it does not draw from the global generators
                self._check_place(one, other)

    def _drawn(self, seed: int, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return self(image, salience)

    def _check_place(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
        if one[0].shape != other[0].shape:
            return  # it goes by the contents
        # What colours do to both images alike cancels; what remains is where the two marks are.
        change = (one[0].double() - other[0].double()).abs().sum(0)
        if not bool(change.isfinite().all()) or change.max() < 1e-3 * max(1.0, float(one[0].double().abs().max())):
            return  # both marks are out of sight
        row, column = divmod(int(change.argmax()), change.shape[1])
        near = (one[1] | other[1])[0, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        if not bool(near.any()):
            raise ValueError(
                f"The transform moved an image and not its map: a mark arrived at row {row}, column {column}, its map did "
                f"not. {_ADVICE} The transform: {self.transform}"
            )


def _marked(image: Tensor, places: torch.Generator) -> tuple[Tensor, Tensor]:
    """A grey image with a bright square anywhere but at the edge, and the map of the square."""
    height, width = image.shape[1:]
    size = max(2, min(height, width) // 8)
    edge = min(height, width) // 6  # at which a blurred one would seem to move
    row = int(torch.randint(edge, height - size - edge + 1, (), generator=places))
    column = int(torch.randint(edge, width - size - edge + 1, (), generator=places))
    one = 1.0 if image.is_floating_point() else 255
    marked, salience = torch.full_like(image, one / 2), torch.zeros(1, height, width, dtype=torch.bool)
    salience[:, row : row + size, column : column + size] = True
    return marked.masked_fill_(salience, one), salience


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        np.random.set_state(state[2])


def _check(transform: Any, refused: dict[str, str]) -> bool:
    """Whether all parts are known to move image and map alike; refuse those that cannot."""
    kinds = [(kind.__module__, kind.__name__) for kind in type(transform).__mro__]
    if any(module.startswith("torchvision.transforms.") and not module.startswith(_V2) for module, _ in kinds):
        raise TypeError(
            f"{type(transform).__name__} is of the old torchvision.transforms, which move images alone; take "
            f"torchvision.transforms.v2.{type(transform).__name__}, which moves image and map together."
        )
    if isinstance(transform, nn.Sequential):
        raise TypeError("nn.Sequential hands on one thing, not image and map together; take v2.Compose.")
    module, name = kinds[0]
    own = module.startswith(_V2)
    for base_module, base in kinds:
        if base_module.startswith(_V2) and base in refused:
            raise TypeError(f"v2.{base} {refused[base]}.")
        if base_module.startswith(_V2) and base in _NO_FILL_FOR_A_MAP:
            _check_fill(transform, base)
    known = own and name in _KNOWN
    parts = getattr(transform, "transforms", None)
    if isinstance(parts, (list, tuple, nn.ModuleList)):
        unknown = [part for part in parts if not _check(part, refused)]
        known = known and not unknown
    return known


def _check_fill(transform: Any, name: str) -> None:
    if isinstance(getattr(transform, "fill", None), (list, tuple)):
        raise TypeError(
            f"v2.{name} cannot fill a map with {transform.fill}. Write fill={{tv_tensors.Image: {transform.fill}, "
            "tv_tensors.Mask: 0}."
        )


def _kinds(given: Any) -> str:
    if isinstance(given, (tuple, list)):
        return f"({', '.join(type(value).__name__ for value in given)})"
    return type(given).__name__
