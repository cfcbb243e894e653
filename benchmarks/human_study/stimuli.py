"""The images of a study: clean test images, and what an attack on each network made of them, as PNG of 8 bits."""

from __future__ import annotations

import argparse
import hashlib
import io
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.human_study.assignment import IMAGES
from benchmarks.paper.data import Source, add_data_arguments, load_splits
from benchmarks.paper.files import load
from benchmarks.paper.networks import NETWORKS, build_network
from benchmarks.record import run_record, write_json
from benchmarks.small import Settings, train
from benchmarks.small import load as load_data
from sip_plugin import AdversarialTrainer
from sip_plugin.evaluation import evaluate_robustness
from sip_plugin.model_utils import model_hash
from sip_plugin.utils import atomic_write

_DIGITS = Settings(
    epochs=10, batch_size=64, learning_rate=0.1, eps=0.0, alpha=0.0, steps=0, width=0, augment=False
)  # of a standard network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    data = parser.add_argument_group("images")
    which = data.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", choices=("digits", "cifar10", "cifar100", "cub"), help="its test images")
    which.add_argument("--images", type=Path, metavar="FOLDER", help="a folder of images for each class")
    data.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="what --images are resized to")
    add_data_arguments(data)
    data.add_argument("--per-class", type=int, default=5, help="images of each class (default: 5)")
    data.add_argument("--seed", type=int, default=0, help="of the choice of images and of the attack")
    data.add_argument(
        "--fooled-at",
        type=int,
        metavar="LEVEL",
        help="only images that every network has right when clean and wrong at this level, after rounding",
    )
    attack = parser.add_argument_group("attack")
    attack.add_argument(
        "--network",
        nargs="+",
        action="append",
        metavar=("NETWORK", "FILE [NAME]"),
        help="a network that is attacked: its name in benchmarks.paper, or MODULE:FUNCTION, called with the number of "
        "classes; its weights; what the version is called. Once for each version of the study (digits have two small ones)",
    )
    attack.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8], help="ε·255, whole (default: 1 2 4 8)")
    attack.add_argument(
        "--attack", default="autoattack", help="autoattack, or MODULE:FACTORY, a factory (model, eps) -> attack"
    )
    attack.add_argument("--autoattack-version", default="standard", choices=("standard", "plus", "rand"))
    attack.add_argument("--batch-size", type=int, default=64)
    attack.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder of the stimuli; the same command goes on in it")


def run(options: argparse.Namespace) -> None:
    """Make the stimuli, and say how many of them still fool their network.

    Raises:
        FileNotFoundError: If images or weights are missing.
        ValueError: If there are too few images, or the options do not go together.
    """
    if options.per_class < 1 or not all(0 < level <= 255 for level in options.levels):
        raise ValueError("--per-class must be at least 1, and --levels above 0 and at most 255.")
    options.levels = sorted(set(options.levels))
    if options.fooled_at not in (None, *options.levels):
        raise ValueError(f"--fooled-at must be one of the levels {options.levels}.")
    images = _test_images(options)
    makers = {name: _Maker(name, *found, images, options) for name, found in _networks(options, images).items()}
    chosen, rest = _choose(images, makers, options)
    classes = {images.labels[index] for index in chosen}
    left_out = [name for k, name in enumerate(images.names) if k not in classes]
    if len(classes) < IMAGES:
        why = "" if options.fooled_at is None else " that fulfil --fooled-at"
        raise ValueError(
            f"{len(classes)} classes have {options.per_class} images{why}; a study needs {IMAGES}. Lower --per-class."
        )
    pair = rest[:2]
    if len(pair) < 2:
        raise ValueError("The examples need two test images that are not in the pool: lower --per-class.")
    for maker in makers.values():
        for level in reversed(options.levels):
            maker.make([*chosen, *pair], level)
    entries = [_entry(index, images, makers, options) for index in chosen]
    manifest = {
        "record": run_record(options.seed)
        | {
            "data": images.origin,
            "networks": {name: maker.description for name, maker in makers.items()},
            "attack": options.attack,
            "autoattack_version": options.autoattack_version if options.attack == "autoattack" else None,
            "images_per_class": options.per_class,
            "fooled_at": options.fooled_at,
            "classes_left_out": left_out,
            "not_broken": "perturbed by PGD, 40 steps of ε/4; so are images that were wrong when clean, that withstood a "
            "higher level, or whose perturbation rounding would leave nothing of",
            "rounding": "clean images to the nearest of 256 levels, perturbations towards the clean image",
        },
        "levels": [0, *options.levels],
        "size": list(images[chosen[0]].shape[:0:-1]),
        "versions": list(makers),
        "images": entries,
        "examples": (examples := _examples(pair, images, makers, options)),
        "examples_sha256": {
            file: hashlib.sha256((options.out / file).read_bytes()).hexdigest()
            for kinds in examples.values()
            for files in kinds.values()
            for file in files
        },
    }
    write_json(options.out / "manifest.json", manifest)
    print(_summary(manifest))
    print(f"\n{len(entries)} images of {len(classes)} classes: {options.out}/manifest.json")
    if left_out:
        print(f"Left out, with fewer than {options.per_class} images: {', '.join(left_out)}.")


