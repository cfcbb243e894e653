"""CUB-200-2011 in its archive's own layout, with its segmentations as salience (SIP-H)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from sip_plugin.salience.annotations.base import Missing, import_pillow
from sip_plugin.salience.annotations.folder import FolderMasks

_SITE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"


class CUB200(Dataset[tuple[Any, int]]):
    """Caltech-UCSD Birds-200-2011 (Wah et al. 2011), 11,788 images of 200 species, with its official split.

    Reads the unpacked archive: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt``, ``classes.txt`` and
    ``images/``; and for :meth:`masks` the unpacked archive of the segmentations, in ``segmentations/`` in or beside that
    folder. Nothing is downloaded.

    Args:
        root: The folder ``CUB_200_2011``, or the one that it is in.
        train: The 5,994 training images, or the 5,794 test images.
        transform: Applied to each image; for evaluation. To train with maps, leave it out and give the transform to
            ``SalientDataset``, which moves image and map together.

    Attributes:
        root: The folder ``CUB_200_2011``.
        samples: The path and the label of each image, in the order of ``images.txt``; labels count from 0.
        classes: The name of each label.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If the lists cannot be read, or do not go with each other.

    Example:
        >>> birds = CUB200("CUB_200_2011", train=True)
        >>> image, label = birds[0]  # a PIL image in RGB
        >>> data = SalientDataset(birds, birds.masks(threshold=0.5), transform)
    """

    def __init__(
        self, root: str | os.PathLike[str], train: bool = True, *, transform: Callable[[Any], Any] | None = None
    ) -> None:
        root = Path(root)
        self.root = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
        self.train = train
        self.transform = transform
        names, classes = _read_list(self.root / "images.txt"), _read_list(self.root / "classes.txt")
        self.classes = [classes[number] for number in sorted(classes)]
        label_of = {str(number): label for label, number in enumerate(sorted(classes))}
        labels = _read_values(self.root / "image_class_labels.txt", names, label_of, "a number of classes.txt")
        split = _read_values(self.root / "train_test_split.txt", names, {"0": False, "1": True}, "0 or 1")
        self.samples = [
            (self.root / "images" / name, labels[number]) for number, name in names.items() if split[number] == train
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        with import_pillow().open(path) as file:
            image = file.convert("RGB")  # some of the archive's images are grey
        return (image if self.transform is None else self.transform(image)), label

    def masks(
        self,
        threshold: float = 0.5,
        *,
        segmentations: str | os.PathLike[str] | None = None,
        missing: Missing = "error",
    ) -> FolderMasks:
        """The segmentations (Farrell 2022) as maps of these images.

        Their grey level is the share of annotators that marked the pixel. The paper does not say how it made maps of them;
        the default is a majority.

        Args:
            threshold: A pixel is salient if at least this share of the annotators marked it, in ``(0, 1]``.
            segmentations: The folder of the segmentations; None for the one in or beside :attr:`root`.
            missing: As in :class:`FolderMasks`.

        Raises:
            FileNotFoundError: If there are no segmentations, or one is missing.
            ValueError: If the data set has a transform, which its maps would not follow.
        """
        if self.transform is not None:
            raise ValueError(
                "The images of this data set are transformed, which its maps would not follow. Give the transform to "
                "SalientDataset(birds, birds.masks(), transform) instead, which moves both."
            )
        folder = self._segmentations() if segmentations is None else Path(segmentations)
        return FolderMasks(self, folder, threshold=threshold, image_root=self.root / "images", missing=missing)

    def __repr__(self) -> str:
        return f"CUB200({len(self)} {'training' if self.train else 'test'} images in {self.root})"

    def _segmentations(self) -> Path:
        # Beside the folder as it is called, and as it is: it may be a link.
        places = [
            path / "segmentations" for path in (self.root, self.root.absolute().parent, self.root.resolve().parent)
        ]
        for place in places:
            if place.is_dir():
                return place
        raise FileNotFoundError(
            f"There are no segmentations in {places[0]} or {places[1]}. They are an archive of their own, "
            f"segmentations.tgz from {_SITE}."
        )


def _read_list(path: Path) -> dict[int, str]:
    """The lines ``<id> <text>`` of one of the archive's lists."""
    try:
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {int(number): text.strip() for number, text in lines}
    except ValueError as error:
        raise ValueError(f"{path} must hold a number, a space and a value in each line: {error}.") from error


def _read_values(path: Path, names: dict[int, str], values: dict[str, int], expected: str) -> dict[int, int]:
    """A list ``<image id> <text>`` of the images of ``images.txt``, as what each text stands for."""
    entries = _read_list(path)
    for image in names:
        if entries.get(image) not in values:
            raise ValueError(f"{path}: expected {expected} for the image {image}, got {entries.get(image)!r}.")
    return {image: values[entries[image]] for image in names}
