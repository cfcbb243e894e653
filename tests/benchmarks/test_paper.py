"""benchmarks/paper: the parts that say what is trained."""

import dataclasses
import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from benchmarks.paper import methods, networks
from benchmarks.paper.data import Source, load_splits
from benchmarks.paper.files import load, locked, save
from benchmarks.paper.networks import NETWORKS, build_network
from benchmarks.paper.presets import PRESETS
from benchmarks.paper.protocols import Cell, Evaluation, Training
from benchmarks.paper.seeds import derived
from benchmarks.paper.training import EpochOrder, augmented
from sip_plugin.model_utils import model_hash
from sip_plugin.salience import GradientSalience

PUBLISHED = json.loads((Path(networks.__file__).parent / "published.json").read_text())


def a_cell(**changes):
    cell = Cell("digits", "convnet8", "madry", 0, "convnet8", Training(epochs=2), Evaluation())
    return dataclasses.replace(cell, **changes)


def test_the_papers_presets_have_every_row_and_column_of_its_tables():
    for dataset, table in PUBLISHED["tables"].items():
        preset = PRESETS[dataset]
        assert set(preset.archs) == set(table)
        assert len(preset.seeds) == 5
        for rows in table.values():
            assert set(preset.methods) == set(rows)
            assert all(len(cells) == 1 + len(preset.evaluation.eps) for cells in rows.values())
        assert preset.evaluation.eps == (1 / 255, 2 / 255, 4 / 255, 8 / 255)
        assert not preset.evaluation.assume_survivors
        assert preset.training.eps == 8 / 255
        assert preset.training.validation_share == 0.1


def test_the_protocols_are_the_papers():
    cifar, cub = PRESETS["cifar10"].training, PRESETS["cub"].training
    assert (cifar.epochs, cifar.batch_size, cifar.alpha, cifar.steps) == (100, 64, 2 / 255, 10)
    assert [cifar.rate(epoch) for epoch in (0, 59.9, 60, 99)] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert (cub.epochs, cub.alpha, cub.steps, cub.pretrained) == (80, 1 / 255, 32, True)
    assert [cub.rate(epoch) for epoch in (0, 10, 25, 79)] == pytest.approx([0.01 * 0.75**k for k in (0, 1, 2, 7)])
    assert PRESETS["cifar10"].teacher_arch == "wrn-34-10"
    assert PRESETS["cub"].teacher_arch == "densenet121"


def test_a_one_cycle_rate_rises_to_its_highest_and_falls_to_nothing():
    training = Training(epochs=10, learning_rate=0.2, schedule="one-cycle")
    rates = [training.rate(done / 10) for done in range(101)]
    assert max(rates) == pytest.approx(0.2)
    assert rates.index(max(rates)) == 30
    assert rates[-1] == pytest.approx(0)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


OTHER = {"schedule": "one-cycle", "augmentation": "none", "precision": "bf16-mixed", "milestones": (1,)}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Training)])
def test_a_checkpoint_belongs_to_one_training_protocol(field):
    cell = a_cell()
    value = getattr(cell.training, field)
    other = OTHER.get(field, (not value) if isinstance(value, bool) else value / 2 if isinstance(value, float) else 7)
    changed = a_cell(training=dataclasses.replace(cell.training, **{field: other}))
    assert changed.training_key("data", None) != cell.training_key("data", None)
    assert a_cell(evaluation=Evaluation(images=3)).training_key("data", None) == cell.training_key("data", None)


def test_the_order_of_the_radii_makes_no_other_evaluation():
    assert Evaluation(eps=(0.2, 0.1, 0.1)) == Evaluation(eps=(0.1, 0.2))
    with pytest.raises(ValueError, match="--test-eps must be one radius or more"):
        Evaluation(eps=())


def test_a_checkpoint_belongs_to_one_data_set_and_one_teacher():
    keys = {a_cell().training_key(data, teacher) for data in ("a", "b") for teacher in (None, "c", "d")}
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        (Training, {"epochs": 0}, "--epochs"),
        (Training, {"epochs": 1, "batch_size": 0}, "--batch-size"),
        (Training, {"epochs": 1, "steps": -1}, "--steps"),
        (Training, {"epochs": 1, "eps": 8.0}, "eps"),
        (Training, {"epochs": 1, "learning_rate": 0.0}, "--learning-rate"),
        (Training, {"epochs": 1, "validation_share": 1.0}, "--validation-share"),
        (Training, {"epochs": 1, "validation_every": 0}, "--validation-every"),
        (Evaluation, {"eps": ()}, "--test-eps"),
        (Evaluation, {"eps": (8.0,)}, "test-eps"),
        (Evaluation, {"version": "foo"}, "--version"),
        (Evaluation, {"images": 0}, "--images"),
        (Evaluation, {"batch_size": 0}, "--test-batch-size"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(part, settings, named):
    with pytest.raises(ValueError, match=named):
        part(**settings)


def test_the_data_sets_content_tells_other_labels_and_another_split():
    first, again = (load_splits("digits", Source(), 0.1, 0) for _ in range(2))
    assert first.content == again.content
    assert load_splits("digits", Source(), 0.1, 1).content != first.content
    base = first.train.dataset
    before = base.content()
    base.tensors[1][3] += 1
    assert base.content() != before


@pytest.mark.parametrize(
    ("arch", "size", "parameters"),
    [
        ("resnet18", 32, 11_173_962),
        ("resnet18-w32", 32, 2_797_610),
        ("wrn-34-10", 32, 46_160_474),
        ("resnet50", 64, 23_528_522),
        ("densenet121", 64, 6_964_106),
        ("convnet24", 32, None),
        ("convnet16", 8, None),
    ],
)
def test_a_network_gives_logits_and_has_the_size_that_it_is_known_for(arch, size, parameters):
    network = build_network(arch, 3, 10).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, size, size)).shape == (2, 10)
    assert parameters in (None, sum(p.numel() for p in network.parameters()))


