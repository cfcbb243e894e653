"""CUB200: the archive's own layout, its split, and its segmentations as maps."""

import sys

import pytest
import torch
from PIL import Image

from sip_plugin.salience.annotations import CUB200
from tests.salience.annotations.archive import GREY_IMAGE, SPECIES, Archive


@pytest.fixture(params=[False, True], ids=["segmentations inside", "segmentations beside"])
def either(request, tmp_path):
    return Archive(tmp_path, beside=request.param)


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


@pytest.mark.parametrize("train", [True, False])
def test_the_images_and_labels_of_a_split_are_the_lists(train, archive):
    birds = CUB200(archive.root, train=train)
    chosen = archive.indices(train)
    assert len(birds) == len(chosen) == (8 if train else 4)
    assert len(CUB200(archive.root)) == 8  # for training, if not said otherwise
    assert birds.classes == list(SPECIES)
    assert birds.samples == [(archive.root / "images" / archive.names[i], archive.labels[i]) for i in chosen]
    assert GREY_IMAGE in archive.indices(False)
    for i, (image, label) in zip(chosen, birds, strict=True):
        assert image.mode == "RGB"  # the grey one, too
        assert image.size == archive.sizes[i][::-1]
        assert label == archive.labels[i]
        with Image.open(archive.root / "images" / archive.names[i]) as stored:
            assert image.tobytes() == stored.convert("RGB").tobytes()


def test_the_root_may_be_the_folder_that_the_archive_was_unpacked_in(either):
    inside, outside = CUB200(either.root), CUB200(either.root.parent)
    assert inside.samples == outside.samples
    assert inside.masks().files == outside.masks().files


@pytest.mark.skipif(sys.platform == "win32", reason="on Windows links need privileges")
def test_the_root_may_be_a_link_with_the_segmentations_beside_either_end(tmp_path):
    archive = Archive(tmp_path / "there", beside=True)
    link = tmp_path / "here" / "birds"
    link.parent.mkdir()
    link.symlink_to(archive.root)
    assert CUB200(link).masks()[0].any()
    archive.segmentations.rename(tmp_path / "here" / "segmentations")
    assert CUB200(link).masks()[0].any()


@pytest.mark.parametrize("votes", [1, 3, 5])
@pytest.mark.parametrize("train", [True, False])
def test_a_pixel_is_salient_from_the_threshold_on(votes, train, either):
    masks = CUB200(either.root, train=train).masks(threshold=votes / 5)
    assert len(masks) == (8 if train else 4)
    for i, mask in zip(either.indices(train), masks, strict=True):
        assert torch.equal(mask[0], torch.from_numpy(either.shares[i] >= votes))
        assert 0 < mask.sum() < mask.numel()
    if votes == 3:  # a majority
        assert all(torch.equal(*pair) for pair in zip(masks, CUB200(either.root, train=train).masks(), strict=True))


def test_segmentations_may_be_somewhere_else(archive, tmp_path):
    archive.segmentations.rename(tmp_path / "elsewhere")
    birds = CUB200(archive.root)
    with pytest.raises(FileNotFoundError, match=r"segmentations/001.*_7000\.png"):
        birds.masks()
    assert birds.masks(segmentations=tmp_path / "elsewhere")[0].any()


def test_a_missing_segmentation_is_an_error_or_an_empty_map(archive):
    archive.segmentation(1).unlink()
    birds = CUB200(archive.root)
    with pytest.raises(FileNotFoundError, match=r"1 of 8 images.*_0001_7001\.png"):
        birds.masks()
    with pytest.warns(UserWarning, match="1 of 8 images"):
        masks = birds.masks(missing="empty")
    assert masks.unannotated == (1,)
    assert masks[1].shape == (1, *archive.sizes[1])
    assert not masks[1].any()
    assert masks[0].any()


def test_a_segmentation_of_another_size_names_both_files(archive):
    Image.new("L", (10, 10)).save(archive.segmentation(0))
    with pytest.raises(ValueError, match=r"_0000_7000\.jpg in .*_0000_7000\.png is 10×10 pixels, the image 60×40"):
        CUB200(archive.root).masks()[0]


def test_an_image_that_its_exif_data_turn_is_an_error(archive):
    birds = CUB200(archive.root)
    path, exif = birds.samples[0][0], Image.Exif()
    exif[0x0112] = 3
    birds[0][0].save(path, exif=exif)
    with pytest.raises(ValueError, match=rf"{path.name} .* turned by its EXIF data"):
        birds.masks()[0]


def test_a_transform_is_for_evaluation_and_cannot_go_with_maps(archive):
    birds = CUB200(archive.root, train=False, transform=lambda image: image.resize((8, 8)))
    assert birds[0][0].size == (8, 8)
    with pytest.raises(ValueError, match="SalientDataset"):
        birds.masks()


@pytest.mark.parametrize("name", ["images", "image_class_labels", "train_test_split", "classes"])
def test_a_missing_list_is_named(name, archive):
    (archive.root / f"{name}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.txt"):
        CUB200(archive.root)


def test_labels_count_from_zero_and_name_their_classes_where_the_numbers_have_a_gap(archive):
    (archive.root / "classes.txt").write_text(
        "".join(f"{i} {name}\n" for i, name in zip((1, 2, 9), SPECIES, strict=True))
    )
    renumbered = [9 if label == 2 else label + 1 for label in archive.labels]
    (archive.root / "image_class_labels.txt").write_text(
        "".join(f"{i} {n}\n" for i, n in enumerate(renumbered, start=1))
    )
    birds = CUB200(archive.root)
    assert all(birds.classes[label] in str(path) for path, label in birds.samples)
