"""A data set that returns each image with its salience map, both transformed alike by its augmentation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from sip_plugin.constraint import prepare_mask
from sip_plugin.salience.images import as_tensor, get_image_label, to_float
from sip_plugin.salience.store import MaskStore
from sip_plugin.utils import isolated_rng

Item = tuple[Tensor, Any, Tensor]  # image, label, map

# A map's elements during a transform: exact in float32, and no fill value. Whatever else is in it came from outside.
_NOT_SALIENT = 1_000_002.0
_SALIENT = _NOT_SALIENT + 1

_V2 = "torchvision.transforms.v2"
# Those that move image and map together, or the image's values alone.
_TRUSTED = (
    "CenterCrop ColorJitter Compose ConvertImageDtype ElasticTransform GaussianBlur GaussianNoise Grayscale Identity JPEG "
    "Normalize PILToTensor Pad RGB RandomAdjustSharpness RandomAffine RandomApply RandomAutocontrast "
    "RandomChannelPermutation RandomChoice RandomCrop RandomEqualize RandomErasing RandomGrayscale RandomHorizontalFlip "
    "RandomInvert RandomOrder RandomPerspective RandomPhotometricDistort RandomPosterize RandomResize RandomResizedCrop "
    "RandomRotation RandomShortestSize RandomSolarize RandomVerticalFlip RandomZoomOut Resize ScaleJitter ToDtype ToImage "
    "ToTensor"
)
_MIXES_CHANNELS = {"RandomChannelPermutation", "RandomPhotometricDistort"}
# What torchvision refuses itself for a map (AutoAugment, FiveCrop, MixUp, …) is not here.
_REFUSED = {
    "LinearTransformation": "mixes all elements of the image, after which they have no position",
    "ToPILImage": "lets Pillow transform the image, which rounds positions differently. Leave it out",
    "ToPureTensor": "removes the types by which later transforms know image and map. Leave it out",
}


class JointTransform:
    """A transform of an image together with its salience map, which stays binary and aligned with the image.

    Elements that the transform brings in from outside the image (padding, fill) are not salient.

    Args:
        transform: A transform of ``torchvision.transforms.v2``, or a callable ``(image, map) -> (image, map)``.

    Raises:
        ImportError: If torchvision is not installed.
        TypeError: If it is or contains a transform that a map cannot follow.
    """

    def __init__(self, transform: Callable[..., Any]) -> None:
        try:
            from torchvision import tv_tensors
        except ImportError as error:
            raise ImportError("A transform needs torchvision: pip install 'sip-plugin[vision]'.") from error
        self.transform = transform
        self._image, self._mask = tv_tensors.Image, tv_tensors.Mask
        parts = _parts(transform)
        names = {base.__name__ for part in parts for base in type(part).__mro__ if base.__module__.startswith(_V2)}
        for name in names & _REFUSED.keys():
            raise TypeError(f"A salience map cannot follow v2.{name}, which {_REFUSED[name]}.")
        self._mixes_channels = names & _MIXES_CHANNELS
        kinds = {type(part) for part in parts}
        self._trusted = all(k.__module__.startswith(_V2) and k.__name__ in _TRUSTED.split() for k in kinds)

    def __call__(self, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the transformed image, and its map: ``bool``, of the same height and width.

        Args:
            image: ``(C, H, W)``.
            salience: ``bool``, ``(C, H, W)`` or ``(1, H, W)``.

        Raises:
            TypeError: If the transform does not take and return (image, map), or changes the map's dtype.
            ValueError: If it returns a map of another size than the image's.
        """
        if len(salience) > 1 and self._mixes_channels:
            raise TypeError(
                f"v2.{', '.join(self._mixes_channels)} moves values between channels, and these maps differ from channel to "
                "channel. Use per-pixel maps."
            )
        # As many channels as the image has, for fills of one value per channel.
        coded = salience.to(torch.float32).add_(_NOT_SALIENT).expand(len(image), -1, -1).contiguous()
        try:
            result = self.transform(self._image(image.clone()), self._mask(coded))
        except (TypeError, ValueError) as error:
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f"The transform failed on (image, map): {error}\nEach part of it must take both, as most transforms of "
                "torchvision.transforms.v2 do (but AutoAugment, MixUp and the like, nn.Sequential, and the old "
                "torchvision.transforms do not). Write a fill of several values as fill={tv_tensors.Image: values, "
                "tv_tensors.Mask: 0}."
            ) from error
        if not isinstance(result, (tuple, list)) or len(result) != 2 or not isinstance(result[1], Tensor):
            got = (
                [type(part).__name__ for part in result] if isinstance(result, (tuple, list)) else type(result).__name__
            )
            raise TypeError(f"The transform must return (image, map) for (image, map), got {got}.")
        image, moved = as_tensor(result[0], "The transformed image"), result[1].as_subclass(Tensor)
        if moved.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"The transform made the map {moved.dtype}. Leave its dtype alone; SalientDataset returns bool."
            )
        if moved.shape[1:] != image.shape[1:] or (len(salience) > 1 and len(moved) != len(image)):
            raise ValueError(
                f"The transform made the image {tuple(image.shape)} and its map {tuple(moved.shape)}, which do not belong "
                "together. Where it changes the number of channels, use per-pixel maps."
            )
        return image, moved[: len(salience)] == _SALIENT

    def verify(self, image: Tensor, salience: Tensor, draws: int = 16) -> None:
        """Try the transform, and raise what it would raise later.

        Transforms that torchvision does not vouch for (lambdas, a user's own) are tried on images with a single mark, which
        must arrive where its map does. Random generators are left as they were; a transform with a generator of its own
        cannot be tried.

        Args:
            image: One of the images that the transform is for, ``(C, H, W)``.
            salience: Its map.
            draws: How often it is tried.

        Raises:
            ValueError: If a mark arrives where its map does not.
            Exception: As of a call.
        """
        with isolated_rng():
            self(image, salience)
            if self._trusted or min(image.shape[1:]) < 8:  # too small for a mark to have a place
                return
            places = torch.Generator().manual_seed(0)
            for seed in range(draws):
                here, there = _marked(image, places), _marked(image, places)
                first, again, second = (self._seeded(seed, *marked) for marked in (here, here, there))
                if first[0].shape != again[0].shape or not torch.equal(first[0], again[0]):
                    return  # it has a generator of its own
                if first[0].shape == second[0].shape:  # otherwise it depends on the contents
                    self._check_place(first, second)

    def _seeded(self, seed: int, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return self(image, salience)

    def _check_place(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
        # What changes both images alike (colours) cancels; where they differ most is one of the marks.
        change = (first[0].double() - second[0].double()).abs().sum(0)
        if not bool(change.isfinite().all()) or change.max() < 1e-3 * max(1.0, float(first[0].abs().max())):
            return  # neither mark is visible
        row, column = divmod(int(change.argmax()), change.shape[1])
        near = (first[1] | second[1])[0, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        if not bool(near.any()):
            raise ValueError(
                f"The transform moved an image and not its map: a mark arrived at row {row}, column {column}, its map did "
                "not. Each part must take and return (image, map) as tv_tensors, as the transforms of "
                "torchvision.transforms.v2 do; tv_tensors.wrap(result, like=given) makes one of a plain tensor. The "
                f"transform: {self.transform}"
            )


def _parts(transform: Any) -> list[Any]:
    """The transform, and those inside it."""
    inside = getattr(transform, "transforms", None)
    inside = inside if isinstance(inside, (list, tuple, nn.ModuleList)) else ()
    return [transform, *(part for one in inside for part in _parts(one))]


def _marked(image: Tensor, places: torch.Generator) -> tuple[Tensor, Tensor]:
    """A grey image with a bright square away from its edges, and the map of the square."""
    height, width = image.shape[1:]
    size, edge = max(2, min(height, width) // 8), min(height, width) // 6
    row = int(torch.randint(edge, height - size - edge + 1, (), generator=places))
    column = int(torch.randint(edge, width - size - edge + 1, (), generator=places))
    salience = torch.zeros(1, height, width, dtype=torch.bool)
    salience[:, row : row + size, column : column + size] = True
    white = 1.0 if image.is_floating_point() else 255
    return torch.full_like(image, white / 2).masked_fill_(salience, white), salience


class SalientDataset(Dataset[Item]):
    """A data set of (image, label, map) from one of (image, label) and the maps of its images.

    The transform gets image and map in one call, so that a crop, a flip, a rotation or a new size is the same for both; what
    it brings in from outside the image is not salient, and the map stays binary. A transform that would move only one of
    them is an error. Maps from a :class:`MaskStore` come with a check that each image is the one that its map was made of.
    A part of the data set (a training split) is a ``torch.utils.data.Subset`` of this one.

    Args:
        dataset: A map-style data set of (image, label), un-augmented: tensors ``(C, H, W)``, floating point in [0, 1] or
            uint8, or PIL images.
        maps: The map of each of its images: a :class:`MaskStore`, a tensor or array ``(N, C, H, W)`` or ``(N, 1, H, W)``, or
            a sequence or data set of maps ``(C, H, W)``, ``(1, H, W)`` or ``(H, W)``; bool or {0, 1}.
        transform: A transform of ``torchvision.transforms.v2``. It gets a ``tv_tensors.Image`` (uint8 if the data set has
            uint8 or PIL images) and a ``tv_tensors.Mask``, which it moves by nearest neighbour. A callable of one's own is
            called as ``transform(image, map)`` and must return both; it is tried on marked images at once.

    Raises:
        ImportError: If there is a transform and torchvision is not installed.
        TypeError: If an argument is of the wrong type, or the transform cannot move both.
        ValueError: If the maps are not those of this data set, or the transform was seen to move only the image.

    Example:
        >>> crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
        >>> data = SalientDataset(dataset, MaskStore("train.masks"), crop)
        >>> for images, labels, maps in DataLoader(data, batch_size=128, shuffle=True):
        ...     loss = criterion(images, labels, mask=maps)
    """

    def __init__(self, dataset: Any, maps: Any, transform: Callable[..., Any] | None = None) -> None:
        if not hasattr(maps, "__len__"):
            raise TypeError(
                "maps must be a MaskStore, a tensor, an array, a sequence or a data set of maps, got "
                f"{type(maps).__name__}. MaskStore.build makes a store with a mask function."
            )
        if getattr(maps, "ndim", 4) != 4:
            raise ValueError(
                f"Maps in one tensor must be (N, C, H, W) or (N, 1, H, W), got {tuple(maps.shape)}. For (N, H, W): "
                "maps[:, None]."
            )
        if len(maps) != len(dataset):
            raise ValueError(
                f"There are {len(maps)} maps for {len(dataset)} images. For a part of a data set: "
                "torch.utils.data.Subset(SalientDataset(whole, maps), indices)."
            )
        self.dataset, self.maps = dataset, maps
        self.transform = None if transform is None else JointTransform(transform)
        if isinstance(maps, MaskStore):
            maps.check(dataset)
        if self.transform is not None and len(dataset):
            pair = get_image_label(dataset, 0)
            self.transform.verify(pair[0], self._maps([0], [pair])[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        """Image (floating point in [0, 1], unless the transform makes it otherwise), label, and map.

        Returns:
            ``(C, H, W)``, whatever the label is, and ``bool`` ``(C, H, W)`` or ``(1, H, W)``.

        Raises:
            IndexError: If there is no such item.
            TypeError: If an image, a map, or what the transform returned is of the wrong type.
            ValueError: If their shapes or values do not fit, the store is damaged, or the image is not the map's.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several items at once, for which torch's ``DataLoader`` asks; the store is read once."""
        positions = [range(len(self))[index] for index in indices]
        pairs = [get_image_label(self.dataset, position) for position in positions]
        items = []
        for (image, label), salience in zip(pairs, self._maps(positions, pairs), strict=True):
            if self.transform is not None:
                image, salience = self.transform(image, salience)
            items.append((to_float(image), label, salience))
        return items

    def __repr__(self) -> str:
        transform = None if self.transform is None else self.transform.transform
        return f"SalientDataset({type(self.dataset).__name__} of {len(self)}, {self.maps!r}, transform={transform!r})"

    def _maps(self, positions: list[int], pairs: list[tuple[Tensor, Any]]) -> list[Tensor]:
        """``(C, H, W)``, or ``(1, H, W)`` where the channels share one map, each."""
        images = [image for image, _ in pairs]
        if isinstance(self.maps, MaskStore):
            maps = list(self.maps.maps_of(positions, images, [label for _, label in pairs]))
        else:
            maps = [self._map(position, image) for position, image in zip(positions, images, strict=True)]
        return [salience[:1] if salience.stride(0) == 0 else salience for salience in maps]

    def _map(self, position: int, image: Tensor) -> Tensor:
        given = self.maps[position]
        try:
            salience = prepare_mask(given[None] if getattr(given, "ndim", 0) == 3 else given, image[None])
        except (TypeError, ValueError) as error:
            raise type(error)(f"The map of item {position}: {error}") from error
        return salience[0].cpu().expand(-1, *image.shape[1:])
