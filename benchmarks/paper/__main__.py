"""The paper's tables.

    python -m benchmarks.paper run --dataset cifar10 --arch resnet18 --method sip-at --seed 0 --data-dir DIR
    python -m benchmarks.paper table --preset digits
    python -m benchmarks.paper table --preset cifar10-cpu --data-dir DIR --unofficial-data FOLDER
    python -m benchmarks.paper report --preset cifar10-cpu

Everything can be interrupted (kill -9 too, or by --time-limit) and started again with the same command, with --state FOLDER
on another machine, too; several `table` commands may work on one table at once. Several GPUs:
``torchrun --nproc-per-node 4 -m benchmarks.paper run … --accelerator cuda``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.paper.data import Source, add_data_arguments
from benchmarks.paper.methods import METHODS
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.presets import PRESETS, Preset
from benchmarks.paper.protocols import Cell, Evaluation, Precision, Training
from benchmarks.paper.state import TimeUp, pack, time_limit, unpack

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_SAME = {"sip-at": "sip-s"}  # the paper's name of the method and of its rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset or options.dataset]
    if options.dataset not in (None, preset.dataset):
        parser.error(f"--preset {options.preset} is for {preset.dataset}, not for --dataset {options.dataset}")
    options.results = options.results or Path("out") / "paper" / (options.preset or options.dataset)
    options.work = options.work or options.results / "work"
    try:
        if options.command == "report":
            from benchmarks.paper.report import write_report

            write_report(preset, options.results, options.seeds)
            return 0
        cells = _cells(options, preset)
        if options.state:
            unpack(options.state, options.results, options.work)
        try:
            with time_limit(options.time_limit):
                return _run(cells, options)
        except TimeUp:
            print("The time is up: the same command goes on.")
            return 0
        finally:
            _pack(options)
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _run(cells: list[Cell], options: argparse.Namespace) -> int:
    from benchmarks.paper.cell import Place, run_cell

    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}.")
        torch.set_num_threads(options.threads)
    place = Place(
        Source(options.data_dir, options.download, options.unofficial_data, options.unofficial_test),
        options.work,
        options.results,
        options.teacher,
        options.workers,
        options.log,
    )
    left, diverged = [], []
    for number, cell in enumerate(cells):
        fabric = _fabric(options, cell.training.precision)
        fabric.launch()
        if fabric.global_rank == 0:
            print(f"[{number + 1}/{len(cells)}] {cell.name}", flush=True)
        known = place.result(cell).exists()
        try:
            done = run_cell(cell, place, fabric, train_only=options.train_only)
        except FloatingPointError as error:
            diverged.append(str(error))
            continue
        if not done:
            left.append(cell.name)
        elif not known:
            _pack(options)
    if left:
        print(f"Another process is at: {', '.join(left)}.")
    if diverged:
        raise FloatingPointError(f"{' '.join(diverged)} Lower --learning-rate, for all cells of a table.")
    if not left:
        print(f"Done: {len(cells)} cell(s).")
    return 0


def _pack(options: argparse.Namespace) -> None:
    if options.state and int(os.environ.get("RANK", 0)) == 0:
        pack(options.state, options.results, options.work)


def _fabric(options: argparse.Namespace, precision: Precision) -> Fabric:
    from lightning.fabric import Fabric

    devices = int(os.environ.get("LOCAL_WORLD_SIZE", options.devices))
    try:
        fabric = Fabric(accelerator=options.accelerator, devices=devices, num_nodes=options.nodes, precision=precision)
    except Exception as error:  # Lightning's are of several kinds
        raise ValueError(
            f"Lightning Fabric does not do --accelerator {options.accelerator} with {devices} device(s) and --nodes "
            f"{options.nodes} here: {error}"
        ) from error
    if fabric.strategy.precision.precision != precision:  # it took another one, with a warning
        raise ValueError(
            f"There is no --precision {precision} on this device: try {fabric.strategy.precision.precision}."
        )
    return fabric


def _cells(options: argparse.Namespace, preset: Preset) -> list[Cell]:
    from benchmarks.paper.cell import with_changes

    training, evaluation = _changes(options, Training), _changes(options, Evaluation)
    if options.command == "run":
        method = _SAME.get(options.method, options.method)
        if options.teacher is not None and METHODS[method].salience in (None, "human"):
            raise ValueError(f"{options.method} has no teacher: leave --teacher out.")
        base = Cell(
            options.dataset,
            options.arch or preset.archs[0],
            method,
            options.seed,
            options.teacher_arch or preset.teacher_arch,
            preset.training,
            preset.evaluation,
            split_seed=options.split_seed,
        )
        return [with_changes(base, training, evaluation)]
    preset = dataclasses.replace(
        preset,
        archs=tuple(options.archs or preset.archs),
        methods=tuple(_SAME.get(method, method) for method in options.methods or preset.methods),
        seeds=tuple(preset.seeds if options.seeds is None else options.seeds),
        teacher_arch=options.teacher_arch or preset.teacher_arch,
    )
    theirs = set(preset.methods) & set(PRESETS[preset.base].methods) if options.methods and preset.base else set()
    if theirs:
        raise ValueError(f"{', '.join(sorted(theirs))}: make these cells with --preset {preset.base}, whose they are.")
    return [
        dataclasses.replace(with_changes(cell, training, evaluation), split_seed=options.split_seed)
        for cell in preset.cells()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate one cell")
    run.add_argument("--dataset", choices=("digits", "cifar10", "cifar100", "cub"), required=True)
    run.add_argument("--preset", choices=PRESETS, help="whose settings to start from (default: the data set's own)")
    run.add_argument("--arch", choices=NETWORKS)
    run.add_argument("--method", choices=(*METHODS, *_SAME), required=True)
    run.add_argument("--seed", type=int, default=0)
    table = commands.add_parser("table", help="all cells of a table")
    table.add_argument("--preset", choices=PRESETS, required=True)
    table.add_argument("--archs", nargs="+", choices=NETWORKS)
    table.add_argument("--methods", nargs="+", choices=(*METHODS, *_SAME))
    table.add_argument("--seeds", nargs="+", type=int)
    for command in (run, table):
        _add_common(command)
    report = commands.add_parser("report", help="table and curves from the results there are")
    report.add_argument("--preset", choices=PRESETS, required=True)
    report.add_argument("--results", type=Path)
    report.add_argument("--seeds", nargs="+", type=int, help="leave out the cells of other seeds")
    report.set_defaults(work=None, dataset=None)
    table.set_defaults(dataset=None)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument(
        "--unofficial-test", metavar="FOLDER", help="such a folder for the test images alone (default: that one)"
    )
    parser.add_argument("--time-limit", type=int, metavar="SECONDS", help="stop in time; not on Windows")
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FOLDER",
        help="take up and leave here, in files of 15 MiB, what the next run needs",
    )
    parser.add_argument("--results", type=Path, help="folder of the result files (default: out/paper/PRESET)")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and maps (default: work/ in it)")
    parser.add_argument("--train-only", action="store_true", help="leave the evaluation to a later run")
    parser.add_argument("--teacher", type=Path, help="weights of a teacher trained elsewhere")
    parser.add_argument("--teacher-arch", choices=NETWORKS)
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--accelerator", default="auto", help="Fabric's: auto, cpu, cuda, mps")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--log", choices=("csv", "tensorboard"), default="csv")
    for part in (Training, Evaluation):
        group = parser.add_argument_group(f"{part.__name__.lower()}, in place of the preset's")
        for field, kind in _fields(part):
            flag = f"--{'test-' if field == 'eps' and part is Evaluation else ''}{field.replace('_', '-')}"
            if field == "batch_size" and part is Evaluation:
                flag = "--test-batch-size"
            destination = f"{part.__name__}.{field}"
            if kind is bool:
                group.add_argument(flag, dest=destination, action=argparse.BooleanOptionalAction)
            elif typing.get_origin(kind) is tuple:
                group.add_argument(flag, dest=destination, nargs="*", type=typing.get_args(kind)[0])
            elif typing.get_origin(kind) is typing.Literal:
                group.add_argument(flag, dest=destination, choices=typing.get_args(kind))
            else:
                group.add_argument(flag, dest=destination, type=int if kind == int | None else kind)


def _fields(part: type[Training] | type[Evaluation]) -> Iterator[tuple[str, Any]]:
    kinds = typing.get_type_hints(part)
    return ((field.name, kinds[field.name]) for field in dataclasses.fields(part))


def _changes(options: argparse.Namespace, part: type[Training] | type[Evaluation]) -> dict[str, Any]:
    given = vars(options)
    found = {name: given.get(f"{part.__name__}.{name}") for name, _ in _fields(part)}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None
    }


if __name__ == "__main__":
    sys.exit(main())
