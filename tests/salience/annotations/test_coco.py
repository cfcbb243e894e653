"""COCOMasks: polygons and both kinds of RLE, as pycocotools reads them."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from sip_plugin.salience.annotations import (
    COCOMasks,
    MissingAnnotationError,
    UnmarkedAnnotationError,
    UnreadableAnnotationError,
)

coco_mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools")

HEIGHT, WIDTH = 6, 8


def box(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def uncompressed(mask):
    """COCO's runs go down the columns and begin with zeros."""
    runs, value = [0], False
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": runs}


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


class Annotated:
    """Images in two folders and a file of instances about them."""

    def __init__(self, root):
        self.root, self.file = root, root / "instances.json"
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 3, "name": "bird"}, {"id": 7, "name": "cat"}],
        }

    def image(self, name, stored=True):
        number = 10 + len(self.content["images"])
        self.content["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        if stored:
            path = self.root / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(path)
        return number

    def add(self, image, segmentation, category=3, crowd=0):
        number = 100 + len(self.content["annotations"])
        annotation = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
        self.content["annotations"].append(annotation | {"segmentation": segmentation})
        return number

    def masks(self, images=None, **options):
        self.file.write_text(json.dumps(self.content))
        return COCOMasks(ImageFolder(self.root / "photos") if images is None else images, self.file, **options)


@pytest.fixture
def annotated(tmp_path):
    return Annotated(tmp_path)


@pytest.mark.parametrize("form", [lambda *corners: polygon(*corners), lambda *corners: uncompressed(box(*corners))])
def test_polygons_and_runs_mark_the_pixels_inside(form, annotated):
    number = annotated.image("a/1.jpg")
    annotated.add(number, form(1, 2, 4, 7))
    masks = annotated.masks()
    assert masks[0].dtype == torch.bool
    assert torch.equal(masks[0], torch.from_numpy(box(1, 2, 4, 7))[None])


def test_compressed_runs_mark_the_pixels_that_were_encoded(annotated):
    generator = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        mask = generator.random((HEIGHT, WIDTH)) < share
        annotated.add(annotated.image(f"a/{share}.jpg"), compressed(mask))
        assert torch.equal(annotated.masks()[-1][0], torch.from_numpy(mask))


def test_a_map_is_the_union_of_all_instances_and_crowds(annotated):
    number = annotated.image("a/1.jpg")
    annotated.add(number, polygon(0, 0, 2, 2) + polygon(4, 4, 6, 6))
    annotated.add(number, compressed(box(1, 1, 3, 5)), category=7)
    annotated.add(number, uncompressed(box(5, 0, 6, 8)), crowd=1)
    expected = box(0, 0, 2, 2) | box(4, 4, 6, 6) | box(1, 1, 3, 5) | box(5, 0, 6, 8)
    assert torch.equal(annotated.masks()[0][0], torch.from_numpy(expected))


@pytest.mark.parametrize("wanted", [["bird"], [3], "bird", 3])
def test_categories_are_chosen_by_name_or_id(wanted, annotated):
    number = annotated.image("a/1.jpg")
    annotated.add(number, polygon(0, 0, 2, 2), category=7)
    annotated.add(number, polygon(3, 3, 5, 6), category=3)
    assert torch.equal(annotated.masks(categories=wanted)[0][0], torch.from_numpy(box(3, 3, 5, 6)))
    both = torch.from_numpy(box(3, 3, 5, 6) | box(0, 0, 2, 2))
    assert torch.equal(annotated.masks(categories=["bird", 7])[0][0], both)
    with pytest.raises(ValueError, match=r"\(3, 7, bird, cat\).*got \['dog'\]"):
        annotated.masks(categories=["dog"])
    with pytest.raises(ValueError, match="None for all"):
        annotated.masks(categories=[])


def test_images_are_found_by_file_name_path_or_id_in_the_order_asked_for(annotated):
    first, second = annotated.image("a/1.jpg"), annotated.image("b/1.jpg")
    annotated.add(first, polygon(0, 0, 2, 2))
    annotated.add(second, polygon(3, 3, 5, 6))
    expected = [torch.from_numpy(box(3, 3, 5, 6))[None], torch.from_numpy(box(0, 0, 2, 2))[None]]
    photos = annotated.root / "photos"
    for images in (
        [str(photos / "b/1.jpg"), str(photos / "a/1.jpg")],
        [photos / "b/1.jpg", photos / "a/1.jpg"],
        [second, first],
    ):
        masks = annotated.masks(images)
        assert len(masks) == 2
        assert all(torch.equal(mask, other) for mask, other in zip(masks, expected, strict=True))


def test_two_images_cannot_share_an_entry(annotated):
    for name in ("a/1.jpg", "b/1.jpg"):
        annotated.image(name)
    annotated.content["images"] = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    annotated.add(1, polygon(0, 0, 2, 2))
    with pytest.raises(ValueError, match=r"b/1\.jpg in .*instances\.json .* also of .*a/1\.jpg"):
        annotated.masks()


def test_an_image_listed_twice_must_be_given_by_its_id(annotated):
    for _ in range(2):
        annotated.add(annotated.image("a/1.jpg"), polygon(0, 0, 2, 2))
    with pytest.raises(ValueError, match=r"a/1\.jpg in .* is one of 2"):
        annotated.masks()
    assert annotated.masks([11])[0].sum() == 4


def test_images_that_are_unlisted_or_without_instances_are_missing(annotated):
    annotated.add(annotated.image("a/1.jpg"), polygon(0, 0, 2, 2))
    annotated.add(annotated.image("a/2.jpg"), polygon(0, 0, 2, 2), category=7)
    annotated.image("a/3.jpg")
    annotated.content["images"].pop()
    with pytest.raises(MissingAnnotationError, match=r"2 of 3 images.*a/2\.jpg in .*instances\.json"):
        annotated.masks(categories=["bird"])
    with pytest.raises(MissingAnnotationError, match=r"1 of 3 images.*a/3\.jpg"):
        annotated.masks()
    with pytest.warns(UserWarning, match="2 of 3 images.*2 MissingAnnotationError") as caught:
        masks = annotated.masks(categories=["bird"], missing="empty")
    assert sum(one.category is UserWarning for one in caught) == 1  # pycocotools has some of another kind
    assert masks.unannotated == (1, 2)
    assert [int(mask.sum()) for mask in DataLoader(masks, batch_size=None, num_workers=2)] == [4, 0, 0]
    assert masks[2].shape == (1, HEIGHT, WIDTH)
    again = pickle.loads(pickle.dumps(masks))
    assert all(torch.equal(a, b) for a, b in zip(again, masks, strict=True))


BROKEN = {
    "no polygon": [],
    "two corners": [[0, 0, 2, 2]],
    "half a corner": [[0, 0, 2, 2, 1, 0, 1]],
    "NaN": [[0, 0, 3, 0, float("nan"), 3]],
    "letters": [["a"] * 6],
    "nothing": None,
    "a dict of another kind": {"runs": [1]},
    "too few pixels": {"size": [HEIGHT, WIDTH], "counts": [3, 4]},
    "too many pixels": {"size": [HEIGHT, WIDTH], "counts": [3, WIDTH * HEIGHT]},
    "a negative run": {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT + 3, -3]},
    "nothing, compressed": {"size": [HEIGHT, WIDTH], "counts": ""},
    "few pixels, compressed": {"size": [HEIGHT, WIDTH], "counts": compressed(np.eye(3))["counts"]},
    "one pixel too few, compressed": {"size": [HEIGHT, WIDTH], "counts": compressed(np.eye(47)[1:2])["counts"]},
    "one pixel too many, compressed": {"size": [HEIGHT, WIDTH], "counts": compressed(np.eye(49)[1:2])["counts"]},
    "other characters": {"size": [HEIGHT, WIDTH], "counts": "é"},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_segmentation_is_an_error_that_names_it_or_an_empty_map(kind, annotated):
    annotated.add(annotated.image("a/1.jpg"), polygon(0, 0, 2, 2))
    annotated.add(annotated.image("a/2.jpg"), BROKEN[kind])
    masks = annotated.masks()
    assert masks[0].sum() == 4
    for _ in range(3):  # whatever was in memory before
        with pytest.raises(UnreadableAnnotationError, match=r"a/2\.jpg in .*instances\.json cannot be read"):
            masks[1]
    with pytest.warns(UserWarning, match="1 UnreadableAnnotationError"):
        assert annotated.masks(missing="empty").unannotated == (1,)


def test_an_image_of_another_size_than_the_file_says_is_an_error(annotated):
    number = annotated.image("a/1.jpg")
    annotated.add(number, polygon(0, 0, 2, 2))
    Image.new("RGB", (2 * WIDTH, HEIGHT)).save(annotated.root / "photos" / "a" / "1.jpg")
    with pytest.raises(ValueError, match=r"a/1\.jpg in .*instances\.json is 8×6 pixels, the image 16×6"):
        annotated.masks()[0]
    assert annotated.masks([number])[0].shape == (1, HEIGHT, WIDTH)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        COCOMasks([1], tmp_path / "absent.json")


def test_without_pycocotools_the_error_names_the_extra(annotated, monkeypatch):
    annotated.add(annotated.image("a/1.jpg"), polygon(0, 0, 2, 2))
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"sip-plugin\[annotations\]"):
        annotated.masks()


