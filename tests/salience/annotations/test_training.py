"""SIP-H from the archive to a trained network: maps move with their images, and what is marked stays as it is."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.salience import SalientDataset
from sip_plugin.salience.annotations import CUB200, COCOMasks, FolderMasks
from tests.conftest import small_network
from tests.salience.annotations.archive import Archive

EPS = 8 / 255
AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(32, scale=(0.4, 1)),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


@pytest.fixture
def batch(archive):
    birds = CUB200(archive.root)
    torch.manual_seed(0)
    return next(iter(DataLoader(SalientDataset(birds, birds.masks(), AUGMENT), batch_size=8)))


def test_sip_h_training_runs_from_the_archive_and_leaves_the_marked_pixels_alone(archive):
    birds = CUB200(archive.root, train=True)
    data = SalientDataset(birds, birds.masks(threshold=0.5), AUGMENT)
    torch.manual_seed(0)
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=2, persistent_workers=True)
    model = small_network().train()
    trained_on = []
    model.register_forward_pre_hook(lambda module, args: trained_on.append(args[0]) if module.training else None)
    criterion = AdversarialTrainer(model, "sip-at", eps=EPS, alpha=1 / 255, steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for epoch in range(12):
        criterion.set_epoch(epoch, 12)
        for images, labels, maps in loader:
            assert images.shape == (4, 3, 32, 32)
            assert maps.shape == (4, 1, 32, 32)
            assert maps.dtype == torch.bool
            assert maps.flatten(1).any(1).all()
            trained_on.clear()
            loss = criterion(images, labels, mask=maps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            (adversarial,) = trained_on
            salient = maps.expand_as(images)
            assert torch.equal(adversarial[salient], images[salient])
            changed = (adversarial != images)[~salient]
            assert changed.float().mean() > 0.5
            assert (adversarial - images).abs().max() <= EPS + 1e-6
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])


def test_a_wrapped_attack_takes_the_maps_of_a_batch(batch):
    images, labels, maps = batch
    model = small_network()
    attack = SIPWrapper(torchattacks.PGD(model, eps=EPS, alpha=2 / 255, steps=3))
    adversarial = attack(images, labels, mask=maps)
    salient = maps.expand_as(images)
    assert torch.equal(adversarial[salient], images[salient])
    assert (adversarial != images)[~salient].float().mean() > 0.5


def hide_coordinates(archive):
    """Each image tells where its pixels come from: red is the row, green the column, blue the image."""
    for i, name in enumerate(archive.names):
        height, width = archive.sizes[i]
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([y, x, np.full_like(x, i)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(archive.root / "images" / name, format="PNG")  # without JPEG's losses


TRANSFORMS = {
    "crop and flip": [v2.RandomCrop(24), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    "smaller": [v2.Resize((17, 23), interpolation=v2.InterpolationMode.NEAREST)],
    "larger": [v2.Resize((97, 101), interpolation=v2.InterpolationMode.NEAREST), v2.RandomHorizontalFlip()],
    "resized crop": [v2.RandomResizedCrop(32, interpolation=v2.InterpolationMode.NEAREST), v2.RandomHorizontalFlip()],
    "turned": [v2.RandomRotation((90, 90), expand=True), v2.CenterCrop(30)],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_pixel_has_the_map_of_where_it_comes_from(name, archive):
    hide_coordinates(archive)
    birds = CUB200(archive.root)
    data = SalientDataset(birds, birds.masks(threshold=0.6), v2.Compose(TRANSFORMS[name]))
    torch.manual_seed(0)
    for _ in range(3):
        for image, _, map_ in data:
            row, column, number = (image * 255).round().long()
            expected = torch.from_numpy(archive.shares[int(number[0, 0])])[row, column] >= 3
            assert torch.equal(map_[0], expected)
            assert 0 < map_.sum() < map_.numel()


def test_a_map_is_resized_by_its_nearest_neighbour_also_where_the_image_is_smoothed(archive):
    birds = CUB200(archive.root)
    masks = birds.masks()
    data = SalientDataset(birds, masks, v2.Resize((29, 31)))
    for i in range(len(birds)):
        nearest = F.interpolate(masks[i][None].float(), size=(29, 31), mode="nearest")[0].bool()
        assert torch.equal(data[i][2], nearest)


def test_the_other_sources_pair_with_their_images_too(archive):
    photos = ImageFolder(archive.root / "images")
    order = [archive.names.index(path.removeprefix(f"{photos.root}/")) for path, _ in photos.samples]
    content = {"images": [], "annotations": [], "categories": []}
    for i, name in enumerate(archive.names):
        height, width = archive.sizes[i]
        content["images"].append({"id": i, "file_name": name, "height": height, "width": width})
        runs = np.concatenate([[False], (archive.shares[i] >= 3).flatten(order="F"), [True]])
        lengths = np.diff(np.flatnonzero(np.concatenate([[True], runs[1:] != runs[:-1], [True]])))
        lengths[0] -= 1  # the pixels put in front and behind
        lengths[-1] -= 1
        rle = {"size": [height, width], "counts": lengths.tolist()}
        content["annotations"].append({"id": i, "image_id": i, "category_id": 1, "segmentation": rle})
    (archive.root / "instances.json").write_text(json.dumps(content))
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    for masks in (FolderMasks(photos, archive.segmentations), COCOMasks(photos, archive.root / "instances.json")):
        data = SalientDataset(photos, masks, v2.RandomHorizontalFlip(1.0))
        for i, (image, label, map_) in zip(order, data, strict=True):
            assert label == archive.labels[i]
            assert image.shape[1:] == map_.shape[1:]
            assert torch.equal(map_[0], torch.from_numpy(archive.shares[i] >= 3).flip(1))
