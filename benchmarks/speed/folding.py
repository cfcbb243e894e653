"""What folding BatchNorm saves in training: steps over their bare passes with and without, in one process.

    python -m benchmarks.speed.folding [--networks resnet18-16 ...] [--rounds 5] [--out FILE]

Each network in float32 and under bfloat16 autocast, contiguous and in channels-last; the bare passes are of the network as
it is, in the same layout and precision. K = 10 steps of 2/255 in 8/255 on random 3×32×32 images; learning rate and
BatchNorm's momentum are 0. *Kept* is what autograd holds of one search step between its forward and its backward pass,
parameters left out. The step's peak stays that of the loss's own pass in train mode.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.networks import WideResNet, build_network
from benchmarks.record import run_record, write_json, write_text
from benchmarks.speed.measure import ALPHA, EPS, STEPS, bare_passes, interleaved, ratio, resnet18
from sip_plugin import AdversarialTrainer
from sip_plugin.folding import FoldedModel

METHODS = {"madry": (0, 1), "sip-at": (0, 1), "trades": (1, 2)}  # passes without a gradient, and to the weights


def vit() -> nn.Module:
    """A small vision transformer, which has nothing to fold."""
    from torchvision.models import VisionTransformer

    network: nn.Module = VisionTransformer(32, 4, 4, 4, 64, 128, num_classes=10)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the batch
    "resnet18-16": (lambda: resnet18(16), 64),
    "resnet18-64": (lambda: resnet18(64), 32),
    "convnet24": (lambda: build_network("convnet24", 3, 10), 128),
    "wrn-28-2": (lambda: WideResNet(10, depth=28, factor=2), 32),
    "vit": (vit, 64),
}


def kept(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Bytes that autograd holds of a search step."""
    of_model = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_model:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(images.clone().requires_grad_()), labels)
    assert loss.requires_grad
    return sum(sizes.values())


def measured(network: str, bf16: bool, layout: torch.memory_format, rounds: int) -> dict[str, Any]:
    """All methods on one network."""
    torch.manual_seed(0)
    make, batch = NETWORKS[network]
    model = make().to(memory_format=layout)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    images = torch.rand(batch, 3, 32, 32).contiguous(memory_format=layout)
    labels, salience = torch.randint(10, (batch,)), torch.rand_like(images) < 0.5

    def cast() -> Any:
        return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    def step(trainer: AdversarialTrainer) -> None:
        model.train()
        with cast():
            loss = trainer(images, labels)
        loss.backward()

    def bare(clean: int, trained: int) -> None:
        with cast():
            bare_passes(model, images, labels, [batch] * STEPS, clean, trained)

    results = {}
    for name, (clean, trained) in METHODS.items():
        ways: dict[str, Callable[[], None]] = {"bare passes": partial(bare, clean, trained)}
        for way, fold in (("as it is", False), ("folded", True)):
            maps = salience if name == "sip-at" else None
            ways[way] = partial(
                step,
                AdversarialTrainer(model, name, salience=maps, eps=EPS, alpha=ALPHA, steps=STEPS, fold_batchnorm=fold),
            )
        seconds = interleaved(ways, rounds=rounds, device="cpu")
        results[name] = {way: ratio(seconds, way, "bare passes") for way in ("as it is", "folded")}
    model.eval()
    with cast():
        memory = {"as it is": kept(model, images, labels), "folded": kept(FoldedModel(model), images, labels)}
    return {
        "network": network,
        "batch": batch,
        "precision": "bfloat16 autocast" if bf16 else "float32",
        "layout": "channels-last" if layout == torch.channels_last else "contiguous",
        "steps": results,
        "kept_bytes": memory,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Median ratios with their spread, as Markdown."""

    def shown(found: dict[str, Any]) -> str:
        return f"{found['median_ratio']:.2f} ({min(found['ratios']):.2f}–{max(found['ratios']):.2f})"

    heads = [f"{name}{way}" for name in METHODS for way in ("", ", folded")]
    lines = [f"| Network | {' | '.join(heads)} | kept, folded |", "|---|" + "---|" * (len(heads) + 1)]
    for row in rows:
        cells = [shown(row["steps"][name][way]) for name in METHODS for way in ("as it is", "folded")]
        memory = row["kept_bytes"]["folded"] / row["kept_bytes"]["as it is"]
        name = f"{row['network']}, {row['precision']}, {row['layout']}"
        lines.append(f"| {name} | {' | '.join(cells)} | {memory:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it with the figures it is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="result file (JSON); the table is written beside it (.md)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    layouts = (torch.contiguous_format, torch.channels_last)
    for network, bf16, layout in itertools.product(options.networks, (False, True), layouts):
        rows.append(measured(network, bf16, layout, options.rounds))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        if options.out is not None:
            write_json(options.out, run_record(0) | {"search_steps": STEPS, "results": rows})
            write_text(options.out.with_suffix(".md"), table(rows))
    return rows


if __name__ == "__main__":
    main()
