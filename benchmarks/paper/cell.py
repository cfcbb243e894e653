"""One cell: its teacher and maps, its training, its evaluation and its result file, each done once and taken up again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.paper.data import Maps, Source, Splits, load_splits
from benchmarks.paper.files import load, locked, save
from benchmarks.paper.methods import METHODS, AnotherImages, LeastGradient, RandomLike
from benchmarks.paper.networks import build_network
from benchmarks.paper.protocols import Cell
from benchmarks.paper.seeds import derived
from benchmarks.paper.settings import differences
from benchmarks.paper.training import train_network
from benchmarks.record import run_record, write_json
from sip_plugin.evaluation import RobustnessReport, evaluate_robustness
from sip_plugin.model_utils import model_hash
from sip_plugin.salience import GradientSalience, MaskStore


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes.

    Attributes:
        source: The data.
        work: Checkpoints, networks, maps; large, needed only to go on.
        results: One JSON file per cell; small, to keep.
        teacher: Weights of a teacher that was trained elsewhere (a ``state_dict``), None to train one.
        workers: Processes that load images.
        log: ``"csv"`` or ``"tensorboard"``.
    """

    source: Source
    work: Path
    results: Path
    teacher: Path | None = None
    workers: int = 0
    log: str = "csv"

    def result(self, cell: Cell) -> Path:
        """The result file of a cell."""
        return self.results / "cells" / f"{cell.name}.json"


def run_cell(cell: Cell, place: Place, fabric: Fabric, *, train_only: bool = False) -> bool:
    """Train and evaluate a cell, unless its result is there or another process is at it.

    Args:
        cell: What to train and how to evaluate it.
        place: Where to read and write.
        fabric: Devices and precision; launched.
        train_only: Leave the evaluation to a later run.

    Returns:
        Whether it is done; False if another process is at it.

    Raises:
        ValueError: If a result or a checkpoint of that name is of other settings.
    """
    with fabric.rank_zero_first(local=True):  # which downloads
        splits = load_splits(cell.dataset, place.source, cell.training.validation_share, cell.split_seed)
    if _finished(cell, splits, place):
        return True
    with locked(place.work / f"{cell.name}.lock", fabric, wait=False) as mine:
        if not mine:
            return False
        maps, teacher = _maps(cell, splits, place, fabric)
        key = cell.training_key(splits.content, None if teacher is None else maps_source(teacher))
        network, history = trained(cell, key, splits, maps, place, fabric)
        if train_only:
            return True
        report = _evaluated(cell, key, network, splits, place, fabric)
        if fabric.global_rank == 0:
            # The result is the last to be written: where it is, the cell is done.
            report.to_json(place.result(cell).with_suffix(".report.json"))
            write_json(
                place.result(cell),
                {
                    **run_record(cell.seed),
                    "cell": cell.as_dict(),
                    "data": {
                        "origin": splits.origin,
                        "training_images": len(splits.train),  # type: ignore[arg-type]
                        "validation_images": len(splits.validation),  # type: ignore[arg-type]
                        "test_images": len(splits.test),  # type: ignore[arg-type]
                        "split": splits.split,
                        "content": splits.content,
                    },
                    "teacher": teacher,
                    "training_key": key,
                    "network": {
                        "weights_sha256": model_hash(network),
                        "parameters": sum(p.numel() for p in network.parameters()),
                    },
                    "training": history,
                    "clean_accuracy": report.clean_accuracy,
                    "robust_accuracy": {f"{255 * eps:g}/255": value for eps, value in report.robust_accuracy.items()},
                    "evaluation_seconds": report.seconds,
                    "warnings": list(report.warnings),
                },
            )
        fabric.barrier()
    return True


def _finished(cell: Cell, splits: Splits, place: Place) -> bool:
    path = place.result(cell)
    if not path.exists():
        return False
    known = json.loads(path.read_text(encoding="utf-8"))
    differing = differences(known["cell"], cell.as_dict())
    if known["data"]["content"] != splits.content:
        differing.append(f"data: {known['data']['origin']}, other images or labels")
    teacher, salience = known["teacher"] or {}, METHODS[cell.method].salience
    if salience == "human" and splits.human_maps is not None and maps_source(teacher) != splits.human_maps.content():
        differing.append("maps: other annotations")
    elif salience not in (None, "human"):
        if place.teacher is None and "file" in teacher:
            differing.append(f"teacher: that of --teacher {teacher['file']}")
        if place.teacher is not None and teacher["weights_sha256"] != model_hash(_given_teacher(cell, splits, place)):
            differing.append("teacher: other weights")
    if differing:
        raise ValueError(
            f"{path} is of this cell with other settings ({'; '.join(differing)}). Choose another --results folder (with "
            f"--work {place.work} networks that are trained already are used again), or remove the file."
        )
    return True


def maps_source(teacher: dict[str, Any]) -> str:
    """Hash of what a cell's maps come from, as its result says it: the teacher's weights, or the annotations."""
    found: str = teacher["weights_sha256"] or teacher.get("annotations_sha256", "not recorded")
    return found