@dataclass(frozen=True)
class _Images:
    """Test images by their index, with their labels and the classes' names."""

    test: Any
    labels: Sequence[int]
    names: Sequence[str]
    origin: str

    def __getitem__(self, index: int) -> Tensor:
        """``(C, H, W)``, uint8: what is shown, and what is attacked."""
        image: Tensor = self.test[index][0]
        return (255 * image).round().to(torch.uint8)


def _test_images(options: argparse.Namespace) -> _Images:
    if options.images is not None:
        from torchvision import datasets
        from torchvision.transforms import v2

        resize = [v2.Resize(tuple(options.size), antialias=True)] if options.size else []
        kind = v2.Compose([v2.ToImage(), *resize, v2.ToDtype(torch.float32, scale=True)])
        folder = datasets.ImageFolder(str(options.images), kind)
        return _Images(folder, folder.targets, folder.classes, f"folder {options.images.name}")
    source = Source(options.data_dir, options.download, options.unofficial_data)
    splits = load_splits(options.dataset, source, 0.0, 0)
    test: Any = splits.test
    origin = f"{splits.origin}; content {splits.content}"
    if options.dataset == "cub":
        return _Images(test, [label for _, label in test.images.samples], test.images.classes, origin)
    return _Images(test, test.tensors[1].tolist(), [str(k) for k in range(splits.classes)], origin)


def _networks(options: argparse.Namespace, images: _Images) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """The attacked networks by their version's name, and what they are."""
    channels, classes = images[0].shape[0], len(images.names)
    networks: dict[str, tuple[nn.Module, dict[str, str]]] = {}
    if options.network is None:
        if options.dataset != "digits":
            raise ValueError("--network says which network is attacked; digits alone have networks of their own.")
        data: Any = load_data("digits", Source())
        for arch in ("convnet8", "convnet16"):
            torch.manual_seed(options.seed)
            network = build_network(arch, channels, classes)
            train(AdversarialTrainer(network, "standard"), data, _DIGITS, bf16=False, title=arch)
            networks[arch] = network, {"network": arch, "trained": f"{_DIGITS.epochs} epochs, standard training"}
    for given in options.network or ():
        if len(given) not in (2, 3):
            raise ValueError("--network takes a network, the file of its weights and, if you like, a name.")
        arch, file, *name = given
        known = arch in NETWORKS
        try:
            network = build_network(arch, channels, classes) if known else pkgutil.resolve_name(arch)(classes)
            state = load(Path(file))
            state = next((state[key] for key in ("network", "state_dict", "model") if key in state), state)
            nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
            network.load_state_dict(state)
        except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"--network {' '.join(given)}: no such function, or these are not its weights ({first})."
            ) from error
        version = name[0] if name else arch.rpartition(":")[2]
        if version in networks:
            raise ValueError(f"Two versions are called {version}: give them names, --network NETWORK FILE NAME.")
        networks[version] = network, {"network": arch, "file": Path(file).name}
    return networks


class _Stimulus:
    """A perturbed image of 8 bits, and what its network makes of it."""

    def __init__(self, pixels: Tensor, clean: Tensor, right: bool, predicted: int, label: int, attack: str) -> None:
        self.pixels, self.withstood = pixels, right and attack == "PGD"
        self.record = {
            "norm": (pixels.int() - clean.int()).abs().max().item() / 255,
            "fooled": right and predicted != label,
            "predicted": predicted,
            "attack": attack,
        }


