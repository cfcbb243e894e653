"""Building a mask store: each image's map once, by one process or several, resumed wherever it was stopped."""

from __future__ import annotations

import functools
import logging
import numbers
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sip_plugin.mask_source import accepts_labels
from sip_plugin.salience.images import sample_of
from sip_plugin.salience.map_source import MapSource
from sip_plugin.salience.provenance import differences, provenance
from sip_plugin.salience.ranks import Ranks
from sip_plugin.salience.store_file import MAGIC, Header, StoreError, check_no_folder, open_whole
from sip_plugin.salience.store_partial import Partial

_logger = logging.getLogger(__name__)


class Build:
    """One process's part in building a store; the first process also begins and ends the work.

    Args:
        path: The store to be.
        source: What makes the maps.
        wanted: What the header will say of data set and provenance.
        overwrite: Replace another store, or a part of one.
        ranks: The processes that build it together.
    """

    def __init__(self, path: Path, source: MapSource, wanted: Mapping[str, Any], overwrite: bool, ranks: Ranks) -> None:
        self.path, self.source, self.wanted = path, source, wanted
        self.overwrite, self.ranks = overwrite, ranks
        self.partial: Partial | None = None

    def run(self, progress: bool) -> None:
        """Build it, unless it is there."""
        try:
            task = self.ranks.first(self._begin)
            if task is not None:
                self._compute(*self._of_these_images(*task), progress)
                self._check_all_there(task[0])
                self.ranks.first(self._joined().finish)
        finally:
            if self.partial is not None:
                self.partial.close()

    def _begin(self) -> tuple[Header, list[int]] | None:
        """The header and the chunks that are to be made; None if the store is there."""
        if self._is_there():
            return None
        self.partial = partial = Partial(self.path)
        if self._is_there():  # another process was about to finish it
            return None
        header = partial.header()
        if header is not None:
            differs = differences(header.identity(), self.wanted)
            if not differs:
                missing = partial.missing(header)
                done = header.chunks - len(missing)
                _logger.info("Going on with %s: %d of %d chunks are done.", partial.path, done, header.chunks)
                return header, missing
            if not self.overwrite:
                raise FileExistsError(
                    f"{partial.path} is a part of another store ({'; '.join(differs)}). Delete it, or say overwrite=True."
                )
        header = self._new_header()
        partial.begin(header)
        return header, list(range(header.chunks))

    def _is_there(self) -> bool:
        check_no_folder(self.path)
        if not self.path.exists():
            return False
        with self.path.open("rb") as file:
            start = file.read(len(MAGIC))
        if start != MAGIC:
            raise FileExistsError(
                f"{self.path} is in the way: it is no mask store. Move it away, or take another path."
            )
        if self.overwrite:
            return False
        try:
            whole, layout, _ = open_whole(self.path)
            whole.close()
        except StoreError as error:
            raise FileExistsError(f"{error} Or say overwrite=True.") from error
        differs = differences(layout.header.identity(), self.wanted)
        if differs:
            raise FileExistsError(
                f"{self.path} is a store of other maps or images ({'; '.join(differs)}). Take another path, or say "
                "overwrite=True."
            )
        _logger.info("%s is there already, of these maps and images.", self.path)
        return True

    def _of_these_images(self, header: Header, missing: list[int]) -> tuple[Header, list[int]]:
        """The header and the chunks that are to be made, after a look at the images of those that are done.

        The fingerprint is of a few images; each image that has a map is read and compared with its check byte.
        """
        done = sorted({*range(header.chunks)} - {*missing})
        mine = done[self.ranks.rank :: self.ranks.size]
        waiting, found = iter(mine), self.source.checks(header, mine)
        self.ranks.each_own(self._joined)

        def step() -> list[int]:
            chunk = next(waiting, None)
            if chunk is None:
                return []
            stored, images = self._joined().checks(header, chunk), header.images_of_chunk(chunk)
            return [image for image, ours, its in zip(images, stored, next(found), strict=True) if ours != its]

        for _ in range(-(-len(done) // self.ranks.size)):
            changed = [image for images in self.ranks.each(step) for image in images]
            if changed:
                return self.ranks.first(functools.partial(self._anew, changed[0]))
        return header, missing

    def _anew(self, image: int) -> tuple[Header, list[int]]:
        """Begin again: what is there was made of other images."""
        partial = self._joined()
        if not self.overwrite:
            raise FileExistsError(
                f"{partial.path} has maps of other images or labels: item {image} of the data set is not what it was. "
                "Delete it, or say overwrite=True."
            )
        header = self._new_header()
        partial.begin(header)
        return header, list(range(header.chunks))

    def _new_header(self) -> Header:
        return Header.new(channels=self.source.channels(), batch_size=self.source.batch_size, **self.wanted)

    def _joined(self) -> Partial:
        if self.partial is None:
            self.partial = Partial(self.path, joins=True)
        return self.partial

    def _compute(self, header: Header, missing: list[int], progress: bool) -> None:
        mine = missing[self.ranks.rank :: self.ranks.size]
        waiting, made = iter(mine), self.source.chunks(header, mine)

        def step() -> int:
            chunk = next(waiting, None)
            if chunk is None:
                return 0
            records = next(made)
            self._joined().write(header, chunk, records)
            return len(records)

        self.ranks.each_own(self._joined)
        done = header.length - sum(len(header.images_of_chunk(chunk)) for chunk in missing)
        with _bar(header.length, done, progress and self.ranks.rank == 0) as bar:
            # All go from chunk to chunk together, so that a failure of one is known to all at once.
            for _ in range(-(-len(missing) // self.ranks.size)):
                images = sum(self.ranks.each(step))
                if bar is not None:
                    bar.update(images)
        self.ranks.each(self._joined().flush)

    def _check_all_there(self, header: Header) -> None:
        """Read what several processes have written, in one that opens the file anew."""

        def check() -> None:
            partial = Partial(self.path, joins=True)
            try:
                missing = partial.missing(header)
            finally:
                partial.close()
            if missing:
                raise OSError(
                    f"{len(missing)} chunks that were written into {partial.path} are missing. Do all processes write to "
                    "one file system, which lets several machines write to a file? The same call resumes."
                )

        if self.ranks.size > 1:  # not in the first one, whose lock would end with closing the file
            self.ranks.each(lambda: check() if self.ranks.rank == self.ranks.size - 1 else None)


def wanted_of(dataset: Any, mask_fn: Any) -> dict[str, Any]:
    """What the header of a store of these maps says of the data set and of what made them."""
    labels = accepts_labels(mask_fn)
    image_shape, fingerprint = sample_of(dataset, labels)
    return {
        "length": len(dataset),
        "image_shape": image_shape,
        "dataset": fingerprint,
        "provenance": provenance(mask_fn),
        "labels": labels,
    }


def agreed(all_wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes want.

    Raises:
        ValueError: If one wants something else.
    """
    for rank, wanted in enumerate(all_wanted):
        differs = differences(all_wanted[0], wanted)
        if differs:
            raise ValueError(f"Process {rank} builds another store than process 0: {'; '.join(differs)}.")
    return all_wanted[0]


def check_batch_size(batch_size: Any) -> int:
    """Refuse what is no number of images.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is not positive.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral):
        raise TypeError(f"batch_size must be an integer, got {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    return int(batch_size)


def _bar(total: int, done: int, shown: bool) -> Any:
    """A progress bar, or nothing where tqdm is not installed."""
    if shown:
        try:
            from tqdm import tqdm

            return tqdm(total=total, initial=done, desc="salience maps", unit="image")
        except ImportError:
            pass
    return nullcontext()
