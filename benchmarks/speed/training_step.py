"""What a training step costs, over the passes that its method cannot do without, and beside its peers in one process.

    python -m benchmarks.speed.training_step [--width 16] [--batch 64] [--rounds 5] [--device cuda] [--bf16] [--out FILE]

A ResNet-18 of the given width on random 3×32×32 images, with the labels that it predicts; K = 10 steps of 2/255 in 8/255,
maps ready (random halves). Learning rate and BatchNorm's momentum are 0, so that every round computes the same. A step is
search, loss and backward pass, for ART's trainers their ``fit`` on one batch. FAT stops early: its bare passes have the very
rows that its own step had.

Peak memory is that of the tensors made meanwhile and alive at once. Folding BatchNorm lowers that of a search and of a map
source; a step's peak stays that of the loss's own pass, which is in train mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchattacks
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from benchmarks.record import run_record, write_json
from benchmarks.speed.measure import (
    ALPHA,
    EPS,
    STEPS,
    PeakMemory,
    bare_passes,
    interleaved,
    ratio,
    resnet18,
    shown,
)
from sip_plugin import AdversarialTrainer
from sip_plugin.folding import FoldedModel
from sip_plugin.salience import GradientSalience
from sip_plugin.training import PART

BETA = 6.0


# --- the passes that a method cannot do without ---------------------------------------------------------------------------


def bare_map(model: nn.Module, images: Tensor, stage: nn.Module) -> None:
    """The pass of a class activation map: forward, and back to the last stage."""
    model.eval()
    seen: list[Tensor] = []

    def cut(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    hook = stage.register_forward_hook(cut)
    try:
        torch.autograd.grad(model(images).amax(1).sum(), seen[0])
    finally:
        hook.remove()


# --- peers ----------------------------------------------------------------------------------------------------------------


def torchattacks_step(model: nn.Module, attack: torchattacks.PGD, images: Tensor, labels: Tensor) -> None:
    """A plain loop's step with torchattacks."""
    model.train()
    F.cross_entropy(model(attack(images, labels)), labels).backward()


def published_trades_step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """TRADES with the passes of its published form: the clean images pass at each step of the search too."""
    model.eval()
    point = images + 0.001 * torch.randn_like(images)
    for _ in range(STEPS):
        point = point.detach().requires_grad_()
        divergence = F.kl_div(F.log_softmax(model(point), 1), F.softmax(model(images), 1), reduction="sum")
        (gradient,) = torch.autograd.grad(divergence, point)
        point = point.detach() + ALPHA * gradient.sign()
        point = torch.minimum(torch.maximum(point, images - EPS), images + EPS).clamp(0, 1)
    model.train()
    loss = F.cross_entropy(model(images), labels)
    loss = loss + BETA * F.kl_div(F.log_softmax(model(point), 1), F.softmax(model(images), 1), reduction="batchmean")
    loss.backward()


def published_fat_step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """FAT (τ = 0) with the passes of its published form: each step of the search has gradients of the parameters too."""
    model.eval()
    point, result, places = images + 0.001 * torch.randn_like(images), images.clone(), torch.arange(len(images))
    for _ in range(STEPS):
        point = point.detach().requires_grad_()
        logits = model(point)
        model.zero_grad()
        F.cross_entropy(logits, labels[places]).backward()
        assert point.grad is not None
        result[places] = point.detach()
        keep = logits.argmax(1) == labels[places]
        if not keep.any():
            break
        places, gradient, clean = places[keep], point.grad[keep], images[places[keep]]
        point = point.detach()[keep] + ALPHA * gradient.sign() + 0.001 * torch.randn_like(clean)
        point = torch.minimum(torch.maximum(point, clean - EPS), clean + EPS).clamp(0, 1)
        result[places] = point
    model.train()
    model.zero_grad()
    F.cross_entropy(model(result), labels).backward()


