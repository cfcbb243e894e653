"""Salience maps of real images: made for all CIFAR-10 training images, kept, measured, compared with others, and drawn.

    python -m benchmarks.salience_maps --data-dir DIR [--download] [--unofficial-data FOLDER] [--bf16] [--out FOLDER]

The maps (SIP-AT, eq. 7 and 8) come from the gradient of a network trained with Madry's method. On 8,336 images and one core
its training takes about ten minutes; networks and maps are kept in --work, so a second run needs no training.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.paper.data import Source, add_data_arguments
from benchmarks.record import run_record, write_json, write_text
from benchmarks.salience.networks import Trained, accuracies, trained
from benchmarks.salience.sources import compared, other_sources, table
from benchmarks.small import CIFAR10, Data, Settings, load
from benchmarks.speed.measure import gradient, interleaved, ratio
from sip_plugin import SIPWrapper
from sip_plugin.mask_source import MaskSource
from sip_plugin.salience import CAMSalience, GradientSalience, MaskStore
from sip_plugin.salience.plots import plot_salience

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FIRST = "gradient, Madry"
BATCH = 128


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, build, measure, compare, draw; the result is also in the output folder as JSON, Markdown and PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--bf16", action="store_true", help="train under autocast to bfloat16")
    parser.add_argument("--rounds", type=int, default=3, help="how often building is timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("out/salience_maps"), help="folder of networks and maps")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/salience_maps"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = load("cifar10", Source(options.data_dir, options.download, options.unofficial_data))
    return run(data, dataclasses.replace(CIFAR10, epochs=options.epochs), CLASSES, options)


def run(data: Data, settings: Settings, classes: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The whole job on some data."""
    networks = {
        method: trained(method, data, settings, seed=options.seed, bf16=options.bf16, folder=options.work)
        for method in ("madry", "standard")
    }
    robust, standard = networks["madry"].network, networks["standard"].network
    images = data.train[0]
    seconds = building(options.work / "train.masks", data.train, robust, options.rounds)
    with MaskStore(options.work / "train.masks") as store:
        others = other_sources(store, robust, standard, seed=options.seed)
        comparisons = compared(FIRST, store, others, images, robust, BATCH)
        draw(options.out, data.train, store, robust, standard, classes, settings, options.seed)
        result = {
            **run_record(options.seed),
            "data": data.source,
            "images": len(images),
            "networks": {name: _described(each, data, settings, options.seed) for name, each in networks.items()},
            "maps": {"source": repr(GradientSalience(robust)), **sizes(store)},
            "building": {
                "batch": BATCH,
                "clock": "process time",
                "build / bare passes": ratio(seconds, "build", "bare passes"),
            },
            "comparisons": {other: found.to_dict() for other, found in comparisons.items()},
        }
    text = table(comparisons)
    write_json(options.out / "result.json", result)
    write_text(options.out / "table.md", text)
    print(text)
    return result


def building(path: Path, data: tuple[Tensor, Tensor], network: nn.Module, rounds: int) -> dict[str, list[float]]:
    """The process's seconds for building the store of all maps, and for the passes alone that the gradients take."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_fn = GradientSalience(network)

    def build() -> None:
        MaskStore.build(path, TensorDataset(*data), mask_fn, BATCH, progress=False, overwrite=True).close()

    ways = {"bare passes": lambda: [gradient(network, part) for part in data[0].split(BATCH)], "build": build}
    return interleaved(ways, rounds=rounds, device="cpu", clock=time.process_time)


def sizes(store: MaskStore) -> dict[str, Any]:
    """How much the maps mark, and how much room they take."""
    counts = store[:].flatten(1).sum(1).double()
    figures = {
        "min": counts.min(),
        "median": counts.quantile(0.5),
        "mean": counts.mean(),
        "max": counts.max(),
    }
    elements = store.shape[1:].numel()
    size = (store.path / "maps.npy").stat().st_size
    return {
        "elements": elements,
        "k": {name: value.item() for name, value in figures.items()},
        "share": {name: value.item() / elements for name, value in figures.items()},
        "empty": int((counts == 0).sum()),
        "file_bytes": size,
        "file_bytes_per_image": size / len(store),
        "bytes_as_bool": store.shape.numel(),
    }


def draw(
    out: Path,
    data: tuple[Tensor, Tensor],
    store: MaskStore,
    robust: nn.Module,
    standard: nn.Module,
    classes: Sequence[str],
    settings: Settings,
    seed: int,
) -> None:
    """The figures: what the maps leave of PGD's perturbation, and the maps of three sources side by side."""
    rows = examples(data, robust, 8)
    images, labels = data[0][rows], data[1][rows]
    names = [classes[label] for label in labels.tolist()]
    maps = store[rows]
    attack = torchattacks.PGD(robust, eps=settings.eps, alpha=settings.alpha, steps=settings.steps)
    found = []
    for each in (attack, SIPWrapper(attack, maps)):
        torch.manual_seed(seed)
        found.append(each(images, labels))
    plot_salience(
        images,
        maps,
        adversarial=found[0],
        projected=found[1],
        names=names,
        images_as="columns",
        path=out / "figure.png",
    )
    sources: dict[str, MaskSource] = {
        FIRST: maps,
        "gradient, standard": GradientSalience(standard),
        "Grad-CAM, Madry": CAMSalience(robust),
    }
    plot_salience(images, sources, show=("image", "map"), names=names, images_as="columns", path=out / "sources.png")


def examples(data: tuple[Tensor, Tensor], network: nn.Module, count: int) -> Tensor:
    """Of each of the first classes the first image that the network classifies correctly."""
    with torch.no_grad():
        right = torch.cat([network(x).argmax(1) == y for x, y in zip(*(p.split(BATCH) for p in data), strict=True)])
    rows = [(right & (data[1] == label)).nonzero()[:1, 0] for label in range(count)]
    return torch.cat(rows)


def _described(network: Trained, data: Data, settings: Settings, seed: int) -> dict[str, Any]:
    return {
        "training": network.conditions | {"seconds": network.seconds, "loss_per_epoch": network.losses},
        "parameters": sum(parameter.numel() for parameter in network.network.parameters()),
        "test_images": len(data.test[0]),
        "test_accuracy": accuracies(network.network, *data.test, settings, seed=seed),
    }


if __name__ == "__main__":
    main()