def test_weights_that_cannot_be_fetched_are_an_error_that_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere-at-all")
    with pytest.raises(OSError, match="--no-pretrained"):
        build_network("resnet50", 3, 200, pretrained=True)


def test_networks_without_pretrained_weights_say_so():
    with pytest.raises(ValueError, match="no pretrained weights"):
        build_network("resnet18", 3, 10, pretrained=True)
    with pytest.raises(ValueError, match="3 channels"):
        build_network("wrn-34-10", 1, 10)
    with pytest.raises(ValueError, match="Known: "):
        build_network("resnet19", 3, 10)


def test_a_random_map_has_as_many_elements_and_is_another_for_each_image_and_seed():
    maps = [torch.rand(3, 8, 8) < share for share in (0.1, 0.5, 0.9)]
    drawn = methods.RandomLike(maps, seed=1)
    assert len(drawn) == 3
    for index, salience in enumerate(maps):
        assert drawn[index].sum() == salience.sum()
        assert torch.equal(drawn[index], drawn[index])
        assert not torch.equal(drawn[index], salience)
        assert not torch.equal(drawn[index], methods.RandomLike(maps, seed=2)[index])
        assert not torch.equal(drawn[index][0], drawn[index][1])


def test_a_random_map_is_of_whole_pixels_where_the_map_is():
    pixels = torch.rand(1, 8, 8) < 0.4
    (drawn,) = methods.RandomLike([pixels.expand(3, 8, 8)], seed=1)
    assert not torch.equal(drawn[:1], pixels)
    for channel in drawn:
        assert torch.equal(channel, drawn[0])
        assert channel.sum() == pixels.sum()


@pytest.mark.parametrize("same_class", [True, False])
def test_another_images_map_is_of_the_same_class_or_of_another_one_and_never_its_own(same_class):
    labels = torch.arange(60) % 3
    images = list(torch.arange(60))  # each map says which image's it is
    drawn = [methods.AnotherImages(images, labels, same_class, seed) for seed in (1, 2)]
    of = torch.stack([drawn[0][index] for index in range(len(drawn[0]))])
    assert ((labels[of] == labels) == same_class).all()
    assert (of != torch.arange(60)).all()
    assert len(of.unique()) > 30
    assert [drawn[0][index] for index in range(60)] == of.tolist() != [drawn[1][index] for index in range(60)]


RISING = "FAT(tau=rising(0, 1, 3, None), omega=0.001, random_start=True)"
DEFINITIONS = {
    "standard": ("Standard()", None, 0.5),
    "madry": ("Madry()", None, 0.5),
    "trades": ("TRADES(beta=6.0)", None, 0.5),
    "fat": ("FAT(tau=None, omega=0.001, random_start=True)", None, 0.5),
    "fat-rising": (RISING, None, 0.5),
    "part": (f"PART(cam='gradcam', eps_low={7 / 255}, warmup=0.25, layer=None)", None, 0.5),
    "mart": ("MART(beta=6.0)", None, 0.5),
    "sip-fat-rising": (RISING, "teacher", 0.5),
    "sip-s": ("SIPAT()", "teacher", 0.5),
    "sip-s-25": ("SIPAT()", "teacher", 0.25),
    "sip-s-75": ("SIPAT()", "teacher", 0.75),
    "sip-random": ("SIPAT()", "random", 0.5),
    "sip-random-25": ("SIPAT()", "random", 0.25),
    "sip-random-75": ("SIPAT()", "random", 0.75),
    "sip-least": ("SIPAT()", "least", 0.5),
    "sip-same-class": ("SIPAT()", "same-class", 0.5),
    "sip-other-class": ("SIPAT()", "other-class", 0.5),
}


