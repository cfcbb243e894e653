"""Moving an image and its salience map together, by one torchvision transform."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sip_plugin.salience.alignment import displacement, is_seen, texture
from sip_plugin.salience.images import as_tensor
from sip_plugin.salience.known_transforms import MIXES_CHANNELS, PER_ELEMENT, REFUSED, check_transform

# What a map's elements are while a transform has them: values that no transform would fill an area with, so that whatever is
# neither of them was brought in from outside the image, and is not salient. Exact in float32.
_REST = 1_000_002.0
_SALIENT = _REST + 1
_LARGEST_EXACT = 1 << 24
_SEARCHES = ((1, 6), (4, 8))  # for shifts of up to 6 pixels, and up to 32; a mark shows larger ones

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
        self.known = check_transform(transform, REFUSED)
        self._per_element = False

    def check_per_element(self) -> None:
        """Refuse what moves values between channels, for maps that differ from channel to channel.

        Raises:
            TypeError: If there is such a transform.
        """
        if not self._per_element:
            check_transform(self.transform, PER_ELEMENT)
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
        moved, coded = self._both(image, salience.to(torch.float32).add_(_REST))
        if len(salience) > 1 and len(coded) != len(moved):
            raise ValueError(
                f"The map differs from channel to channel, and the transform made the image one of {len(moved)} channels "
                f"where it had {len(image)}. Use per-pixel maps."
            )
        return moved, coded[: len(salience)] == _SALIENT

    def _both(self, image: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        # As many channels as the image has: a fill of one value a channel holds for the map too.
        coded = coded.expand(len(image), -1, -1)
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
        return moved, coded

    def probe(self, image: Tensor, draws: int = 16) -> None:
        """Try the transform on images with a single mark, and see whether map and mark arrive at the same place.

        Then on images of a random texture, with maps that carry coordinates: that shows a shift of a pixel, wherever it is
        (where the texture is still to be seen: not behind a strong blur, and to half a pixel of a smaller image). If maps
        differ from channel to channel, also whether a channel's texture shows in another one.

        For what torchvision does not vouch for: lambdas, transforms of one's own. Draws from the global random generators,
        which are put back; a transform that draws from one of its own cannot be tried.

        Args:
            image: One of the images that the transform is for, ``(C, H, W)``; only its form matters.
            draws: How often.

        Raises:
            ValueError: If a mark arrives where the map is not, or in another channel.
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
            for draw in range(draws):
                for grain, radius in _SEARCHES:
                    self._check_texture(draw, image, grain, radius, places)
            for draw in range(draws if self._per_element else 0):
                for channel in range(len(image)):
                    self._check_channel(draw, image, channel, places)

    def _drawn(self, seed: int, image: Tensor, salience: Tensor) -> tuple[Tensor, Tensor]:
        _seed_all(seed)
        return self(image, salience)

    def _check_texture(self, seed: int, image: Tensor, grain: int, radius: int, generator: torch.Generator) -> None:
        pattern = texture(image.shape[1], image.shape[2], grain, generator)
        arrived = self._arrived(seed, image, pattern, slice(None))
        if arrived is None:
            return
        difference, places = arrived
        clearest = difference[int(difference.abs().mean((1, 2)).argmax())]
        shift = displacement(clearest, places, pattern, grain, radius)
        if shift is not None:
            raise ValueError(
                f"The transform moved an image and not its map: {shift[0]} rows and {shift[1]} columns lie between a map's "
                f"place and its image's. {_ADVICE} The transform: {self.transform}"
            )

    def _check_channel(self, seed: int, image: Tensor, channel: int, generator: torch.Generator) -> None:
        pattern = texture(image.shape[1], image.shape[2], 1, generator)
        arrived = self._arrived(seed, image, pattern, slice(channel, channel + 1))
        if arrived is None:
            return
        difference, places = arrived
        strength = difference.abs().mean((1, 2))
        for other, values in enumerate(difference):
            if other != channel and strength[other] > 0.05 * strength.max() and is_seen(values, places, pattern):
                raise ValueError(
                    f"The transform {MIXES_CHANNELS}: what was in channel {channel} arrived in channel {other}. The "
                    f"transform: {self.transform}"
                )

    def _arrived(self, seed: int, image: Tensor, pattern: Tensor, channels: slice) -> tuple[Tensor, Tensor] | None:
        """The difference that a texture makes in some channels, and where each pixel comes from; None if unclear."""
        grey = torch.full(image.shape, 0.5)
        pair, coordinates = [], torch.arange(pattern.numel()).view(1, *pattern.shape) + int(_SALIENT) + 1
        if int(coordinates.max()) > _LARGEST_EXACT:
            return None
        for sign in (1, -1):
            textured = grey.clone()
            textured[channels] += sign * 0.4 * pattern
            form = textured.mul(255).round() if image.dtype == torch.uint8 else textured
            _seed_all(seed)
            pair.append(self._both(form.to(image.dtype), coordinates.to(torch.float32)))
        (one, places), (other, places_again) = pair
        if one.shape != other.shape or not torch.equal(places, places_again):
            return None  # it goes by the contents, or does not draw from the global generators
        difference, index = one.float() - other.float(), places[0].double() - int(_SALIENT) - 1
        inside = (index >= 0) & (index < pattern.numel()) & (index == index.round())
        return (difference, index.where(inside, -1).long()) if bool(difference.isfinite().all()) else None

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


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


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


def _kinds(given: Any) -> str:
    if isinstance(given, (tuple, list)):
        return f"({', '.join(type(value).__name__ for value in given)})"
    return type(given).__name__