def trained(
    cell: Cell, key: str, splits: Splits, maps: Maps | None, place: Place, fabric: Fabric
) -> tuple[nn.Module, dict[str, Any]]:
    """The cell's network and the history of its training, from its file if it was trained before."""
    folder = place.work / f"{cell.name}-{key}"
    file = folder / "network.pt"
    if file.exists():
        state = load(file)
        network = build_network(cell.arch, splits.channels, splits.classes)
        network.load_state_dict(state["network"])
        return network.to(fabric.device).eval(), state["history"]
    network, history = train_network(cell, splits, maps, folder, fabric, place.workers, place.log)
    if fabric.global_rank == 0:
        save(file, {"network": network.state_dict(), "history": history})
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    fabric.barrier()
    return network, history


def _maps(cell: Cell, splits: Splits, place: Place, fabric: Fabric) -> tuple[Maps | None, dict[str, Any] | None]:
    """The training images' maps, and what there is to say of the teacher."""
    kind = METHODS[cell.method].salience
    if kind is None:
        return None, None
    if kind == "human":
        if splits.human_maps is None:
            why = (
                "their archive, segmentations.tgz, is not unpacked in --data-dir"
                if cell.dataset == "cub"
                else f"{cell.method} is for cub"
            )
            raise ValueError(f"There are no human annotations for {cell.dataset}: {why}.")
        return splits.human_maps, {
            "salience": "human annotations",
            "weights_sha256": None,
            "annotations_sha256": splits.human_maps.content(),
        }
    teacher, note = _teacher(cell, splits, place, fabric)
    row, train = METHODS[cell.method], splits.train
    source = GradientSalience(teacher, row.mass, per_pixel=row.per_pixel)
    least = row.salience == "least"
    settings = f"-mass{row.mass:g}" * (row.mass != 0.5) + "-pixel" * row.per_pixel + "-least" * least
    path = place.work / f"maps-{cell.dataset}-{splits.content}-{note['weights_sha256'][:12]}{settings}.masks"
    with locked(path.with_suffix(".lock"), fabric, wait=True):
        maps: Maps = MaskStore.build(
            path, train, LeastGradient(source) if least else source, batch_size=64, device=fabric.device
        )
    note["salient_share"] = sum(maps[i].float().mean().item() for i in range(len(maps))) / len(maps)
    if row.salience == "random":
        maps = RandomLike(maps, cell.seed)
    elif row.salience in ("same-class", "other-class"):
        labels = torch.tensor([train[i][1] for i in range(len(maps))])
        maps = AnotherImages(maps, labels, row.salience == "same-class", cell.seed)
    return maps, note


def _teacher(cell: Cell, splits: Splits, place: Place, fabric: Fabric) -> tuple[nn.Module, dict[str, Any]]:
    teacher = cell.teacher()
    if place.teacher is not None:
        network = _given_teacher(cell, splits, place).to(fabric.device).eval()
        return network, {"arch": teacher.arch, "file": place.teacher.name, "weights_sha256": model_hash(network)}
    with locked(place.work / f"{teacher.name}.lock", fabric, wait=True):
        key = teacher.training_key(splits.content, None)
        network, history = trained(teacher, key, splits, None, place, fabric)
    last = {name: value for name, value in history["epochs"][-1].items() if name.startswith("validation")}
    return network, {"arch": teacher.arch, "method": "madry", "seed": teacher.seed, **last} | {
        "weights_sha256": model_hash(network)
    }


def _given_teacher(cell: Cell, splits: Splits, place: Place) -> nn.Module:
    assert place.teacher is not None  # the caller has asked
    network = build_network(cell.teacher_arch, splits.channels, splits.classes)
    state = load(place.teacher)
    try:
        network.load_state_dict(state.get("network", state))
    except (RuntimeError, AttributeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"--teacher {place.teacher} does not hold the weights of {cell.teacher_arch} for {splits.classes} classes "
            f"(--teacher-arch says which network it is): {first}"
        ) from error
    return network


def _evaluated(
    cell: Cell, key: str, network: nn.Module, splits: Splits, place: Place, fabric: Fabric
) -> RobustnessReport:
    """AutoAttack's report."""
    settings = cell.evaluation
    return evaluate_robustness(
        network.to(fabric.device).eval(),
        DataLoader(splits.test, 256),
        max_images=settings.images,
        eps=settings.eps,
        version=settings.version,
        assume_survivors=settings.assume_survivors,
        batch_size=settings.batch_size,
        seed=derived(cell.seed) // 2,
        checkpoint=place.work / f"{cell.name}-{key}" / f"evaluation-{settings.key()}",
        fold_batchnorm=settings.fold_batchnorm,
    )


def with_changes(cell: Cell, training: dict[str, Any], evaluation: dict[str, Any]) -> Cell:
    """The cell with some settings of its own."""
    return dataclasses.replace(
        cell,
        training=dataclasses.replace(cell.training, **training),
        evaluation=dataclasses.replace(cell.evaluation, **evaluation),
    )