FAR = {
    "right": (1, 20, 4, 25),
    "left": (1, -9, 4, -2),
    "below": (30, 1, 40, 4),
    "above": (-40, 1, -30, 4),
    "1e30": (0, 0, 3, 1e30),
    "-1e30": (0, -1e30, 3, 3),
    "1e9": (0, 0, 1e9, 3),
}


@pytest.mark.parametrize("where", FAR)
@pytest.mark.parametrize("among_others", [False, True])
def test_an_instance_outside_its_image_or_that_no_image_reaches_is_an_error_that_names_it(
    where, among_others, annotated
):
    number = annotated.image("a/1.jpg")
    if among_others:
        annotated.add(number, polygon(0, 0, 2, 2))
    outside = annotated.add(number, polygon(*FAR[where]))
    says = rf"a/1\.jpg.*\[{outside}\] must be .*in the image"
    with pytest.raises(UnreadableAnnotationError, match=says):
        annotated.masks()[0]
    with pytest.warns(UserWarning, match="1 UnreadableAnnotationError"):
        assert annotated.masks(missing="empty").unannotated == (0,)


def test_polygons_that_reach_over_the_edge_are_cut_off_there(annotated):
    number = annotated.image("a/1.jpg")
    annotated.add(number, polygon(-3, 5, 4, 20) + polygon(1, 30, 2, 40))
    assert torch.equal(annotated.masks()[0][0], torch.from_numpy(box(0, 5, 4, 8)))