def published_mart_step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """MART with the passes of its published form."""
    model.eval()
    point = images + 0.001 * torch.randn_like(images)
    for _ in range(STEPS):
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(point), labels), point)
        point = point.detach() + ALPHA * gradient.sign()
        point = torch.minimum(torch.maximum(point, images - EPS), images + EPS).clamp(0, 1)
    model.train()
    clean, attacked = F.softmax(model(images), 1), model(point)
    adversarial = F.softmax(attacked, 1)
    runner_up = adversarial.scatter(1, labels[:, None], 0).amax(1)
    boosted = F.cross_entropy(attacked, labels) - torch.log(1.0001 - runner_up + 1e-12).mean()
    divergence = F.kl_div(torch.log(adversarial + 1e-12), clean, reduction="none").sum(1)
    weighted = divergence * (1.0000001 - clean.gather(1, labels[:, None]).squeeze(1))
    (boosted + BETA * weighted.mean()).backward()


class NoSequential(nn.Module):
    """The same network, wrapped: MAIR's way; and ART's TRADES trainer takes an ``nn.Sequential`` apart and fails."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """The network's output."""
        return self.network(images)


def art_trainers(model: nn.Module, images: Tensor, device: str) -> dict[str, Any]:
    """ART's trainers for Madry's and for TRADES training."""
    classifier = PyTorchClassifier(
        NoSequential(model),
        nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        clip_values=(0.0, 1.0),
        device_type="gpu" if device == "cuda" else "cpu",
    )
    search = {"eps": EPS, "eps_step": ALPHA, "max_iter": STEPS, "num_random_init": 1}
    attack = ProjectedGradientDescent(classifier, batch_size=len(images), verbose=False, **search)
    madry = AdversarialTrainerMadryPGD(classifier, batch_size=len(images), **search)
    madry.attack.set_params(batch_size=len(images))
    return {
        "ART AdversarialTrainerMadryPGD": madry,
        "ART AdversarialTrainerTRADESPyTorch": AdversarialTrainerTRADESPyTorch(classifier, attack, beta=BETA),
    }


PUBLISHED = {"trades": published_trades_step, "mart": published_mart_step, "fat": published_fat_step}


# --- the measurement ------------------------------------------------------------------------------------------


