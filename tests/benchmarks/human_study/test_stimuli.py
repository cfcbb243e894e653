"""Stimuli: what is written is what was attacked, within ε, and its verdict is its own."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from benchmarks.human_study.__main__ import main
from benchmarks.human_study.assignment import assign
from benchmarks.human_study.stimuli import round_towards
from benchmarks.paper.data import Source, load_splits
from tests.evaluation.conftest import QuickPackage

HERE = "tests.benchmarks.human_study.test_stimuli"


def linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def colour_of_the_middle(classes):
    """A network without weights to train: the mean of a class's own strip of the image is its logit."""
    return nn.Sequential(nn.AdaptiveAvgPool2d((1, classes)), _Mean())


class _Mean(nn.Module):
    def forward(self, x):
        return x.mean((1, 2))


class SignStep:
    """One signed step of the whole ε."""

    def __init__(self, model, eps):
        self.model, self.eps = model, eps

    def __call__(self, images, labels):
        x = images.clone().requires_grad_()
        nn.functional.cross_entropy(self.model(x), labels).backward()
        return (images + self.eps * x.grad.sign()).clamp(0, 1)


class Barely(SignStep):
    """The smallest part of that step that is enough, to a thousandth."""

    def __call__(self, images, labels):
        step = super().__call__(images, labels) - images
        low, high = torch.zeros(len(images), 1, 1, 1), torch.ones(len(images), 1, 1, 1)
        for _ in range(10):
            middle = (low + high) / 2
            wrong = (self.model(images + middle * step).argmax(1) != labels).view(-1, 1, 1, 1)
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
        return images + high * step


class Half(SignStep):
    """A step of half a level, whatever ε is."""

    def __init__(self, model, eps):
        super().__init__(model, 0.5 / 255)


class Touchy(nn.Sequential):
    """Right on images of 8 bits alone."""

    def forward(self, x):
        logits, levels = super().forward(x), 255 * x
        return torch.where((levels - levels.round()).flatten(1).abs().amax(1, True) > 0.25, logits.roll(1, 1), logits)


def touchy(classes):
    return Touchy(nn.Flatten(), nn.Linear(64, classes))


def weights(folder, name, strength):
    images, labels = load_digits(return_X_y=True)
    fit = LogisticRegression(C=strength, max_iter=300).fit(images[:600] / 16, labels[:600])
    network = linear(10)
    network[1].load_state_dict({"weight": torch.tensor(fit.coef_), "bias": torch.tensor(fit.intercept_)})
    torch.save({"network": network.state_dict()}, folder / f"{name}.pt")
    return folder / f"{name}.pt"


