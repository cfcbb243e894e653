"""The snippets of docs/howto/human_salience.md run as they stand, one after the other."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import ROOT
from tests.salience.annotations.archive import Archive

PAGE = (ROOT / "docs" / "howto" / "human_salience.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page speaks of."""
    Archive(tmp_path)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "bird"}]}
    for i in range(3):
        for kind, mode in (("photos", "RGB"), ("masks", "L")):
            path = tmp_path / kind / "robin" / f"{i}.{'jpg' if mode == 'RGB' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (40, 30), "white").save(path)
        image = {"id": i, "file_name": f"robin/{i}.jpg", "height": 30, "width": 40}
        content["images"].append(image)
        polygon = [[0, 0, 10, 0, 10, 10, 0, 10]]
        content["annotations"].append({"id": i, "image_id": i, "category_id": 1, "segmentation": polygon})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_snippets_run_one_after_the_other(folder):
    model = nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 3))
    names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01)}
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert len(SNIPPETS) == 6
    exec(SNIPPETS[0], names)
    assert names["maps"].shape == (8, 1, 224, 224)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    exec(SNIPPETS[1], names)
    assert len(names["train"]) == 8
    for (_, label, _), i in zip(names["train"], names["kept"].indices, strict=True):
        assert label == names["birds"].samples[i][1]
    exec(SNIPPETS[2], names)
    assert names["data"][0][2].all()
    (folder / "masks" / "robin" / "1.png").unlink()
    with pytest.warns(UserWarning, match="1 of 3 images"):
        exec(SNIPPETS[5], names)
    assert names["annotated"] == [0, 2]


def test_the_snippet_on_coco(folder):
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    names = {}
    exec("from torchvision.datasets import ImageFolder\nphotos = ImageFolder('photos')\n" + SNIPPETS[3], names)
    assert names["masks"][0].sum() == 100


def test_the_snippet_on_label_studio(folder):
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="needs Label Studio's SDK")
    tasks = []
    for i in range(3):
        mask = np.zeros((30, 40), dtype=np.uint8)
        mask[: i + 1] = 255
        value = {"format": "rle", "rle": brush.mask2rle(mask), "brushlabels": ["Bird"]}
        result = {"id": "r", "type": "brushlabels", "value": value, "original_width": 40, "original_height": 30}
        tasks.append({"data": {"image": f"/data/upload/1/0123abcd-{i}.jpg"}, "annotations": [{"result": [result]}]})
    (folder / "project.json").write_text(json.dumps(tasks))
    names = {}
    exec("from torchvision.datasets import ImageFolder\nphotos = ImageFolder('photos')\n" + SNIPPETS[4], names)
    assert [int(mask.sum()) for mask in names["masks"]] == [40, 80, 120]