def test_polygons_that_cover_no_pixel_at_all_are_an_error_but_not_beside_others(annotated):
    number = annotated.image("a/1.jpg")
    annotated.add(number, [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]])
    with pytest.raises(UnmarkedAnnotationError, match=r"a/1\.jpg in .* marks no pixel"):
        annotated.masks()[0]
    with pytest.warns(UserWarning, match="1 UnmarkedAnnotationError"):
        assert not annotated.masks(missing="empty")[0].any()
    annotated.add(number, polygon(0, 0, 2, 2))
    assert annotated.masks()[0].sum() == 4


@pytest.mark.parametrize(
    "stored",
    [
        "robin\\0001.jpg",
        "../../label-studio/data/media/upload/4/0001.jpg",
        "../../label-studio/data/media/upload/4/1a2b3c4d-0001.jpg",
        "images/1/0001.jpg",
        "/absolute/elsewhere/0001.jpg",
    ],
)
def test_names_as_tools_write_them_are_found(stored, annotated):
    annotated.image("robin/0001.jpg")
    annotated.image("robin/0002.jpg")
    for number, corners in ((10, (1, 2, 4, 6)), (11, (0, 0, 2, 2))):
        annotated.add(number, polygon(*corners))
    annotated.content["images"][0]["file_name"] = stored
    masks = annotated.masks()
    assert np.array_equal(masks[0][0], box(1, 2, 4, 6))
    assert np.array_equal(masks[1][0], box(0, 0, 2, 2))


