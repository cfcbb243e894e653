"""LabelStudioMasks: brush strokes in Label Studio's own export, decoded by its own SDK."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from sip_plugin.salience.annotations import LabelStudioMasks, MissingAnnotationError, UnreadableAnnotationError

brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="needs Label Studio's SDK")
HEIGHT, WIDTH = 6, 8


def box(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def stroke(mask, label="Bird", number="r1", alpha=255, **more):
    value = {"format": "rle", "rle": brush.mask2rle(mask.astype(np.uint8) * alpha), "brushlabels": [label]}
    return region(value, "brushlabels", number) | more


def region(value, kind, number="r1"):
    return {
        "id": number,
        "type": kind,
        "value": value,
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "from_name": "tag",
        "to_name": "image",
    }


class Project:
    """Photos in two folders and an export about them."""

    def __init__(self, root):
        self.root, self.file, self.tasks = root, root / "project.json", []

    def photo(self, name, **options):
        path = self.root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path, **options)
        return path

    def task(self, address, *annotations, **more):
        """A task; each annotation is the list of its results, None for a skipped one."""
        number = 1 + len(self.tasks)
        self.tasks.append(
            {
                "id": number,
                "data": {"image": address},
                "annotations": [
                    {
                        "id": 10 * number + i,
                        "completed_by": i,
                        "was_cancelled": results is None,
                        "result": [] if results is None else results,
                    }
                    for i, results in enumerate(annotations)
                ],
                "drafts": [{"result": [stroke(box(0, 0, HEIGHT, WIDTH))]}],
                "predictions": [{"result": [stroke(box(0, 0, HEIGHT, WIDTH))]}],
            }
            | more
        )

    def masks(self, images=None, **options):
        self.file.write_text(json.dumps(self.tasks))
        return LabelStudioMasks(ImageFolder(self.root / "photos") if images is None else images, self.file, **options)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_the_brushed_pixels_are_salient(project):
    project.photo("a/1.jpg")
    generator = np.random.default_rng(0)
    for share in (0.1, 0.5, 1.0):
        mask = generator.random((HEIGHT, WIDTH)) < share
        project.tasks.clear()
        project.task("/data/upload/3/1a2b3c4d-1.jpg", [stroke(mask)])
        masks = project.masks()
        assert masks[0].dtype == torch.bool
        assert torch.equal(masks[0], torch.from_numpy(mask)[None])


def test_a_stroke_written_bit_by_bit_is_decoded(project):
    """Two runs and one list of single values, as thi.ng/rle-pack writes them, of 48 RGBA pixels."""
    covered, bits = 19, ""
    bits += f"{4 * HEIGHT * WIDTH:032b}" + f"{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "1" + "10" + f"{4 * covered - 1:08b}" + f"{255:08b}"
    bits += "0" + "00" + f"{4 - 1:03b}" + f"{7:08b}{7:08b}{7:08b}{0:08b}"  # alpha 0: nothing, whatever the colour
    bits += "1" + "10" + f"{4 * (48 - covered - 1) - 1:08b}" + f"{0:08b}"
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    project.photo("a/1.jpg")
    project.task("1.jpg", [region({"format": "rle", "rle": rle, "brushlabels": ["Bird"]}, "brushlabels")])
    expected = torch.arange(48).view(1, HEIGHT, WIDTH) < covered
    assert torch.equal(project.masks()[0], expected)


def test_pixels_that_the_brush_covers_in_part_belong_to_the_stroke(project):
    project.photo("a/1.jpg")
    project.task("1.jpg", [stroke(box(1, 1, 3, 3), alpha=100)])
    assert torch.equal(project.masks()[0][0], torch.from_numpy(box(1, 1, 3, 3)))


def test_an_annotation_is_the_union_of_its_strokes(project):
    project.photo("a/1.jpg")
    project.task("1.jpg", [stroke(box(0, 0, 2, 2)), stroke(box(1, 1, 4, 4), number="r2")])
    assert torch.equal(project.masks()[0][0], torch.from_numpy(box(0, 0, 2, 2) | box(1, 1, 4, 4)))


@pytest.mark.parametrize(("threshold", "votes"), [(0.2, 1), (1 / 3, 1), (0.5, 2), (2 / 3, 2), (0.9, 3), (1.0, 3)])
def test_a_pixel_is_salient_from_the_threshold_on(threshold, votes, project):
    project.photo("a/1.jpg")
    seen = [box(0, 0, 4, 4), box(0, 0, 2, 6), box(1, 1, 6, 8)]
    skipped = None
    project.task("1.jpg", *[[stroke(mask)] for mask in seen], skipped)
    mask = project.masks(threshold=threshold)[0][0]
    assert torch.equal(mask, torch.from_numpy(sum(one.astype(int) for one in seen) >= votes))


def test_somebody_who_marked_nothing_counts(project):
    project.photo("a/1.jpg")
    project.photo("a/2.jpg")
    project.task("1.jpg", [stroke(box(0, 0, 2, 2))], [], [])
    project.task("2.jpg", [])
    masks = project.masks()
    assert not masks[0].any()
    assert project.masks(threshold=1 / 3)[0].sum() == 4
    assert masks[1].shape == (1, HEIGHT, WIDTH)
    assert not masks[1].any()
    assert masks.unannotated == ()


def test_labels_choose_strokes(project):
    project.photo("a/1.jpg")
    project.task(
        "1.jpg",
        [
            stroke(box(0, 0, 2, 2), "Beak"),
            stroke(box(3, 3, 5, 5), "Wing", "r2"),
            region({"vertices": [[1, 1], [50, 1], [50, 50]], "vectorlabels": ["Shadow"]}, "vectorlabels", "r3"),
        ],
    )
    assert torch.equal(project.masks(labels=["Wing"])[0][0], torch.from_numpy(box(3, 3, 5, 5)))
    assert project.masks(labels=["Wing", "Beak"])[0].sum() == 8
    with pytest.raises(ValueError, match=r"Beak, Shadow, Wing.*got \['Tail'\]"):
        project.masks(labels=["Tail"])
    with pytest.raises(ValueError, match="None for all"):
        project.masks(labels=[])
    with pytest.raises(ValueError, match=r"project\.json has a region of the type 'vectorlabels'.*labels="):
        project.masks()[0]


def test_a_brush_whose_labels_are_a_result_of_their_own_is_one_region(project):
    """<Brush> with <Labels> gives two results of one id; what is said about a region gives a third."""
    project.photo("a/1.jpg")
    drawn = stroke(box(0, 0, 2, 2))
    rle = drawn["value"]["rle"]
    project.task(
        "1.jpg",
        [
            region({"format": "rle", "rle": rle}, "brush"),
            region({"format": "rle", "rle": rle, "labels": ["Wing"]}, "labels"),
            region({"format": "rle", "rle": rle, "text": ["blurred"]}, "textarea"),
            {"id": "c", "type": "choices", "value": {"choices": ["good"]}, "from_name": "quality", "to_name": "image"},
            {"id": "n", "type": "number", "value": None},
            {"type": "relation", "from_id": "r1", "to_id": "r1"},
        ],
    )
    assert project.masks(labels=["Wing"])[0].sum() == 4
    assert project.masks()[0].sum() == 4


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("vectorlabels", {"vertices": [[1, 1], [50, 1], [50, 50]], "vectorlabels": ["Bird"]}),
        ("bitmasklabels", {"imageDataURL": "data:image/png;base64,", "bitmasklabels": ["Bird"]}),
    ],
)
def test_other_shapes_are_an_error_that_says_how_to_leave_them_out(kind, value, project):
    project.photo("a/1.jpg")
    project.task("1.jpg", [region(value, kind)])
    with pytest.raises(ValueError, match=rf"type '{kind}'.*labels="):
        project.masks()[0]
    with pytest.raises(ValueError, match=kind):  # nor is it a missing annotation
        project.masks(missing="empty")


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/1a2b3c4d-a_bird.jpg",
        "/data/upload/1a2b3c4d-a_bird.jpg",
        "https://label.example.org/data/upload/3/1a2b3c4d-a_bird.jpg",
        "/data/local-files/?d=photos/a/a%20bird.jpg",
        "s3://bucket/photos/a/a bird.jpg",
        "https://example.org/photos/a%20bird.jpg?signature=/x.jpg",
        "photos/a/a bird.jpg",
        "a%20bird.jpg",
    ],
)
def test_a_task_belongs_to_the_image_of_its_name(address, project):
    project.photo("a/a bird.jpg")
    project.photo("a/bird.jpg")
    project.task("bird.jpg", [])
    project.task(address, [stroke(box(0, 0, 2, 2))])
    masks = project.masks()
    assert [path.name for path in masks.images] == ["a bird.jpg", "bird.jpg"]
    assert [int(mask.sum()) for mask in masks] == [4, 0]


def test_the_images_may_be_the_uploads_themselves(project):
    project.photo("a/1a2b3c4d-1.jpg")
    project.task("/data/upload/3/1a2b3c4d-1.jpg", [stroke(box(0, 0, 2, 2))])
    assert project.masks()[0].sum() == 4


def test_folders_tell_images_of_one_name_apart(project):
    for folder in ("a", "b"):
        project.photo(f"{folder}/1.jpg")
    project.task("s3://bucket/photos/b/1.jpg", [stroke(box(0, 0, 1, 1))])
    project.task("s3://bucket/photos/a/1.jpg", [stroke(box(0, 0, 2, 2))])
    assert [int(mask.sum()) for mask in project.masks()] == [4, 1]


def test_names_that_do_not_tell_are_an_error(project):
    for folder in ("a", "b"):
        project.photo(f"{folder}/1.jpg")
    project.task("/data/upload/3/1a2b3c4d-1.jpg", [stroke(box(0, 0, 1, 1))])
    with pytest.raises(ValueError, match=r"b/1\.jpg in .* also of .*a/1\.jpg"):
        project.masks()
    project.task("/data/upload/3/5e6f7a8b-1.jpg", [stroke(box(0, 0, 2, 2))])
    with pytest.raises(ValueError, match=r"a/1\.jpg in .*project\.json is one of 2"):
        project.masks()
    for task, folder in zip(project.tasks, ("b", "a"), strict=True):
        task["data"]["folder"] = folder
    masks = project.masks(image=lambda task: f"{task['data']['folder']}/1.jpg")
    assert [int(mask.sum()) for mask in masks] == [4, 1]


def test_the_field_with_the_image_can_be_named(project):
    project.photo("a/1.jpg")
    project.task("1.jpg", [stroke(box(0, 0, 2, 2))], data={"photo": "1.jpg", "note": "x"})
    with pytest.raises(ValueError, match=r"project\.json .*no image in the field 'image'"):
        project.masks()
    assert project.masks(image="photo")[0].sum() == 4


def test_images_without_a_submitted_annotation_are_missing(project):
    for name in ("a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg"):
        project.photo(name)
    project.task("1.jpg", [stroke(box(0, 0, 2, 2))])
    project.task("2.jpg")
    project.task("3.jpg", None)
    with pytest.raises(MissingAnnotationError, match=r"3 of 4 images.*a/2\.jpg in .*project\.json.*empty"):
        project.masks()
    with pytest.warns(UserWarning, match="3 of 4 images") as caught:
        masks = project.masks(missing="empty")
    assert len(caught) == 1
    assert masks.unannotated == (1, 2, 3)
    assert [int(mask.sum()) for mask in DataLoader(masks, batch_size=None, num_workers=2)] == [4, 0, 0, 0]
    again = pickle.loads(pickle.dumps(masks))
    assert all(torch.equal(a, b) for a, b in zip(again, masks, strict=True))


BROKEN = {
    "cut off": brush.mask2rle(np.eye(HEIGHT, WIDTH, dtype=np.uint8))[:-8],
    "empty": [],
    "another size": brush.mask2rle(np.ones((HEIGHT, WIDTH + 1), dtype=np.uint8)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_stroke_is_an_error_that_names_it_or_an_empty_map(kind, project):
    for name in ("a/1.jpg", "a/2.jpg"):
        project.photo(name)
    project.task("1.jpg", [stroke(box(0, 0, 2, 2))])
    project.task("2.jpg", [region({"format": "rle", "rle": BROKEN[kind], "brushlabels": ["Bird"]}, "brushlabels")])
    masks = project.masks()
    assert masks[0].sum() == 4
    with pytest.raises(UnreadableAnnotationError, match=r"a/2\.jpg in .*project\.json cannot be read"):
        masks[1]
    with pytest.warns(UserWarning, match="1 UnreadableAnnotationError"):
        assert project.masks(missing="empty").unannotated == (1,)


def test_an_image_of_another_size_or_orientation_than_annotated_is_an_error(project):
    project.photo("a/1.jpg")
    wider = brush.mask2rle(np.ones((HEIGHT, WIDTH + 1), dtype=np.uint8))
    project.task("1.jpg", [region({"rle": wider}, "brush") | {"original_width": WIDTH + 1}])
    with pytest.raises(ValueError, match=r"a/1\.jpg in .*project\.json is 9×6 pixels, the image 8×6 pixels"):
        project.masks(missing="empty")
    project.tasks.clear()
    project.task("1.jpg", [stroke(box(0, 0, 2, 2), image_rotation=90)])
    with pytest.raises(ValueError, match=r"project\.json has a region .* turned by 90°"):
        project.masks()


def test_an_image_that_is_turned_by_its_exif_data_is_an_error(project):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: of the same size
    project.photo("a/1.jpg", exif=exif)
    project.task("1.jpg", [stroke(box(0, 0, 2, 2))])
    with pytest.raises(ValueError, match=r"a/1\.jpg in .* turned by its EXIF data"):
        project.masks()[0]


@pytest.mark.parametrize(
    "content", ['{"tasks": []}', '[{"id": 1, "image": "1.jpg", "tag": [], "annotator": 1}]', "[1]", "<html>"]
)
def test_another_file_is_an_error_that_names_it(content, project):
    path = project.photo("a/1.jpg")
    project.file.write_text(content)
    with pytest.raises(ValueError, match=r"project\.json is not "):
        LabelStudioMasks([path], project.file)


def test_without_the_sdk_the_error_names_the_extra(project, monkeypatch):
    path = project.photo("a/1.jpg")
    project.task("1.jpg", [])
    monkeypatch.setitem(sys.modules, "label_studio_sdk.converter.brush", None)
    with pytest.raises(ImportError, match=r"sip-plugin\[labelstudio\]"):
        project.masks([path])


def shape(kind, **value):
    return region(value | {kind: ["Bird"]}, kind)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (shape("rectanglelabels", x=25, y=100 / 6, width=50, height=50, rotation=0), box(1, 2, 4, 6)),
        (shape("rectanglelabels", x=75, y=100 / 6, width=37.5, height=400 / 6, rotation=90), box(1, 2, 4, 6)),
        (shape("polygonlabels", points=[[25, 100 / 6], [75, 100 / 6], [75, 400 / 6], [25, 400 / 6]]), box(1, 2, 4, 6)),
        (shape("ellipselabels", x=50, y=50, radiusX=50, radiusY=50, rotation=0), None),
        (shape("ellipselabels", x=50, y=50, radiusX=37.5, radiusY=400 / 6, rotation=90), None),
    ],
)
def test_shapes_mark_the_pixels_whose_centres_they_hold(result, expected, project):
    project.photo("robin/a.jpg")
    project.task("a.jpg", [result])
    if expected is None:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        expected = ((rows - 3) / 3) ** 2 + ((columns - 4) / 4) ** 2 <= 1
    assert np.array_equal(project.masks()[0][0], expected)


def test_a_keypoint_beside_strokes_is_left_out(project):
    project.photo("robin/a.jpg")
    prompt = region({"x": 10, "y": 10, "width": 0.5, "keypointlabels": ["Bird"]}, "keypointlabels", "p")
    project.task("a.jpg", [prompt, stroke(box(1, 2, 4, 6))])
    assert np.array_equal(project.masks()[0][0], box(1, 2, 4, 6))


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=robin%5Ca.jpg",
        "/data/local-files/?d=photos\\robin\\a.jpg",
        "/storage-data/uploaded/?filepath=upload/1/a.jpg",
        "/storage-data/uploaded/?filepath=upload/1/1a2b3c4d-a.jpg",
        ["/data/upload/1/1a2b3c4d-a.jpg"],
    ],
)
def test_addresses_of_other_versions_and_systems_are_found(address, project):
    project.photo("robin/a.jpg")
    project.task(address, [stroke(box(1, 2, 4, 6))])
    assert np.array_equal(project.masks()[0][0], box(1, 2, 4, 6))


def test_a_task_without_annotations_is_told_from_none(project):
    for name in ("robin/a.jpg", "robin/b.jpg", "robin/c.jpg"):
        project.photo(name)
    project.task("a.jpg", [stroke(box(1, 2, 4, 6))])
    project.task("b.jpg")
    with pytest.raises(MissingAnnotationError, match="no submitted annotation"):
        project.masks(missing="error", images=[project.root / "photos/robin/b.jpg"])
    with pytest.raises(MissingAnnotationError, match="no task of its name"):
        project.masks(missing="error", images=[project.root / "photos/robin/c.jpg"])


def test_an_export_with_the_numbers_of_annotations_is_an_error_that_says_so(project):
    project.photo("robin/a.jpg")
    project.task("a.jpg", annotations=[17, 18])
    with pytest.raises(ValueError, match="numbers of annotations"):
        project.masks()


def test_an_annotation_of_keypoints_alone_has_no_vote(project):
    project.photo("robin/a.jpg")
    prompt = region({"x": 10, "y": 10, "width": 0.5, "keypointlabels": ["Bird"]}, "keypointlabels", "p")
    project.task("a.jpg", [prompt], [stroke(box(1, 2, 4, 6))])
    assert np.array_equal(project.masks(threshold=1.0)[0][0], box(1, 2, 4, 6))
    project.tasks.clear()
    project.task("a.jpg", [prompt])
    with pytest.raises(MissingAnnotationError, match="no submitted annotation"):
        project.masks()