def test_a_row_with_results_keeps_its_definition():
    """Results and checkpoints are found by a row's name: another definition needs another name."""
    rows = {name: methods.METHODS[name] for name in DEFINITIONS}
    assert {name: (repr(row.method()), row.salience, row.mass) for name, row in rows.items()} == DEFINITIONS
    assert not any(row.per_pixel for row in rows.values())


def test_the_least_gradient_map_has_as_many_elements_as_eq_8_and_none_of_them():
    torch.manual_seed(0)
    source = GradientSalience(nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, 12), nn.Tanh(), nn.Linear(12, 4)))
    images = torch.rand(5, 3, 6, 6)
    salient, least, magnitude = source(images), methods.LeastGradient(source)(images), source.magnitude(images)
    assert torch.equal(salient.flatten(1).sum(1), least.flatten(1).sum(1))
    assert not (salient & least).any()
    for image in range(5):
        assert magnitude[image][least[image]].max() <= magnitude[image][~least[image]].min()


def test_processes_share_out_the_very_batches_of_one():
    one = EpochOrder(103, 10, seed=3, rank=0, processes=1)
    two = [EpochOrder(103, 10, seed=3, rank=rank, processes=2) for rank in range(2)]
    for order in (one, *two):
        order.epoch = 4
    whole, parts = list(one), [list(order) for order in two]
    assert len(whole) == len(one) == 100
    assert len(set(whole)) == 100
    for batch in range(10):
        shares = [part[batch * 5 : batch * 5 + 5] for part in parts]
        assert sorted(shares[0] + shares[1]) == sorted(whole[batch * 10 : batch * 10 + 10])
    one.epoch = 5
    assert list(one) != whole
    with pytest.raises(ValueError, match="do not fill a batch"):
        EpochOrder(5, 10, 0, 0, 1)


def test_derived_seeds_differ_and_stay_the_same():
    assert derived(0, 1) == derived(0, 1)
    assert len({derived(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400


def test_image_and_map_are_augmented_together():
    images = torch.rand(6, 3, 16, 16)
    data = [(image, label) for label, image in enumerate(images)]
    maps = [image > 0.5 for image in images]
    moved_together = augmented(data, maps, "crop-flip")
    moved = 0
    for index in range(6):
        image, label, salience = moved_together[index]
        assert label == index
        assert torch.equal(salience, image > 0.5)
        moved += not torch.equal(image, images[index])
    assert moved
    assert torch.equal(augmented(data, None, "none")[2][0], images[2])


def test_the_split_holds_out_a_tenth_and_is_the_same_for_all_seeds():
    first, again = (load_splits("digits", Source(), 0.1, 0) for _ in range(2))
    other = load_splits("digits", Source(), 0.1, 1)
    assert (len(first.train), len(first.validation), len(first.test)) == (1167, 130, 500)
    assert first.split == again.split != other.split
    assert not set(first.train.indices) & set(first.validation.indices)
    image, label = first.train[0]
    assert image.shape == (1, 8, 8)
    assert isinstance(label, int)


def test_data_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="--data-dir"):
        load_splits("cifar10", Source(), 0.1, 0)
    with pytest.raises(FileNotFoundError, match="--download"):
        load_splits("cifar10", Source(tmp_path / "nowhere"), 0.1, 0)
    with pytest.raises(ValueError, match="Known: "):
        load_splits("imagenet", Source(tmp_path), 0.1, 0)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder" / "state.pt"
    save(path, {"x": torch.ones(3)})
    with pytest.raises(AttributeError):
        save(path, {"x": lambda: None})
    assert torch.equal(load(path)["x"], torch.ones(3))
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"state\.pt"):
        load(path)


def test_a_lock_keeps_a_second_run_out(tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1)
    with (
        locked(tmp_path / "x.lock", fabric, wait=False) as first,
        locked(tmp_path / "x.lock", fabric, wait=False) as second,
    ):
        assert first
        assert not second
    with locked(tmp_path / "x.lock", fabric, wait=False) as again:
        assert again


def test_the_weights_hash_sees_every_value():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = model_hash(network)
    assert model_hash(network) == before
    network[1].running_mean[1] += 1e-6
    assert model_hash(network) != before


def test_every_network_is_in_no_preset_or_known():
    for preset in PRESETS.values():
        assert {*preset.archs, preset.teacher_arch} <= set(NETWORKS)
        assert set(preset.methods) <= set(methods.METHODS)
        assert len({cell.name for cell in preset.cells()}) == len(list(preset.cells()))


def test_a_preset_on_the_base_of_another_runs_only_what_that_one_has_not():
    for preset in PRESETS.values():
        if preset.base:
            base = PRESETS[preset.base]
            own = {cell.method for cell in preset.cells()}
            assert own == set(preset.methods) - set(base.methods)
            assert {"madry", "sip-s", "sip-random"} <= set(preset.methods) - own
            assert (preset.training, preset.evaluation, preset.archs) == (base.training, base.evaluation, base.archs)
            assert set(preset.seeds) <= set(base.seeds)
