"""The data sets of the tables, with their 90/10 split into training and held-out images."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from sip_plugin.salience import CUB200, FolderMasks

_CUB_SIZE = [224, 224]
Images = Dataset[tuple[Tensor, int]]


class Maps(Protocol):
    """Salience maps by the index of their image."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class HumanMaps(Maps, Protocol):
    """Maps that people drew."""

    def content(self) -> str:
        """Hash of the files that they are read from."""


@dataclass(frozen=True)
class Source:
    """Where the data comes from.

    Attributes:
        folder: The data set's folder (``--data-dir``); not needed for digits.
        download: Fetch the official archive if it is not there.
        unofficial: A folder under ``folder`` in the archive's layout that is not the archive.
        unofficial_test: Another such folder, for the test images alone.
    """

    folder: Path | None = None
    download: bool = False
    unofficial: str | None = None
    unofficial_test: str | None = None


def add_data_arguments(parser: Any, *, required: bool = False) -> None:
    """The options of a command that say where its data come from."""
    parser.add_argument("--data-dir", type=Path, required=required, help="folder that holds the data set")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR if it is not there")
    parser.add_argument(
        "--unofficial-data", metavar="FOLDER", help="folder under --data-dir in CIFAR's layout that is not the archive"
    )


@dataclass(frozen=True)
class Splits:
    """A data set: images in [0, 1] as they are, without augmentation.

    Attributes:
        train: The training images with their labels.
        validation: The held-out tenth.
        test: The test images.
        classes: How many.
        channels: Of an image.
        origin: Which files they are, in words.
        split: Hash of the training images' indices.
        content: Hash of all images and labels (CUB: of the files' names and sizes, and the labels) and of the split.
        human_maps: Of the training images, where people drew them.
    """

    train: Images
    validation: Images
    test: Images
    classes: int
    channels: int
    origin: str
    split: str
    content: str
    human_maps: HumanMaps | None = None


def load_splits(name: str, source: Source, validation_share: float, seed: int) -> Splits:
    """The splits of a data set.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If there is no such data set, or its folder was not given.
    """
    loaders = {"digits": _digits, "cifar10": _cifar, "cifar100": _cifar, "cub": _cub}
    if name not in loaders:
        raise ValueError(f"Unknown data set {name!r}. Known: {', '.join(loaders)}.")
    if name != "digits" and source.folder is None:
        raise ValueError(f"{name} needs --data-dir, the folder that holds the data set; --download fetches it (CIFAR).")
    if source.folder is not None and not source.folder.is_dir() and not source.download:
        raise FileNotFoundError(f"There is no folder {source.folder}: give --data-dir, or add --download (CIFAR).")
    train, test, classes, channels, origin, maps = loaders[name](name, source)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = round(validation_share * len(order))
    kept, validation = sorted(order[held_out:]), sorted(order[:held_out])
    split = hashlib.sha256(str(kept).encode()).hexdigest()[:16]
    return Splits(
        train=Subset(train, kept),
        validation=Subset(train, validation),
        test=test,
        classes=classes,
        channels=channels,
        origin=origin,
        split=split,
        content=hashlib.sha256(f"{train.content()} {test.content()} {split}".encode()).hexdigest()[:16],
        human_maps=None if maps is None else _ResizedMaps(maps, kept),
    )


class _InMemory(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        image, label = super().__getitem__(index)  # type: ignore[no-untyped-call]
        return image, int(label)

    def content(self) -> str:
        digest = hashlib.sha256()
        for tensor in self.tensors:
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _digits(name: str, source: Source) -> tuple[Any, Any, int, int, str, None]:
    """scikit-learn's 1,797 handwritten digits, 8×8: 1,297 to train, 500 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
    x, x_test = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for part in split[:2])
    y, y_test = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    return _InMemory(x, y), _InMemory(x_test, y_test), 10, 1, "scikit-learn load_digits", None


def _cifar(name: str, source: Source) -> tuple[Any, Any, int, int, str, None]:
    """CIFAR-10 or CIFAR-100 through torchvision, which checks the official files."""
    from torchvision import datasets

    base: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100

    def tensors(train: bool) -> _InMemory:
        folder = source.unofficial_test if source.unofficial_test and not train else source.unofficial
        kind = base if folder is None else _unofficial(base, folder)
        try:
            part = kind(str(source.folder), train=train, download=source.download)
        except RuntimeError as error:  # torchvision's, for files that are missing or not the official ones
            raise FileNotFoundError(
                f"{source.folder} does not hold {kind.base_folder} as torchvision expects it ({error}). --download fetches "
                "the official archive; files in its layout that are not the archive need --unofficial-data FOLDER."
            ) from error
        return _InMemory(torch.from_numpy(part.data).permute(0, 3, 1, 2).float() / 255, torch.tensor(part.targets))

    origin = "official archive" if source.unofficial is None else f"not the official archive: {source.unofficial}"
    if source.unofficial_test:
        origin += f", test images of {source.unofficial_test}"
    return tensors(True), tensors(False), 10 if name == "cifar10" else 100, 3, f"{name}, {origin}", None


def _unofficial(base: Any, folder: str) -> Any:
    """torchvision's data set, reading a folder of its layout without its checksums."""

    class Unofficial(base):  # type: ignore[misc]
        base_folder = folder
        train_list: ClassVar = [[file, None] for file, _ in base.train_list]
        test_list: ClassVar = [[file, None] for file, _ in base.test_list]
        meta: ClassVar = base.meta | {"md5": None}

    return Unofficial


def _cub(name: str, source: Source) -> tuple[Any, Any, int, int, str, FolderMasks | None]:
    """CUB-200-2011 in its archive's layout, 224×224, with a majority of the annotators' segmentations as maps."""
    assert source.folder is not None  # load_splits has asked for it
    if source.download or source.unofficial is not None:
        raise ValueError(
            "CUB-200-2011 is read from --data-dir alone: unpack CUB_200_2011.tgz and segmentations.tgz there."
        )
    train, test = CUB200(source.folder, train=True), CUB200(source.folder, train=False)
    try:
        maps: FolderMasks | None = train.masks()
    except FileNotFoundError as error:
        # Only SIP-H needs them, and it says so.
        warnings.warn(f"No human maps: {error}", RuntimeWarning, stacklevel=2)
        maps = None
    return _Resized(train), _Resized(test), len(train.classes), 3, f"CUB-200-2011, {train!r}, {test!r}", maps


class _Resized(Dataset[tuple[Tensor, int]]):
    """PIL images as tensors of one size."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.transforms.v2 import functional

        image, label = self.images[index]
        tensor = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        return functional.resize(tensor, _CUB_SIZE, antialias=True).clamp(0, 1), label

    def content(self) -> str:
        files = [(path.name, path.stat().st_size, label) for path, label in self.images.samples]
        return hashlib.sha256(repr(files).encode()).hexdigest()


class _ResizedMaps:
    """The maps of some of them, by the nearest pixel."""

    def __init__(self, maps: FolderMasks, rows: list[int]) -> None:
        self.maps, self.rows = maps, rows

    def __len__(self) -> int:
        return len(self.rows)

    def content(self) -> str:
        digest = hashlib.sha256(str(self.maps.threshold).encode())
        for row in self.rows:
            digest.update(hashlib.sha256(self.maps.files[row].read_bytes()).digest())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Tensor:
        salience = self.maps[self.rows[index]]
        return F.interpolate(salience[None].float(), _CUB_SIZE, mode="nearest-exact")[0].bool()
