"""FolderMasks: mask files in a folder tree, and what all maps drawn by people have in common."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from sip_plugin.salience.annotations import (
    FolderMasks,
    MissingAnnotationError,
    UnmarkedAnnotationError,
    UnreadableAnnotationError,
)

SIZES = {"robin/1": (7, 9), "robin/2": (8, 5), "wren/1": (6, 6)}  # height, width


def levels_of(name):
    """A pattern that is its own on every image; the levels of five annotators, in an 8-bit PNG."""
    height, width = SIZES[name]
    return ((np.arange(height * width) * 7 + len(name)) % 6 * 51).reshape(height, width).astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    for name, (height, width) in SIZES.items():
        for root in ("images", "masks"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(tmp_path / "images" / f"{name}.jpg")
        Image.fromarray(levels_of(name)).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


@pytest.fixture
def birds(folders):
    return ImageFolder(folders / "images")


def save_mask(folders, image, name="robin/1", **options):
    image.save(folders / "masks" / f"{name}.png", **options)


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
def test_the_masks_mirror_the_image_folder_and_are_salient_from_the_threshold_on(threshold, folders, birds):
    masks = FolderMasks(birds, folders / "masks", threshold=threshold)
    assert len(masks) == 3
    for i, name in enumerate(SIZES):
        assert masks[i].dtype == torch.bool
        assert masks[i].shape == (1, *SIZES[name])
        annotators = torch.from_numpy(levels_of(name) // 51)
        assert torch.equal(masks[i][0], annotators >= round(threshold * 5 + 0.4))
    shares = [
        torch.cat([mask.flatten() for mask in FolderMasks(birds, folders / "masks", threshold=t)]) for t in (0.2, 1)
    ]
    assert shares[0].sum() > shares[1].sum() > 0


@pytest.mark.parametrize("full", [255, 65535])
def test_a_share_of_exactly_the_threshold_is_salient(full, folders, birds):
    for of in (3, 5, 15, 17):
        levels = np.resize(np.arange(of + 1) * (full // of), (7, 9))
        save_mask(folders, Image.fromarray(levels.astype(np.uint8 if full == 255 else np.uint16)))
        for votes in range(1, of + 1):
            mask = FolderMasks(birds, folders / "masks", threshold=votes / of)[0][0]
            assert torch.equal(mask, torch.from_numpy(levels >= votes * (full // of)))


def binary_mask():
    return (np.arange(63) % 4 < 2).reshape(7, 9)


def with_transparency():
    """White strokes on a transparent ground that is white too."""
    alpha = Image.fromarray(binary_mask().astype(np.uint8) * 255)
    image = Image.new("RGBA", (9, 7), "white")
    image.putalpha(alpha)
    return image


FORMS = {
    "1 bit": lambda grey: grey.convert("1"),
    "8 bits": lambda grey: grey,
    "16 bits": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    "grey with alpha": lambda grey: grey.convert("LA"),
    "colours": lambda grey: grey.convert("RGB"),
    "colours with alpha": lambda grey: grey.convert("RGBA"),
    "a palette": lambda grey: grey.convert("P"),
    "transparent ground": lambda grey: with_transparency(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_binary_mask_is_the_same_map_in_whichever_form_it_is_saved(form, folders, birds):
    image = FORMS[form](Image.fromarray(binary_mask().astype(np.uint8) * 255))
    save_mask(folders, image)
    for threshold in (0.01, 0.5, 1.0):
        mask = FolderMasks(birds, folders / "masks", threshold=threshold)[0]
        assert torch.equal(mask[0], torch.from_numpy(binary_mask()))


def test_grey_levels_stay_what_they_are_in_colours_and_palettes(folders, birds):
    expected = FolderMasks(birds, folders / "masks", threshold=0.6)[0]
    for mode in ("LA", "RGB", "RGBA", "P"):
        save_mask(folders, Image.fromarray(levels_of("robin/1")).convert(mode))
        assert torch.equal(FolderMasks(birds, folders / "masks", threshold=0.6)[0], expected)


def test_a_level_that_the_file_calls_transparent_is_not_drawn(folders, birds):
    levels = np.full((7, 9), 255, dtype=np.uint8)
    levels[0] = 200
    save_mask(folders, Image.fromarray(levels), transparency=255)
    assert FolderMasks(birds, folders / "masks")[0].sum() == 9


def test_colours_are_an_error_that_names_the_file(folders, birds):
    labels = Image.fromarray(binary_mask().astype(np.uint8), mode="P")
    labels.putpalette([0, 0, 0, 128, 0, 0])
    for image in (labels, labels.convert("RGB")):
        save_mask(folders, image)
        masks = FolderMasks(birds, folders / "masks")
        with pytest.raises(ValueError, match=r"robin/1\.png cannot be read: it has colours"):
            masks[0]


def test_black_on_a_transparent_ground_is_an_error(folders, birds):
    image = Image.new("RGBA", (9, 7), "black")
    image.putalpha(Image.fromarray(binary_mask().astype(np.uint8) * 255))
    save_mask(folders, image)
    with pytest.raises(ValueError, match=r"robin/1\.png cannot be read: .*black on transparent ground"):
        FolderMasks(birds, folders / "masks")[0]


@pytest.mark.parametrize(("level", "depth", "white"), [(1, np.uint8, 255), (5, np.uint8, 255), (255, np.uint16, 65535)])
def test_a_mask_that_marks_something_of_which_nothing_reaches_the_threshold_is_an_error(
    level, depth, white, folders, birds
):
    save_mask(folders, Image.fromarray(binary_mask().astype(depth) * depth(level)))
    says = rf"robin/1\.png marks no pixel.*no level above {level} of {white}.*full_level={level}\..*missing=\"empty\""
    with pytest.raises(UnmarkedAnnotationError, match=says):
        FolderMasks(birds, folders / "masks")[0]
    alone = FolderMasks([birds.samples[0][0]], folders / "masks", image_root=birds.root, full_level=level)
    for masks in (alone, FolderMasks(birds, folders / "masks", threshold=level / white)):
        assert torch.equal(masks[0][0], torch.from_numpy(binary_mask()))
    with pytest.warns(UserWarning, match="1 UnmarkedAnnotationError") as caught:
        empty = FolderMasks(birds, folders / "masks", missing="empty")
    assert len(caught) == 1
    assert empty.unannotated == (0,)
    assert not empty[0].any()


def test_full_level_is_the_level_of_all_annotators(folders, birds):
    votes = np.resize(np.arange(6), (7, 9)).astype(np.uint8)
    for name in SIZES:
        save_mask(folders, Image.fromarray(np.resize(np.arange(6), SIZES[name]).astype(np.uint8)), name)
    masks = FolderMasks(birds, folders / "masks", threshold=0.6, full_level=5)
    assert torch.equal(masks[0][0], torch.from_numpy(votes >= 3))
    with pytest.raises(ValueError, match=r"robin/1\.png .*levels above full_level, 4"):
        FolderMasks(birds, folders / "masks", full_level=4)[0]


def test_a_mask_of_another_size_is_an_error_that_names_both_files_and_sizes(folders, birds):
    save_mask(folders, Image.new("L", (7, 9)))
    masks = FolderMasks(birds, folders / "masks")
    with pytest.raises(ValueError, match=r"images/robin/1\.jpg in .*masks/robin/1\.png is 7×9 pixels, the image 9×7"):
        masks[0]
    with pytest.raises(ValueError, match="own size"):  # it is no missing annotation
        FolderMasks(birds, folders / "masks", missing="empty")


@pytest.mark.parametrize("orientation", [2, 3, 6])
@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_an_image_that_its_exif_data_turn_is_an_error(orientation, kind, folders, birds):
    """Its mask may be of the turned image, with the same size: nothing would show it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = (folders / "images" / "robin" / "1.jpg").rename(folders / "images" / "robin" / f"1{kind}")
    Image.new("RGB", (9, 7)).save(path, exif=exif)
    paths = [path, *(folders / "images").glob("wren/*.jpg")]
    masks = FolderMasks(paths, folders / "masks", image_root=folders / "images")
    with pytest.raises(ValueError, match=rf"robin/1\{kind} .* turned by its EXIF data.*upright"):
        masks[0]
    assert masks[1].any()
    exif[0x0112] = 1
    Image.new("RGB", (9, 7)).save(path, exif=exif)
    assert masks[0].any()