def test_a_name_that_is_not_unique_does_not_decide(annotated):
    for name in ("robin/0001.jpg", "wren/0001.jpg", "wren/0002.jpg"):
        annotated.image(name)
    for number in (10, 11, 12):
        annotated.add(number, polygon(1, 1, 3, 3))
    annotated.content["images"][0]["file_name"] = "elsewhere/0001.jpg"  # two images have that name
    annotated.content["images"][2]["file_name"] = "elsewhere/9999.jpg"
    with pytest.raises(MissingAnnotationError, match=r"2 of 3 .* for instance, elsewhere/0001\.jpg, wren/0001\.jpg"):
        annotated.masks()


def test_what_other_images_lack_is_no_matter(annotated):
    for name in ("robin/0001.jpg", "robin/0002.jpg", "robin/0003.jpg"):
        annotated.image(name)
    runs = uncompressed(box(1, 2, 4, 6))
    runs["counts"] = [float(count) for count in runs["counts"]]
    annotated.add("10", runs)
    annotated.add(11, [[1, 1, 2, 2], *polygon(0, 0, 2, 2), [3.0, 3.0]])
    annotated.add(12, polygon(0, 0, 2, 2))
    del annotated.content["annotations"][2]["segmentation"]
    del annotated.content["images"][0]["height"]
    annotated.content["images"][1]["width"] = None
    masks = annotated.masks()
    assert np.array_equal(masks[0][0], box(1, 2, 4, 6))
    assert np.array_equal(masks[1][0], box(0, 0, 2, 2))
    with pytest.raises(UnreadableAnnotationError):
        masks[2]


def test_images_found_by_name_alone_are_told(annotated):
    annotated.image("val/1.jpg")
    annotated.add(10, polygon(1, 1, 3, 3))
    annotated.content["images"][0]["file_name"] = "train/1.jpg"
    with pytest.warns(UserWarning, match=r"1 images are found .* by their names alone.*train/1\.jpg"):
        annotated.masks()


def test_a_date_is_no_prefix_of_an_upload_and_the_whole_name_comes_first(annotated):
    for name in ("p/cat.jpg", "p/dog.jpg"):
        annotated.image(name)
    for number in (10, 11):
        annotated.add(number, polygon(1, 1, 3, 3))
    annotated.content["images"][0]["file_name"] = "20240101-cat.jpg"
    with pytest.raises(MissingAnnotationError):
        annotated.masks()
    annotated.content["images"][0]["file_name"] = "images/cat.jpg"
    annotated.content["images"].append(
        annotated.content["images"][0] | {"id": 99, "file_name": "images/1a2b3c4d-cat.jpg"}
    )
    with pytest.warns(UserWarning, match="names alone"):
        assert annotated.masks()[0].sum() == 4


def test_a_remnant_of_its_own_beside_a_polygon_is_left_out(annotated):
    annotated.image("a/1.jpg")
    annotated.add(10, [[1, 1, 2, 2]])
    annotated.add(10, polygon(0, 0, 2, 2))
    assert np.array_equal(annotated.masks()[0][0], box(0, 0, 2, 2))
