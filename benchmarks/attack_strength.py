"""Projecting every step against masking only the result: how many images each attack of a library leaves correct.

    python -m benchmarks.attack_strength [--library torchattacks art foolbox functions] [--images 64] [--out FOLDER]

A small convolutional network, trained on scikit-learn's digits (as 3×16×16 images with a little noise); a random half of all
elements is salient, another half for each image. Both ways use the same seeds. Results of the others go to FOLDER_art,
FOLDER_foolbox and FOLDER_functions.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.record import run_record, write_json, write_text
from benchmarks.strength.setting import Setting, compared, setting

LIBRARIES = ("torchattacks", "art", "foolbox", "functions")


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, int]]]:
    """Measure, print the tables, write them with the raw counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--images", type=int, default=64, help="at most; slow attacks have fewer")
    parser.add_argument("--attacks", nargs="+", help="rows of the tables; all of them if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the results of torchattacks")
    options = parser.parse_args(arguments)
    modules = {name: importlib.import_module(f"benchmarks.strength.{name}") for name in options.library}
    unknown = set(options.attacks or ()) - {attack for module in modules.values() for attack in module.ATTACKS}
    if unknown:
        parser.error(f"argument --attacks: not of {', '.join(modules)}: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # for networks this small, waking other threads takes longer than the work
    everything = setting(options.images, options.seed)
    results = {}
    for library, module in modules.items():
        names = [name for name in module.ATTACKS if options.attacks is None or name in options.attacks]
        if names:
            out = options.out
            if out is not None and library != "torchattacks":
                out = out.with_name(f"{out.name}_{library}")
            results[library] = of_library(module, names, everything, options.seed, out)
    return results


def of_library(
    module: Any, names: Sequence[str], everything: Setting, seed: int, out: Path | None
) -> dict[str, dict[str, int]]:
    """Measure attacks of one library, print their table, write it with the raw counts."""
    results = {}
    for name in tqdm(names, unit="attack"):
        part = everything.first(module.IMAGES.get(name, len(everything.x)))
        if name in getattr(module, "ONE_MAP", ()):
            part = part.with_one_map()
        results[name] = compared(module.ways(name, part), part, seed)
    count = len(everything.x)
    lines = [f"| Attack | bare | masked late | projected at every step (of {count} images) |", "|---|---|---|---|"]
    for name, r in results.items():
        shown = f"{name} (of {fewer})" if (fewer := module.IMAGES.get(name, count)) < count else name
        lines.append(f"| {shown} | {r['bare']} | {r['late']} | {r['projected']} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if out is not None:
        conditions = {
            "images": count,
            "salient": 0.5,
            "arguments": {name: module.ATTACKS[name] for name in names},
        } | module.conditions(names)
        write_json(out / "result.json", run_record(seed) | conditions | {"correct": results})
        write_text(out / "table.md", text)
    return results


if __name__ == "__main__":
    main()