def rows_of_the_search(model: nn.Module, step: Callable[[], Any], loss_passes: int) -> list[int]:
    """The rows of each pass of a step's search."""
    rows: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        step()
    finally:
        hook.remove()
    return rows[: len(rows) - loss_passes]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage (the usual ResNet-18: 64)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, channels last (not for ART)")
    parser.add_argument("--compile", action="store_true", help="our search's step compiled (not FAT's)")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    layout = torch.channels_last if options.bf16 else torch.contiguous_format
    model = resnet18(options.width).to(options.device)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    images = torch.rand(options.batch, 3, 32, 32, device=options.device).contiguous(memory_format=layout)
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    salience = torch.rand_like(images) < 0.5

    def cast() -> Any:
        return torch.autocast(options.device, torch.bfloat16) if options.bf16 else nullcontext()

    def step(trainer: AdversarialTrainer) -> None:
        torch.manual_seed(options.seed)  # FAT's rows depend on its start
        model.train()
        with cast():
            loss = trainer(images, labels)
        loss.backward()

    def in_precision(function: Callable[[], Any]) -> None:
        with cast():
            function()

    results: dict[str, Any] = {}
    passes: dict[str, tuple[int, int]] = {  # without a gradient, to the weights
        "madry": (0, 1),
        "sip-at": (0, 1),
        "trades": (1, 2),
        "mart": (0, 2),
        "fat": (0, 1),
        "part": (0, 1),
    }
    for name, (clean, trained) in passes.items():
        method = PART(warmup=0) if name == "part" else name
        trainer = AdversarialTrainer(
            model,
            method,
            salience=salience if name == "sip-at" else None,
            eps=EPS,
            alpha=ALPHA,
            steps=STEPS,
            compile=options.compile and name != "fat",
        )
        trainer.set_epoch(0, 120)
        ours = partial(step, trainer)
        # A hook would become part of a compiled graph, whose rows are known.
        compiled = options.compile and name != "fat"
        rows = [options.batch] * STEPS if compiled else rows_of_the_search(model, ours, trained)
        searched = rows if name == "fat" else rows[-STEPS:]
        needed: list[Callable[[], None]] = [partial(bare_passes, model, images, labels, searched, clean, trained)]
        if name == "part":
            needed.append(partial(bare_map, model, images, model[-4]))

        def bare(needed: list[Callable[[], None]] = needed) -> None:
            for part in needed:
                in_precision(part)

        seconds = interleaved({"ours": ours, "bare passes": bare}, rounds=options.rounds, device=options.device)
        results[f"{name} step / its bare passes"] = ratio(seconds, "ours", "bare passes") | {"rows": rows}

    madry, folded = (
        AdversarialTrainer(model, "madry", eps=EPS, alpha=ALPHA, steps=STEPS, fold_batchnorm=fold)
        for fold in (False, True)
    )
    attack = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS)
    ways: dict[str, Callable[[], Any]] = {
        "bare passes": partial(
            in_precision, partial(bare_passes, model, images, labels, [options.batch] * STEPS, 0, 1)
        ),
        "sip-plugin madry": partial(step, madry),
        "sip-plugin madry, folded": partial(step, folded),
        "torchattacks.PGD": partial(in_precision, partial(torchattacks_step, model, attack, images, labels)),
    }
    if options.peers:
        for name, published in PUBLISHED.items():
            for fold in (False, True):
                trainer = AdversarialTrainer(model, name, eps=EPS, alpha=ALPHA, steps=STEPS, fold_batchnorm=fold)
                trainer.set_epoch(0, 120)
                ways[f"sip-plugin {name}{', folded' * fold}"] = partial(step, trainer)
            ways[f"{name.upper()} as published"] = partial(in_precision, partial(published, model, images, labels))
        wrapped = NoSequential(model)
        attack = torchattacks.PGD(wrapped, eps=EPS, alpha=ALPHA, steps=STEPS)
        ways["torchattacks.PGD around a wrapper, as in MAIR"] = partial(
            in_precision, partial(torchattacks_step, wrapped, attack, images, labels)
        )
        x, y = images.cpu().numpy(), np.eye(10, dtype=np.float32)[labels.cpu().numpy()]
        for name, peer in art_trainers(model, images, options.device).items():
            ways[name] = partial(peer.fit, x, y, batch_size=options.batch, nb_epochs=1)
    seconds = interleaved(ways, rounds=options.rounds, device=options.device)
    for name in ways:
        if name != "bare passes":
            results[f"{name} / bare passes of Madry"] = ratio(seconds, name, "bare passes")

    alive = {name: ways[name] for name in ("sip-plugin madry", "sip-plugin madry, folded", "torchattacks.PGD")}
    for form, trainer, network in (("", madry, model), (", folded", folded, FoldedModel(model))):
        alive[f"search of Madry{form}"] = partial(in_precision, partial(trainer.perturb, images, labels))
        alive[f"GradientSalience{form}"] = partial(in_precision, partial(GradientSalience(network), images))
    memory = {}
    for name, run in alive.items():
        model.zero_grad(set_to_none=True)
        with PeakMemory() as peak:
            run()
        memory[name] = peak.bytes
    print(shown(list(results.items())))
    print(*(f"peak memory, {name}: {size / 1e6:.1f} MB" for name, size in memory.items()), sep="\n")
    if options.out is not None:
        conditions = {
            "network": f"ResNet-18 of width {options.width}",
            "batch": options.batch,
            "steps": STEPS,
            "device": options.device,
            "compiled": options.compile,
            "precision": "bfloat16 autocast, channels last" if options.bf16 else "float32",
        }
        write_json(options.out, run_record(options.seed) | conditions | {"results": results, "peak_bytes": memory})
    return results | {"memory": memory}


if __name__ == "__main__":
    main()