class _Maker:
    """Attacks one network."""

    def __init__(
        self, name: str, network: nn.Module, about: Mapping[str, str], images: _Images, options: argparse.Namespace
    ) -> None:
        self.name, self.images, self.options = name, images, options
        self.network = network.to(options.device).eval()
        self.description = {**about, "weights_sha256": model_hash(network)}
        self.stimuli: dict[tuple[int, float], _Stimulus] = {}
        self.right: dict[int, bool] = {}
        named = options.attack == "autoattack"
        self.attack = options.attack if named else pkgutil.resolve_name(options.attack)

    def make(self, indices: Iterable[int], level: float) -> None:
        """Perturb the images that have not been yet at this level; what withstood a higher one is not attacked again."""
        todo = [index for index in indices if (index, level) not in self.stimuli]
        withstood = {index for (index, at), stimulus in self.stimuli.items() if at > level and stimulus.withstood}
        for attacked in (True, False):
            rows = [index for index in todo if (index not in withstood) == attacked]
            for start in range(0, len(rows), 512):  # what is held in memory
                self._make(rows[start : start + 512], level, attacked)

    def _make(self, indices: list[int], level: float, attacked: bool) -> None:
        clean = torch.stack([self.images[index] for index in indices])
        labels = torch.tensor([self.images.labels[index] for index in indices])
        eps, broken, found = level / 255, torch.zeros(len(indices), dtype=torch.bool), clean / 255
        if attacked:
            broken, found = self._attack(found, labels, eps, hashlib.sha256(repr(indices).encode()).hexdigest()[:12])
        # Of an image that the attack did not break, or that was wrong before, there is no adversarial one. One whose whole
        # perturbation is below a level, which attacks of minimum norm may find, would be the clean image when rounded.
        broken &= (round_towards(clean, found, level) != clean).flatten(1).any(1)
        rest = (~broken).nonzero().flatten()
        found[rest] = self._pgd(clean[rest] / 255, labels[rest], eps)
        pixels = round_towards(clean, found, level)
        right, predicted = self._predict(clean) == labels, self._predict(pixels)
        for row, index in enumerate(indices):
            self.right[index] = bool(right[row])
            self.stimuli[index, level] = _Stimulus(
                pixels[row],
                clean[row],
                self.right[index],
                int(predicted[row]),
                int(labels[row]),
                self.options.attack if broken[row] else "PGD",
            )

    def _attack(self, images: Tensor, labels: Tensor, eps: float, key: str) -> tuple[Tensor, Tensor]:
        """Which images the attack broke, and the images that it made."""
        # One ε at a time: at several, the evaluation takes the example of the smallest for all larger ones.
        report = evaluate_robustness(
            self.network,
            (images, labels),
            eps=eps,
            attack=self.attack,
            version=self.options.autoattack_version,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            return_adversarial=True,
            checkpoint=self.options.out / "work" / f"{self.name}-{255 * eps:g}-{key}",
            sanity_checks=False,
        )
        assert report.adversarial is not None  # asked for
        (found,) = report.adversarial.values()
        return report.correct_clean & ~report.correct[eps], found

    def _pgd(self, images: Tensor, labels: Tensor, eps: float, steps: int = 40) -> Tensor:
        from torchattacks import PGD

        attack = PGD(self.network, eps=eps, alpha=eps / 4, steps=steps)
        found = []
        with torch.random.fork_rng():
            torch.manual_seed(self.options.seed)
            for x, y in self._batches(images, labels):
                found.append(attack(x, y).cpu())
        return torch.cat(found) if found else images

    @torch.no_grad()
    def _predict(self, pixels: Tensor) -> Tensor:
        found = [self.network(x / 255).argmax(1).cpu() for (x,) in self._batches(pixels)]
        return torch.cat(found)

    def _batches(self, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
        split = (part.to(self.options.device).split(self.options.batch_size) for part in parts)
        return (batch for batch in zip(*split, strict=True) if len(batch[0]))


def round_towards(clean: Tensor, perturbed: Tensor, level: float) -> Tensor:
    """Perturbed images as 8 bits, each channel rounded towards the clean one, and at most ``level`` levels away.

    Args:
        clean: ``(N, C, H, W)``, uint8.
        perturbed: ``(N, C, H, W)`` in [0, 1]. A thousandth of a level is taken for a rounding error.
        level: ε·255.

    Returns:
        ``(N, C, H, W)``, uint8.
    """
    change = 255 * perturbed.double() - clean
    # A thousandth outwards, so that 3.9999999, which is 4 in floating point, does not become 3.
    change = (change + change.sign() / 1000).trunc().clamp(-int(level), int(level))
    return (clean + change).to(torch.uint8)


def _choose(images: _Images, makers: Mapping[str, _Maker], options: argparse.Namespace) -> tuple[list[int], list[int]]:
    """The pool, class by class, and the images that are left, both in random order."""
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(options.seed)).tolist()
    waiting: dict[int, list[int]] = {}
    for index in order:
        waiting.setdefault(images.labels[index], []).append(index)
    pool: dict[int, list[int]] = {label: [] for label in sorted(waiting)}
    while True:
        batch = []
        for label, indices in waiting.items():
            missing = options.per_class - len(pool[label])
            batch += indices[:missing]
            del indices[:missing]
        if not batch:
            break
        if options.fooled_at is not None:
            for maker in makers.values():
                maker.make(batch, options.fooled_at)
        for index in batch:
            made = [maker.stimuli.get((index, options.fooled_at)) for maker in makers.values()]
            if all(stimulus is None or stimulus.record["fooled"] for stimulus in made):
                pool[images.labels[index]].append(index)
    chosen = [index for indices in pool.values() for index in indices if len(indices) == options.per_class]
    taken = set(chosen)
    return chosen, [index for index in order if index not in taken]


