"""CUB-200-2011 in small, in the archive's own layout, made by the tests."""

from pathlib import Path

import numpy as np
from PIL import Image

SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
ANNOTATORS = 5
GREY_IMAGE = 5  # some of the official images have one channel


class Archive:
    """Twelve birds of three species, every third one in the test split; levels are the annotators' shares times 255."""

    def __init__(self, root: Path, beside: bool = False):
        self.root = root / "CUB_200_2011"
        self.segmentations = (root if beside else self.root) / "segmentations"
        self.names = [f"{SPECIES[i // 4]}/{SPECIES[i // 4][4:]}_{i:04d}_{7000 + i}.jpg" for i in range(12)]
        self.labels = [i // 4 for i in range(12)]
        self.is_train = [i % 3 != 2 for i in range(12)]
        self.sizes = [(40 + 2 * i, 60 - i) for i in range(12)]
        self.shares = []
        generator = np.random.default_rng(0)
        for i, name in enumerate(self.names):
            height, width = self.sizes[i]
            pixels = generator.integers(0, 100, (height, width, 3)) + 50 * np.eye(3, dtype=np.int64)[self.labels[i]]
            votes = sum(_ellipse(height, width, generator) for _ in range(ANNOTATORS))
            pixels[votes > 2] += np.array([90, 20, 0])
            path = self.root / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            (image.convert("L") if i == GREY_IMAGE else image).save(path, quality=95)
            mask = self.segmentation(i)
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((votes * (255 // ANNOTATORS)).astype(np.uint8)).save(mask)
            self.shares.append(votes)
        self._write("images.txt", self.names)
        self._write("image_class_labels.txt", [label + 1 for label in self.labels])
        self._write("train_test_split.txt", [int(train) for train in self.is_train])
        self._write("classes.txt", SPECIES)

    def segmentation(self, i: int) -> Path:
        return self.segmentations / Path(self.names[i]).with_suffix(".png")

    def indices(self, train: bool) -> list[int]:
        return [i for i in range(12) if self.is_train[i] == train]

    def _write(self, file, values):
        lines = [f"{number} {value}\n" for number, value in enumerate(values, start=1)]
        (self.root / file).write_text("".join(lines))


def _ellipse(height, width, generator):
    """Where one annotator sees the bird."""
    y, x = np.mgrid[:height, :width]
    centre = generator.uniform(0.4, 0.6, 2)
    radii = generator.uniform(0.2, 0.35, 2)
    return ((y / height - centre[0]) / radii[0]) ** 2 + ((x / width - centre[1]) / radii[1]) ** 2 < 1
