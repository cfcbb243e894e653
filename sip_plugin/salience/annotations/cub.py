"""CUB-200-2011 in its archive's own layout, with its segmentations as salience (SIP-H)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from sip_plugin.salience.annotations.base import Missing
from sip_plugin.salience.annotations.folder import FolderMasks
from sip_plugin.utils import import_extra


class CUB200(Dataset[tuple[Any, int]]):
    """Caltech-UCSD Birds-200-2011 (Wah et al. 2011), 11,788 images of 200 species, with its official split.

    Reads the unpacked ``CUB_200_2011.tgz``, and for :meth:`masks` the unpacked ``segmentations.tgz`` in or beside it, both
    from https://www.vision.caltech.edu/datasets/cub_200_2011/. Nothing is downloaded.

    Args:
        root: The folder ``CUB_200_2011``, or the one that it is in.
        train: The 5,994 training images, or the 5,794 test images.
        transform: Applied to each image; for evaluation. To train with maps, give it to ``SalientDataset`` instead.

    Attributes:
        samples: The path and the label of each image, in the order of ``images.txt``; labels count from 0.
        classes: The name of each label.

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
        lists = "images", "image_class_labels", "train_test_split", "classes"
        texts = ((self.root / f"{name}.txt").read_text(encoding="utf-8") for name in lists)
        names, labels, split, classes = (dict(re.findall(r"(\S+) (.+)", text)) for text in texts)  # lines "<id> <text>"
        self.classes = list(classes.values())
        label_of = {number: label for label, number in enumerate(classes)}
        numbers = [number for number in names if split[number] == ("1" if train else "0")]
        self.samples = [(self.root / "images" / names[number], label_of[labels[number]]) for number in numbers]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        with import_extra("PIL.Image", "annotations").open(path) as file:
            image = file.convert("RGB")  # some of the archive's images are grey
        return (image if self.transform is None else self.transform(image)), label

    def masks(
        self, threshold: float = 0.5, *, segmentations: str | os.PathLike[str] | None = None, missing: Missing = "error"
    ) -> FolderMasks:
        """The segmentations (Farrell 2022) as maps. The paper does not say how it made them; the default is a majority.

        Args:
            threshold: A pixel is salient if at least this share of the annotators marked it, in ``(0, 1]``.
            segmentations: The folder of the segmentations; None for the one in or beside ``root``.
            missing: As in :class:`FolderMasks`.

        Raises:
            FileNotFoundError: If a segmentation is missing.
            ValueError: If the data set has a transform, which its maps would not follow.
        """
        if self.transform is not None:
            raise ValueError("The maps would not follow this data set's transform: give it to SalientDataset.")
        # Beside the folder as it is called, and as it is: it may be a link.
        parents = self.root, self.root.absolute().parent, self.root.resolve().parent
        places = [parent / "segmentations" for parent in parents]
        folder = segmentations or next((place for place in places if place.is_dir()), places[0])
        return FolderMasks(self, folder, threshold=threshold, image_root=self.root / "images", missing=missing)

    def __repr__(self) -> str:
        return f"CUB200({len(self)} {'training' if self.train else 'test'} images in {self.root})"
