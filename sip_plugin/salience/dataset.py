"""A data set that returns each image with its salience map, both transformed alike by its augmentation."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from sip_plugin.constraint import prepare_mask
from sip_plugin.salience.images import as_tensor, check_unaugmented, to_float
from sip_plugin.salience.store import MaskStore
from sip_plugin.utils import import_extra, isolated_rng

Item = tuple[Tensor, Any, Tensor]  # image, label, map

# A map's elements during a transform: exact in float32, and no fill value. Whatever else is in it came from outside.
_NOT_SALIENT = 1_000_002.0
_SALIENT = _NOT_SALIENT + 1

_MIXES_CHANNELS = ("RandomChannelPermutation", "RandomPhotometricDistort")
# All others of torchvision refuse a map, move it with the image, or leave both where they are.
_UNTRUSTED = ("Lambda", "LinearTransformation", "ToPureTensor")


class JointTransform:
    """A transform of an image together with its salience map; what comes from outside the image is not salient."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform
        if _has(transform, "RandomErasing"):
            self.transform = copy.deepcopy(transform)
            for part in _has(self.transform, "RandomErasing"):
                part._call_kernel = partial(_erase, part)
        if _has(transform, "ToPILImage"):
            raise ValueError("Pillow rounds positions in another way than a map is moved: leave v2.ToPILImage out.")
        kinds = [type(part) for part in _parts(transform)]
        self._mixes_channels = bool(_has(transform, *_MIXES_CHANNELS))
        self._trusted = all(k.__module__.startswith("torchvision") and k.__name__ not in _UNTRUSTED for k in kinds)

    def __call__(self, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed image, and its map; a ValueError if they do not fit each other any more."""
        tv_tensors = import_extra("torchvision.tv_tensors", "vision")
        if len(salience) > 1 and self._mixes_channels:
            raise ValueError(f"{', '.join(_MIXES_CHANNELS)} move values between channels: use per-pixel maps.")
        # As many channels as the image has, for fills of one value per channel.
        coded = salience.to(torch.float32).add_(_NOT_SALIENT).expand(len(image), -1, -1).contiguous()
        image, moved = self.transform(tv_tensors.Image(image.clone()), tv_tensors.Mask(coded))
        if not isinstance(moved, Tensor):
            raise TypeError(f"The transform must return (image, map), got {type(moved).__name__} for a map.")
        image, moved = as_tensor(image), moved.as_subclass(Tensor)
        coded = (moved == _SALIENT) | (moved == _NOT_SALIENT)
        # A crop may lie wholly outside the image: then all are fill values. Scaled codes are larger than these.
        kept = moved.is_floating_point() and bool((coded | (moved.abs() < 1000)).any())
        channels = len(image) if len(salience) > 1 else len(moved)
        if not kept or moved.shape != (channels, *image.shape[1:]):
            raise ValueError(
                f"The transform made the image {tuple(image.shape)} and its map {tuple(moved.shape)}, {moved.dtype}. It "
                "must leave the map's values and give both one size; if it changes the channels, use per-pixel maps."
            )
        return image, moved[: len(salience)] == _SALIENT

    def verify(self, image: Tensor) -> None:
        """Raise a ValueError if a transform that is not torchvision's takes a bright block elsewhere than its map."""
        for seed in range(0 if self._trusted else 16):
            (first, near), (again, _), (second, there) = (self._try(image, seed, block) for block in (0, 0, 1))
            if first.shape != second.shape or not torch.equal(first, again):
                continue  # it depends on the contents, or has a random generator of its own
            # What changes both images alike (colours) cancels; where they differ most is one of the blocks.
            change = (first.double() - second.double()).abs().sum(0)
            marked = F.max_pool2d((near | there).float(), 5, stride=1, padding=2)[0]  # within two pixels
            if change.max() > 1e-3 * first.abs().max().clamp(min=1) and not marked.flatten()[change.argmax()]:
                raise ValueError(
                    "The transform moved an image and not its map. Each part must take and return both, as tv_tensors "
                    "(tv_tensors.wrap(result, like=given) makes one of a plain tensor)."
                )

    def _try(self, image: Tensor, seed: int, block: int) -> tuple[Tensor, Tensor]:
        """What becomes of a grey image with a bright block somewhere, and of the map of the block."""
        places, coarse = random.Random(f"{seed} {block}"), torch.zeros(1, 1, 8, 8)
        coarse[..., places.randrange(1, 7), places.randrange(1, 7)] = 1
        salience = F.interpolate(coarse, image.shape[1:])[0] > 0
        white = 1.0 if image.is_floating_point() else 255
        with isolated_rng(seed):
            return self(torch.full_like(image, white / 2).masked_fill_(salience, white), salience)


def _erase(part: Any, kernel: Callable[..., Any], value: Any, i: int, j: int, h: int, w: int, **options: Any) -> Any:
    """What RandomErasing, which leaves maps alone, does to image and map: what it overwrites is not the image any more."""
    if not isinstance(value, import_extra("torchvision.tv_tensors", "vision").Mask):
        return type(part)._call_kernel(part, kernel, value, i=i, j=j, h=h, w=w, **options)
    value = value.clone()
    value[..., i : i + h, j : j + w] = 0
    return value


def _has(transform: Any, *names: str) -> list[Any]:
    """The parts of a transform that are of a class of these names, or of one derived from it."""
    return [part for part in _parts(transform) if any(kind.__name__ in names for kind in type(part).__mro__)]


def _parts(transform: Any) -> list[Any]:
    """The transform, and those inside it."""
    inside = transform.children() if isinstance(transform, nn.Module) else ()
    return [transform, *(part for one in (*inside, *getattr(transform, "transforms", ())) for part in _parts(one))]


class SalientDataset(Dataset[Item]):
    """A data set of (image, label, map) from one of (image, label) and the maps of its images.

    The transform gets image and map in one call, so that a crop, a flip, a rotation or a new size is the same for both; what
    it brings in from outside is not salient. The images are compared with those that the maps of a :class:`MaskStore` were
    made of. For a part of the data set, take a ``torch.utils.data.Subset`` of this one.

    Args:
        dataset: A map-style data set of (image, label), un-augmented: tensors ``(C, H, W)``, floating point in [0, 1] or
            uint8, or PIL images.
        maps: The map of each image: a :class:`MaskStore`, a tensor or array ``(N, C, H, W)`` or ``(N, 1, H, W)``, or a
            sequence or data set of maps ``(C, H, W)``, ``(1, H, W)`` or ``(H, W)``; bool or {0, 1}.
        transform: A transform of ``torchvision.transforms.v2``, or a callable ``(image, map) -> (image, map)``, which is
            tried at once. It gets a ``tv_tensors.Image`` and a ``tv_tensors.Mask``, which is moved by nearest neighbour;
            write a fill of several values as ``fill={tv_tensors.Image: values, tv_tensors.Mask: 0}``. One of your own that
            overwrites part of the image has to clear the map there.

    Raises:
        ValueError: If the maps are not those of this data set, or the transform moves only the image.

    Example:
        >>> crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
        >>> data = SalientDataset(dataset, MaskStore("train.masks"), crop)
        >>> for images, labels, maps in DataLoader(data, batch_size=128, shuffle=True):
        ...     loss = criterion(images, labels, mask=maps)
    """

    def __init__(self, dataset: Any, maps: Any, transform: Callable[..., Any] | None = None) -> None:
        if len(maps) != len(dataset):
            raise ValueError(
                f"There are {len(maps)} maps for {len(dataset)} images. For a part of a data set: "
                "torch.utils.data.Subset(SalientDataset(whole, maps), indices)."
            )
        self.dataset, self.maps, self.transform = dataset, maps, None
        if isinstance(maps, MaskStore):
            maps.check(dataset)
        else:
            check_unaugmented(dataset)
        if transform is not None:
            self.transform = JointTransform(transform)
            with isolated_rng():
                self[0]
                self.transform.verify(as_tensor(dataset[0][0]))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        """Image ``(C, H, W)``, label, and map, ``bool`` ``(C, H, W)`` or ``(1, H, W)``.

        Raises:
            ValueError: If the map's shape or values do not fit, the store is damaged, or the image is not the map's.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several items at once, for which torch's ``DataLoader`` asks; the store is read once."""
        positions = [range(len(self))[index] for index in indices]
        images, labels = zip(*(self.dataset[position] for position in positions), strict=True)
        images = tuple(map(as_tensor, images))
        if isinstance(self.maps, MaskStore):
            maps = list(self.maps.maps_of(positions, images, labels))
        else:
            maps = [_map(self.maps[position], image) for position, image in zip(positions, images, strict=True)]
        moved = [(image, one[:1] if one.stride(0) == 0 else one) for image, one in zip(images, maps, strict=True)]
        if self.transform is not None:
            moved = [self.transform(image, salience) for image, salience in moved]
        return [(to_float(image), label, salience) for (image, salience), label in zip(moved, labels, strict=True)]


def _map(given: Any, image: Tensor) -> Tensor:
    given = given[None] if given.ndim == 3 else given
    return prepare_mask(given, image[None])[0].cpu().expand(-1, *image.shape[1:])