@pytest.fixture(scope="module")
def digits_pool(tmp_path_factory):
    """Digits, two linear networks, AutoAttack with few iterations; the folder and the command."""
    folder = tmp_path_factory.mktemp("stimuli")
    command = ["stimuli", "--dataset", "digits", "--levels", "2", "16", "64", "--out", str(folder / "out")]
    for name, strength in (("weak", 0.1), ("strong", 10)):
        command += ["--network", f"{HERE}:linear", str(weights(folder, name, strength)), name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sip_plugin.evaluation.autoattack.autoattack_package", lambda: QuickPackage)
        assert main(command) == 0
    return folder, command


def with_attack(command, name, out):
    command = [*command, "--attack", f"{HERE}:{name}"]
    command[command.index("--out") + 1] = str(out)
    return command


def load(folder, file):
    return np.asarray(Image.open(folder / "out" / file)).astype(int)


def test_every_image_is_within_its_level_and_its_verdict_is_its_own(digits_pool):
    folder, _ = digits_pool
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert (manifest["levels"], manifest["size"], manifest["versions"]) == ([0, 2, 16, 64], [8, 8], ["weak", "strong"])
    assert len(manifest["images"]) == 50
    test = load_splits("digits", Source(), 0.0, 0).test
    fooled = {}
    for version in manifest["versions"]:
        network = linear(10)
        network.load_state_dict(torch.load(folder / f"{version}.pt")["network"])
        for image in manifest["images"]:
            label, index = map(int, image["id"].split("-"))
            assert label == image["class"] == int(image["name"]) == test[index][1]
            clean = load(folder, image["clean"]["file"])
            assert (clean == (255 * test[index][0][0]).round().numpy()).all()
            right = bool(network(torch.tensor(clean)[None] / 255.0).argmax() == label)
            assert image["clean"]["right"][version] == right
            for level in (2, 16, 64):
                entry = image["versions"][version][str(level)]
                pixels = load(folder, entry["file"])
                file = (folder / "out" / entry["file"]).read_bytes()
                assert hashlib.sha256(file).hexdigest() == entry["sha256"]
                assert 0 < np.abs(pixels - clean).max() == round(255 * entry["norm"]) <= level
                predicted = int(network(torch.tensor(pixels)[None] / 255.0).argmax())
                assert (entry["predicted"], entry["fooled"]) == (predicted, right and predicted != label)
                fooled.setdefault((version, level), []).append(entry["fooled"])
    assert np.mean(fooled["strong", 2]) < 0.3 < 0.9 < np.mean(fooled["strong", 64])
    assert len(assign(manifest, 0, 0).trials) == 40


def test_examples_are_not_in_the_pool(digits_pool):
    folder, _ = digits_pool
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    pool = [load(folder, image["clean"]["file"]) for image in manifest["images"]]
    for version in manifest["versions"]:
        for kind, level in (("strong", 64), ("weak", 2)):
            clean, perturbed = (load(folder, file) for file in manifest["examples"][version][kind])
            assert 0 < np.abs(perturbed - clean).max() <= level
            assert not any((clean == image).all() for image in pool)


def test_no_file_tells_its_level_by_its_length_and_all_have_a_digest(digits_pool):
    folder, _ = digits_pool
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    files = list((folder / "out" / "png").iterdir())
    assert len({file.stat().st_size for file in files}) == 1
    digests = {f"png/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    examples = {file for kinds in manifest["examples"].values() for pair in kinds.values() for file in pair}
    assert manifest["examples_sha256"] == {file: digests[file] for file in examples}


def test_the_same_command_goes_on_and_gives_the_same(digits_pool, monkeypatch):
    folder, command = digits_pool
    path = folder / "out" / "manifest.json"
    before = json.loads(path.read_text())
    path.unlink()
    monkeypatch.setattr("sip_plugin.evaluation.attacks.run_batch", None)  # nothing is attacked again
    monkeypatch.setattr("sip_plugin.evaluation.autoattack.autoattack_package", lambda: QuickPackage)
    assert main(command) == 0
    after = json.loads(path.read_text())
    assert {**after, "record": None} == {**before, "record": None}


def test_only_images_that_fool_every_network(digits_pool, tmp_path, capsys):
    _, command = digits_pool
    command = with_attack(command, "SignStep", tmp_path)
    assert main([*command, "--fooled-at", "64", "--per-class", "2", "--seed", "3"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["record"]["fooled_at"] == 64
    for image in manifest["images"]:
        assert all(image["clean"]["right"].values())
        assert all(version["64"]["fooled"] for version in image["versions"].values())
    with pytest.raises(SystemExit):
        main([*command, "--fooled-at", "2", "--per-class", "40"])
    assert "a study needs 10" in capsys.readouterr().err


def test_rounding_may_cost_an_example_its_effect_and_the_manifest_says_so(digits_pool, tmp_path):
    assert main([*with_attack(digits_pool[1], "Barely", tmp_path), "--per-class", "1"]) == 0
    images = json.loads((tmp_path / "manifest.json").read_text())["images"]
    made = [image["versions"]["strong"]["64"] for image in images]
    found = [each["fooled"] for each in made if each["attack"] == f"{HERE}:Barely"]
    assert len(found) >= 8
    assert found.count(False) >= 4


def test_no_image_is_shown_as_perturbed_that_rounding_made_the_clean_one(digits_pool, tmp_path):
    folder, command = digits_pool
    command = with_attack(command[: command.index("--network")], "Half", tmp_path)
    command += ["--network", f"{HERE}:touchy", str(folder / "strong.pt"), "--per-class", "1"]
    assert main(command) == 0
    images = json.loads((tmp_path / "manifest.json").read_text())["images"]
    assert sum(image["clean"]["right"]["touchy"] for image in images) >= 8
    made = [entry for image in images for entry in image["versions"]["touchy"].values()]
    assert {entry["attack"] for entry in made} == {"PGD"}
    assert all(entry["norm"] > 0 for entry in made)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """CUB-200-2011's layout: eleven species, three test images each, of the last species one."""
    root, random = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    names, labels = [], []
    for species in range(11):
        for number in range(3 if species < 10 else 1):
            names.append(f"{species + 1:03}.Bird_{species}/bird_{number}.jpg")
            labels.append(species + 1)
            path = root / "CUB_200_2011" / "images" / names[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(90, 160, (60 + species, 70, 3))
            pixels[:, 6 * species : 6 * species + 8] += 20
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    for file, values in (
        ("images.txt", names),
        ("image_class_labels.txt", labels),
        ("train_test_split.txt", [0] * len(names)),
        ("classes.txt", [f"{species + 1:03}.Bird_{species}" for species in range(11)]),
    ):
        lines = (f"{number} {value}\n" for number, value in enumerate(values, start=1))
        (root / "CUB_200_2011" / file).write_text("".join(lines))
    torch.save({}, root / "none.pt")
    return root


@pytest.mark.parametrize("folder", [False, True])
def test_cub_and_a_folder_with_a_checkpoint(birds, folder, tmp_path, capsys):
    command = ["stimuli", "--network", f"{HERE}:colour_of_the_middle", str(birds / "none.pt"), "--per-class", "2"]
    command += ["--attack", f"{HERE}:SignStep", "--levels", "8", "--out", str(tmp_path)]
    if folder:
        command += ["--images", str(birds / "CUB_200_2011" / "images"), "--size", "24", "32"]
    else:
        command += ["--dataset", "cub", "--data-dir", str(birds)]
    assert main(command) == 0
    assert "Left out, with fewer than 2 images" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["size"] == ([32, 24] if folder else [224, 224])
    assert len(manifest["images"]) == 20
    (left_out,) = manifest["record"]["classes_left_out"]
    assert "Bird_10" in left_out
    assert "Bird_0" in manifest["images"][0]["name"]
    (version,) = manifest["versions"]
    for image in manifest["images"][:3]:
        shown = [
            Image.open(tmp_path / file) for file in (image["clean"]["file"], image["versions"][version]["8"]["file"])
        ]
        assert [(picture.mode, picture.size) for picture in shown] == [("RGB", tuple(manifest["size"]))] * 2
        clean, perturbed = (np.asarray(picture).astype(int) for picture in shown)
        assert np.abs(perturbed - clean).max() == 8


def test_rounds_towards_the_clean_image():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    for level in (0.5, 1, 2, 4, 8):
        change = level / 255 * (2 * torch.rand(clean.shape, generator=generator) - 1)
        perturbed = (clean / 255 + change).clamp(0, 1)
        rounded = round_towards(clean, perturbed, level)
        moved, wanted = rounded.double() - clean, 255 * perturbed.double() - clean
        assert moved.abs().max() <= level
        assert (moved.abs() <= wanted.abs() + 2e-3).all()
        assert ((wanted - moved).abs() < 1 + 2e-3).all()
        assert (moved * wanted >= 0).all()
        # What an attack moved by ε to the last bit of a float stays moved by ε.
        edge = (clean / 255 + level / 255 * change.sign()).clamp(0, 1)
        expected = (clean + int(level) * change.sign()).clamp(0, 255) if level >= 1 else clean
        assert torch.equal(round_towards(clean, edge, level), expected.to(torch.uint8))


def test_refuses_options_that_do_not_go_together(tmp_path, capsys):
    torch.save({"network": nn.Linear(2, 2).state_dict()}, tmp_path / "w.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for arguments, message in (
        (["--dataset", "cifar10", "--data-dir", str(tmp_path)], "torchvision expects"),
        (["--dataset", "digits", "--levels", "1", "--fooled-at", "2"], "one of the levels"),
        (["--dataset", "digits", "--levels", "0"], "above 0"),
        (["--dataset", "digits", "--levels", "0.5"], "invalid int value"),
        (["--dataset", "digits", "--network", f"{HERE}:nothing", str(tmp_path / "w.pt")], "no such function"),
        (["--dataset", "digits", "--network", "linear", str(tmp_path / "w.pt")], "no such function"),
        (["--dataset", "digits", "--network", f"{HERE}:linear", str(tmp_path / "w.pt")], "not its weights"),
        (["--dataset", "digits", "--network", f"{HERE}:linear", str(tmp_path / "text.pt")], "not its weights"),
        (["--dataset", "digits", "--network", "convnet8"], "the file of its weights"),
    ):
        with pytest.raises(SystemExit):
            main(["stimuli", *arguments, "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