def test_damaged_exif_data_turn_nothing(folders, birds):
    Image.new("RGB", (9, 7)).save(folders / "images" / "robin" / "1.jpg", exif=b"Exif\0\0no TIFF at all")
    assert FolderMasks(birds, folders / "masks")[0].any()


def test_missing_masks_are_an_error_that_counts_them_and_names_the_first(folders, birds):
    (folders / "masks" / "robin" / "2.png").unlink()
    (folders / "masks" / "wren" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images.*masks/robin/2\.png.*missing=\"empty\""):
        FolderMasks(birds, folders / "masks")


DAMAGES = {
    "cut off": lambda data: data[:-30],
    "overwritten": lambda data: data[:40] + bytes(len(data) - 40),
    "empty": lambda data: b"",
    "text": lambda data: b"404: not found",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_mask_is_an_error_that_names_the_file(damage, folders, birds):
    path = folders / "masks" / "robin" / "2.png"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    masks = FolderMasks(birds, folders / "masks")
    assert masks[0].any()
    with pytest.raises(UnreadableAnnotationError, match=r"masks/robin/2\.png cannot be read"):
        masks[1]
    assert issubclass(UnreadableAnnotationError, ValueError)


def test_a_mask_that_vanishes_later_is_an_error(folders, birds):
    masks = FolderMasks(birds, folders / "masks")
    (folders / "masks" / "robin" / "2.png").unlink()
    with pytest.raises(UnreadableAnnotationError, match=r"masks/robin/2\.png"):
        masks[1]


def test_empty_maps_are_had_for_the_asking_with_one_warning_that_counts_them(folders, birds):
    (folders / "masks" / "robin" / "1.png").unlink()
    (folders / "masks" / "robin" / "2.png").write_bytes(b"no image")
    with pytest.warns(
        UserWarning, match=r"2 of 3 images.*1 MissingAnnotationError, 1 UnreadableAnnotationError.*robin/1"
    ) as caught:
        masks = FolderMasks(birds, folders / "masks", missing="empty")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert masks.unannotated == (0, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*annotations")  # torch and Python have their own of workers
        loaded = list(DataLoader(masks, batch_size=None, num_workers=2))
    for map_, size in zip(loaded, SIZES.values(), strict=True):
        assert map_.shape == (1, *size)
    assert [bool(map_.any()) for map_ in loaded] == [False, False, True]
    again = pickle.loads(pickle.dumps(masks))
    assert all(torch.equal(a, b) for a, b in zip(again, masks, strict=True))


def test_nothing_is_said_where_nothing_is_missing_or_a_mask_marks_nothing(folders, birds):
    save_mask(folders, Image.new("L", (9, 7)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = FolderMasks(birds, folders / "masks", missing="empty")
    assert masks.unannotated == ()
    assert not masks[0].any()


def test_a_missing_image_is_not_taken_for_a_missing_annotation(folders, birds):
    (folders / "images" / "robin" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"images/robin/1\.jpg") as caught:
        FolderMasks(birds, folders / "masks", missing="empty")
    assert not isinstance(caught.value, MissingAnnotationError)


def test_the_images_may_be_a_list_of_paths_and_the_masks_have_a_suffix_of_their_own(folders):
    paths = sorted((folders / "images").rglob("*.jpg"))
    for path in (folders / "masks").rglob("*.png"):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    masks = FolderMasks(paths, folders / "masks", image_root=folders / "images", suffix="_mask.png")
    assert [tuple(mask.shape[1:]) for mask in masks] == list(SIZES.values())
    with pytest.raises(ValueError, match=r"images/robin/1\.jpg.* is not in the subpath"):
        FolderMasks(paths, folders / "masks", image_root=folders / "masks")


def test_two_images_cannot_share_a_mask(folders):
    paths = [folders / "images" / "robin" / name for name in ("1.jpg", "1.png")]
    with pytest.raises(ValueError, match=r"robin/1\.png in .*masks/robin/1\.png .* also of .*robin/1\.jpg"):
        FolderMasks(paths, folders / "masks", image_root=folders / "images")


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"threshold": 0}, ValueError, r"\(0, 1\]"),
        ({"threshold": 1.1}, ValueError, r"\(0, 1\]"),
        ({"threshold": float("nan")}, ValueError, r"\(0, 1\]"),
        ({"masks": "nowhere"}, FileNotFoundError, r"3 of 3 images.*nowhere/robin/1\.png"),
        ({"images": [1, 2]}, TypeError, r"\.samples"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, kind, says, folders, birds):
    with pytest.raises(kind, match=says):
        FolderMasks(**{"images": birds, "masks": folders / "masks", **arguments})


def test_part_of_a_data_set_takes_the_same_part_of_its_maps(folders, birds):
    part = Subset(birds, [2, 0])
    with pytest.raises(TypeError, match=r"Subset\(maps, subset\.indices\)"):
        FolderMasks(part, folders / "masks")
    masks = Subset(FolderMasks(birds, folders / "masks"), part.indices)
    assert [mask.shape[1:] for mask in masks] == [image.size[::-1] for image, _ in part]


def test_indices_are_a_sequences(folders, birds):
    masks = FolderMasks(birds, folders / "masks")
    assert torch.equal(masks[-1], masks[2])
    assert len(list(masks)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError):
            masks[index]
    with pytest.raises(TypeError):
        masks[:2]


def test_without_pillow_the_error_names_the_extra(folders, birds, monkeypatch):
    masks = FolderMasks(birds, folders / "masks")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"sip-plugin\[annotations\]"):
        masks[0]


def test_importing_the_annotations_imports_none_of_the_optional_packages():
    code = (
        "import sys; import sip_plugin.salience.annotations; "
        "print([m for m in ('PIL', 'torchvision', 'pycocotools', 'label_studio_sdk') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