def _entry(index: int, images: _Images, makers: Mapping[str, _Maker], options: argparse.Namespace) -> dict[str, Any]:
    label = images.labels[index]
    name = f"{label:03}-{index:04}"
    return {
        "id": name,
        "class": label,
        "name": images.names[label],
        "clean": _png(images[index], options.out, f"{name}-clean")
        | {"right": {version: maker.right[index] for version, maker in makers.items()}},
        "versions": {
            version: {
                f"{level:g}": _png(maker.stimuli[index, level].pixels, options.out, f"{name}-{version}-{level:g}")
                | maker.stimuli[index, level].record
                for level in options.levels
            }
            for version, maker in makers.items()
        },
    }


def _examples(
    pair: Sequence[int], images: _Images, makers: Mapping[str, _Maker], options: argparse.Namespace
) -> dict[str, dict[str, list[str]]]:
    """A pair at the highest level and one at the lowest, of two images that are not in the pool."""
    found: dict[str, dict[str, list[str]]] = {version: {} for version in makers}
    for index, (kind, level) in zip(pair, (("strong", options.levels[-1]), ("weak", options.levels[0])), strict=True):
        clean = _png(images[index], options.out, f"example-{kind}-clean")
        for version, maker in makers.items():
            pixels = maker.stimuli[index, level].pixels
            perturbed = _png(pixels, options.out, f"example-{kind}-{version}-{level:g}")
            found[version][kind] = [clean["file"], perturbed["file"]]
    return found


def _png(pixels: Tensor, folder: Path, name: str) -> dict[str, Any]:
    """Write an image ``(C, H, W)``, uint8, of one channel or three; where it is, and its hash."""
    from PIL import Image

    array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    data = io.BytesIO()
    # Not compressed: the length of a perturbed image's file would tell its level to who looks at the requests.
    Image.fromarray(array.contiguous().numpy()).save(data, "PNG", compress_level=0)
    path = folder / "png" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write_bytes(data.getvalue())
    return {"file": f"png/{path.name}", "sha256": hashlib.sha256(data.getvalue()).hexdigest()}


def _summary(manifest: Mapping[str, Any]) -> str:
    """Per network and level, how many images fool it before and after rounding, and how large the change is."""
    lines = []
    for version in manifest["versions"]:
        right = sum(image["clean"]["right"][version] for image in manifest["images"])
        lines.append(f"{version}: {right} of {len(manifest['images'])} right when clean; fooled, of these:")
        for level in manifest["levels"][1:]:
            made = [image["versions"][version][f"{level:g}"] for image in manifest["images"]]
            before = sum(each["attack"] != "PGD" for each in made)
            norm = 255 * sum(each["norm"] for each in made) / len(made)
            fooled = sum(each["fooled"] for each in made)
            lines.append(
                f"  ε = {level:g}/255: {before} before rounding, {fooled} after; norm {norm:.2f}/255 on average"
            )
    return "\n".join(lines)
