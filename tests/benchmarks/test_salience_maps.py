"""The benchmark of real maps runs and writes what it promises; its figures are not judged here."""

import argparse
import dataclasses
import json

import pytest
import torch

from benchmarks import salience_maps
from benchmarks.paper.data import Source
from benchmarks.salience.networks import trained
from benchmarks.salience.sources import disc, scattered
from benchmarks.small import CIFAR10, augmented, load


@pytest.fixture(scope="module")
def data():
    digits = load("digits", Source())
    return dataclasses.replace(
        digits, train=tuple(part[:300] for part in digits.train), test=tuple(part[:20] for part in digits.test)
    )


@pytest.fixture(scope="module")
def settings():
    return dataclasses.replace(CIFAR10, epochs=3, width=8, eps=0.2, alpha=0.05, steps=3, augment=False)


def options(work, **changes):
    return argparse.Namespace(
        **{"seed": 0, "bf16": False, "rounds": 1, "work": work / "work", "out": work / "out"} | changes
    )


def test_it_trains_builds_compares_and_draws(data, settings, tmp_path, capsys):
    result = salience_maps.run(data, settings, list("0123456789"), options(tmp_path))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["figure.png", "result.json", "sources.png", "table.md"]
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "table.md").read_text() in capsys.readouterr().out
    assert {"command", "seed", "versions", "hardware", "data"} <= set(result)
    assert result["images"] == 300
    maps = result["maps"]
    assert 0 < maps["k"]["min"] <= maps["k"]["median"] <= maps["k"]["max"] < maps["elements"] == 64
    assert maps["share"]["mean"] == maps["k"]["mean"] / 64
    for name, found in result["comparisons"].items():
        assert found["images"] == 300
        assert found["mass_first"]["min"] >= 0.5
        assert found["share_first"]["mean"] == pytest.approx(maps["share"]["mean"]), name
    assert (
        result["comparisons"]["random elements"]["share_second"]
        == result["comparisons"]["random elements"]["share_first"]
    )
    network = result["networks"]["madry"]
    assert network["training"]["epochs"] == 3
    assert network["test_images"] == 20
    assert network["test_accuracy"]["pgd20"] <= network["test_accuracy"]["clean"]


def test_a_kept_network_is_used_again_and_one_of_other_settings_refused(data, settings, tmp_path):
    first = trained("standard", data, settings, seed=0, bf16=False, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = trained("standard", data, settings, seed=0, bf16=False, folder=tmp_path)
    assert path.stat().st_mtime_ns == written
    assert again.losses == first.losses
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
    for change in ({"seed": 1}, {"settings": dataclasses.replace(settings, epochs=4)}):
        arguments = {"data": data, "settings": settings, "seed": 0, "bf16": False, "folder": tmp_path} | change
        with pytest.raises(ValueError, match="Choose another"):
            trained("standard", **arguments)


def test_the_disc_is_round_and_of_the_size_asked_for():
    chosen = disc(torch.zeros(2, 3, 32, 32), 0.25)
    assert chosen.shape == (2, 3, 32, 32)
    assert chosen[0, 0].sum() == 256
    distance = ((torch.arange(32) - 15.5)[:, None] ** 2 + (torch.arange(32) - 15.5) ** 2).expand(32, 32)
    assert distance[chosen[0, 0]].max() <= distance[~chosen[0, 0]].min()


def test_scattered_maps_mark_as_many_elements_elsewhere():
    maps = torch.zeros(5, 3, 8, 8, dtype=torch.bool)
    for row, map_ in enumerate(maps):
        map_.view(-1)[: 20 * row] = True
    random = scattered(maps, seed=0)
    assert torch.equal(random.flatten(1).sum(1), maps.flatten(1).sum(1))
    assert not torch.equal(random[1:], maps[1:])
    assert torch.equal(random, scattered(maps, seed=0))


def test_the_examples_are_of_different_classes_and_classified_correctly(data):
    class Right(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(data.train[1][self.rows(x)], 10).float()

        def rows(self, x):
            return torch.stack([(data.train[0] == image).flatten(1).all(1).nonzero()[0, 0] for image in x])

    rows = salience_maps.examples(data.train, Right(), 8)
    assert data.train[1][rows].tolist() == list(range(8))
    assert all((data.train[1][:row] != label).all() for label, row in enumerate(rows.tolist()))


def test_augmentation_crops_and_flips_each_image_by_itself():
    position = torch.arange(1.0, 33).view(1, 1, 1, 32).expand(64, 3, 32, 32)
    torch.manual_seed(0)
    out = augmented(position)
    assert out.shape == position.shape
    assert len({tuple(row.tolist()) for row in out[:, 0, 16]}) > 10
    inside = out[:, 0, 16, 4:28]
    assert ((inside.diff(dim=1) == 1).all(1) | (inside.diff(dim=1) == -1).all(1)).all()
