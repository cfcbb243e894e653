"""A data set that gives each image with its salience map, both moved alike by its augmentation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from sip_plugin.constraint import prepare_mask
from sip_plugin.salience.images import get_image_label, to_float
from sip_plugin.salience.store import MaskStore
from sip_plugin.salience.together import Together

Item = tuple[Tensor, Any, Tensor]  # image, label, map


class SalientDataset(Dataset[Item]):
    """A data set of (image, label, map) from one of (image, label) and the maps of its images.

    The transform gets image and map in one call, so that a crop, a flip, a rotation or a new size is the same for both; what
    it brings in from outside the image is not salient, and the map stays binary. What would move only one of them is
    refused. Maps from a :class:`MaskStore` come with a check that each image is the one that its map was made of. A part of
    the data set (a training split) is a ``torch.utils.data.Subset`` of this one.

    Args:
        dataset: A map-style data set of (image, label), un-augmented: tensors ``(C, H, W)``, floating point in [0, 1] or
            uint8, or PIL images.
        maps: The map of each of its images: a :class:`MaskStore`, a tensor or array ``(N, C, H, W)`` or ``(N, 1, H, W)``, or
            a sequence or data set of maps ``(C, H, W)``, ``(1, H, W)`` or ``(H, W)``; bool or {0, 1}.
        transform: A transform of ``torchvision.transforms.v2``. It gets a ``tv_tensors.Image`` (uint8 if the data set has
            uint8 or PIL images) and a ``tv_tensors.Mask``, which it moves by nearest neighbour. A callable of one's own is
            called as ``transform(image, map)`` and must give both; it is tried on marked images at once.

    Raises:
        TypeError: If an argument is of the wrong type, or the transform contains one that cannot move both.
        ValueError: If the maps are not those of this data set, or the transform was seen to move only the image.

    Example:
        >>> crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
        >>> data = SalientDataset(dataset, MaskStore("train.masks"), crop)
        >>> for images, labels, maps in DataLoader(data, batch_size=128, shuffle=True):
        ...     loss = criterion(images, labels, mask=maps)
    """

    def __init__(self, dataset: Any, maps: Any, transform: Callable[..., Any] | None = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"A map-style data set (with a length and an index) is needed, got {type(dataset).__name__}."
            )
        self.dataset, self.maps = dataset, _checked(maps, len(dataset))
        self.transform = None if transform is None else Together(transform)
        if isinstance(maps, MaskStore):
            maps.check(dataset)
        if self.transform is not None and len(dataset):
            self._try_transform(self.transform)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        """Image (floating point in [0, 1], unless the transform makes it otherwise), label, and map.

        Returns:
            ``(C, H, W)``, whatever the label is, and ``bool`` ``(C, H, W)`` or ``(1, H, W)``.

        Raises:
            IndexError: If there is no such item.
            TypeError: If an image, a map, or what the transform gave is of the wrong type.
            ValueError: If their shapes or values do not fit, the store is damaged, or the image is not the map's.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several items at once, for which torch's ``DataLoader`` asks; the store is read once."""
        positions = [self._position(index) for index in indices]
        pairs = [get_image_label(self.dataset, position) for position in positions]
        maps = self._maps(positions, pairs)
        items = []
        for (image, label), salience in zip(pairs, maps, strict=True):
            moved, followed = self._moved(image, salience)
            items.append((to_float(moved), label, followed))
        return items

    def __repr__(self) -> str:
        transform = None if self.transform is None else self.transform.transform
        return f"SalientDataset({type(self.dataset).__name__} of {len(self)}, {self.maps!r}, transform={transform!r})"

    def _try_transform(self, transform: Together) -> None:
        image, label = get_image_label(self.dataset, 0)
        if len(self._maps([0], [(image, label)])[0]) > 1:
            transform.check_per_element()
        if not transform.known:
            transform.probe(image)

    def _position(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"There is no item {number} in a data set of {len(self)}.")
        return number % len(self)

    def _maps(self, positions: list[int], pairs: list[tuple[Tensor, Any]]) -> list[Tensor]:
        """``(C, H, W)`` or ``(1, H, W)`` each."""
        images, labels = [image for image, _ in pairs], [label for _, label in pairs]
        if isinstance(self.maps, MaskStore):
            return [_one_channel(salience) for salience in self.maps.maps_of(positions, images, labels)]
        return [
            _as_map(self.maps[position], image, position) for position, image in zip(positions, images, strict=True)
        ]

    def _moved(self, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        return (image, salience) if self.transform is None else self.transform(image, salience)


def _checked(maps: Any, length: int) -> Any:
    if isinstance(maps, (Tensor, np.ndarray)) and maps.ndim != 4:
        raise ValueError(
            f"Maps in one tensor must be (N, C, H, W) or (N, 1, H, W), got {tuple(maps.shape)}. "
            "For (N, H, W): maps[:, None]."
        )
    if not hasattr(maps, "__getitem__") or not hasattr(maps, "__len__"):
        raise TypeError(
            f"maps must be a MaskStore, a tensor, an array, a sequence or a data set of maps, got {type(maps).__name__}. "
            "MaskStore.build makes a store with a mask function."
        )
    if len(maps) != length:
        raise ValueError(
            f"There are {len(maps)} maps for {length} images. For a part of a data set: "
            "torch.utils.data.Subset(SalientDataset(whole, maps), indices)."
        )
    return maps


def _as_map(given: Any, image: Tensor, position: int) -> Tensor:
    """One image's map, ``bool``."""
    if isinstance(given, (Tensor, np.ndarray)) and given.ndim == 3:
        given = given[None]
    try:
        salience = prepare_mask(given, image[None])[0]
    except (TypeError, ValueError) as error:
        raise type(error)(f"The map of item {position}: {error}") from error
    height, width = image.shape[1:]
    return _one_channel(salience.cpu().expand(-1, height, width))


def _one_channel(salience: Tensor) -> Tensor:
    """One channel of a map that is the same for all by its very shape."""
    return salience[:1] if salience.stride(0) == 0 else salience
