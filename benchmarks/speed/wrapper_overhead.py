"""What wrapping costs: SIPWrapper against the bare attack, and a SIP-AT step against the passes that it cannot do without.

    python -m benchmarks.speed.wrapper_overhead [--batch 64] [--rounds 9] [--device cuda] [--parts art foolbox] [--out FILE]

The network is pyautoattack's ResNet-18 for CIFAR-10, the images are random and the labels what it predicts for them. Maps
are ready (random halves), so that only the wrapper is timed. AutoAttack runs each of its four attacks on half a batch, with
10 iterations, one target class and 20 queries in place of 100, 9 and 5000, at ε = 1/255, where some images fall and some do
not. The attacks of ART and Foolbox have ε = 8/255, and ART's take all of the batch at once. The rows about a query are what
it costs to know which images a query about part of a batch is about, on a small network. In the last rows PGD attacks the
network with BatchNorm folded into its convolutions (once, before the clock starts), in each precision and layout.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from pyautoattack import AutoAttack
from torch import Tensor, nn

from benchmarks.record import run_record, write_json
from benchmarks.speed.measure import EPS, STEPS, bare_passes, interleaved, ratio, reference_resnet18, shown
from sip_plugin import AdversarialTrainer, SIPWrapper
from sip_plugin.adapters.projection import BatchProjection, RowSelections, plain_tensor, watched
from sip_plugin.folding import FoldedModel

PARTS = ("torchattacks", "art", "foolbox", "autoattack", "rows", "trainer", "folding")
_REPEATS = 500  # of what takes microseconds
Ways = dict[str, Callable[[], Any]]


class EachAttack(AutoAttack):  # type: ignore[misc]
    """AutoAttack whose individual evaluation can be repeated (the package's own leaves only its last attack to run)."""

    def run_standard_evaluation_individual(self, *arguments: Any, **options: Any) -> Any:
        """Each attack by itself on all images."""
        to_run = vars(self)["attacks_to_run"]
        try:
            return super().run_standard_evaluation_individual(*arguments, **options)
        finally:
            self.attacks_to_run = to_run


def scaled_down_autoattack(model: nn.Module, device: str, seed: int) -> AutoAttack:
    """AutoAttack's standard version with a tenth of its iterations and less."""
    attack = EachAttack(model, norm="Linf", eps=1 / 255, seed=seed, device=device)
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = STEPS
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 1
    attack.square.n_queries = 20
    return attack


def of_torchattacks(
    names: Sequence[str], model: nn.Module, images: Tensor, labels: Tensor, salience: Tensor
) -> Iterator[tuple[str, Ways]]:
    """Attacks of torchattacks by name, wrapped and bare."""
    for name in names:
        attack = getattr(torchattacks, name)(model, **({} if name == "FGSM" else {"steps": STEPS}))
        wrapped = SIPWrapper(attack, salience)
        yield name, {"wrapped": partial(wrapped, images, labels), "bare": partial(attack, images, labels)}


def of_art(model: nn.Module, images: Tensor, labels: Tensor, salience: Tensor) -> Iterator[tuple[str, Ways]]:
    """ART's PGD, in its default and its NumPy variant, and FGM, wrapped and bare."""
    # Imported here, because ART writes a configuration into the home folder.
    import art.attacks.evasion
    from art.estimators.classification import PyTorchClassifier

    kind = "gpu" if images.is_cuda else "cpu"
    shape = tuple(images.shape[1:])
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type=kind)
    x, y = images.cpu().numpy(), np.eye(10, dtype=np.float32)[labels.cpu().numpy()]
    pgd = {"eps": EPS, "eps_step": EPS / 4, "max_iter": STEPS, "batch_size": len(x), "verbose": False}
    for name, arguments in {
        "ProjectedGradientDescent": pgd,
        "ProjectedGradientDescentNumpy": pgd,
        "FastGradientMethod": {"eps": EPS, "batch_size": len(x)},
    }.items():
        attack = getattr(art.attacks.evasion, name)(estimator, **arguments)
        wrapped = SIPWrapper(attack, salience.cpu())
        yield name, {"wrapped": partial(wrapped.generate, x, y), "bare": partial(attack.generate, x, y)}


def of_foolbox(model: nn.Module, images: Tensor, labels: Tensor, salience: Tensor) -> Iterator[tuple[str, Ways]]:
    """Foolbox's PGD and FGSM, wrapped and bare."""
    import foolbox

    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    for name, arguments in {"LinfPGD": {"steps": STEPS}, "FGSM": {}}.items():
        attack = getattr(foolbox.attacks, name)(**arguments)
        wrapped = SIPWrapper(attack, salience)
        yield (
            name,
            {
                "wrapped": partial(wrapped, fmodel, images, labels, epsilons=EPS),
                "bare": partial(attack, fmodel, images, labels, epsilons=EPS),
            },
        )


def of_autoattack(attack: AutoAttack, images: Tensor, labels: Tensor, salience: Tensor) -> Ways:
    """AutoAttack on half a batch, wrapped and bare."""
    count = len(images) // 2
    wrapped = SIPWrapper(attack, salience[:count])
    half = images[:count], labels[:count]
    return {
        "wrapped": partial(wrapped.run_standard_evaluation_individual, *half),
        "bare": partial(attack.run_standard_evaluation_individual, *half),
    }


def of_rows(*, gradient: bool, rounds: int) -> dict[str, Any]:
    """A query about 99 of 100 images by a small network, with and without knowing which images they are.

    Only what differs is timed twice, selecting the images and finding their rows, each time after the network's passes; the
    passes themselves differ by more from one to the next.
    """
    images = torch.rand(100, 3, 16, 16)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()
    rows = torch.arange(99)
    selections = RowSelections(images)
    seen = watched(images, selections)[torch.arange(100)]  # an attack's run is handed a selection
    projection = BatchProjection(images, images < 0.5, selections=selections)

    def timed_query(source: Tensor, known: bool) -> tuple[float, float]:
        began = time.perf_counter()
        query = plain_tensor(source[rows])
        if known:
            projection.rows(query)
        selected = time.perf_counter()
        with torch.set_grad_enabled(gradient):
            logits = network(query.requires_grad_(gradient))
        if gradient:
            torch.autograd.grad(logits.sum(), query)
        return selected - began, time.perf_counter() - selected

    seconds: dict[str, list[float]] = {"known": [], "unknown": []}
    for _ in range(rounds):
        known = [timed_query(seen, True) for _ in range(_REPEATS)]
        unknown = [timed_query(images, False) for _ in range(_REPEATS)]
        passes = statistics.median(asked for _, asked in unknown)
        seconds["known"].append(statistics.median(selected for selected, _ in known) + passes)
        seconds["unknown"].append(statistics.median(selected for selected, _ in unknown) + passes)
    return ratio(seconds, "known", "unknown")


def of_trainer(model: nn.Module, images: Tensor, labels: Tensor, salience: Tensor) -> Ways:
    """A SIP-AT step, and the passes that it cannot do without."""
    trainer = AdversarialTrainer(model, "sip-at", salience=salience, steps=STEPS)

    def step() -> None:
        model.train()
        trainer(images, labels).backward()

    passes = partial(bare_passes, model, images, labels, [len(images)] * STEPS, 0, 1)
    return {"SIP-AT step": step, "bare passes": passes}


def of_folding(model: nn.Module, images: Tensor, labels: Tensor, salience: Tensor) -> Ways:
    """PGD of torchattacks around the network as it is, and around its folded form; each wrapped and bare."""
    ways: Ways = {}
    for form, network in {"": model, ", folded": FoldedModel(model, images)}.items():
        attack = torchattacks.PGD(network, steps=STEPS)
        ways[f"wrapped{form}"] = partial(SIPWrapper(attack, salience), images, labels)
        ways[f"bare{form}"] = partial(attack, images, labels)
    return ways


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument(
        "--attacks", nargs="+", default=["PGD", "FGSM", "APGD", "DIFGSM", "PGDL2"], help="those of torchattacks"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model = reference_resnet18().to(options.device)
    images = torch.rand(options.batch, 3, 32, 32, device=options.device)
    with torch.no_grad():
        labels = model(images).argmax(1)
    batch = images, labels, torch.rand_like(images) < 0.5
    attacks = {
        "torchattacks": partial(of_torchattacks, options.attacks, model, *batch),
        "art": partial(of_art, model, *batch),
        "foolbox": partial(of_foolbox, model, *batch),
    }
    results: dict[str, Any] = {}
    for library in (name for name in attacks if name in options.parts):
        for name, ways in attacks[library]():
            single_step = name in ("FGSM", "FastGradientMethod")
            rounds = options.rounds * (STEPS if single_step else 1)
            seconds = interleaved(ways, rounds=rounds, device=options.device)
            results[f"SIPWrapper({library}.{name}) / bare"] = ratio(seconds, "wrapped", "bare")
    if "autoattack" in options.parts:
        ways = of_autoattack(scaled_down_autoattack(model, options.device, options.seed), *batch)
        seconds = interleaved(ways, rounds=max(3, options.rounds // 2), device=options.device)
        results["SIPWrapper(pyautoattack.AutoAttack) / bare"] = ratio(seconds, "wrapped", "bare")
    if "rows" in options.parts:
        for gradient in (False, True):
            grad = ", and its gradient," if gradient else ""
            name = f"a query about 99 of 100 images{grad} with its rows known / that query"
            results[name] = of_rows(gradient=gradient, rounds=options.rounds)
    if "trainer" in options.parts:
        seconds = interleaved(of_trainer(model, *batch), rounds=options.rounds, device=options.device)
        results["AdversarialTrainer('sip-at') step / bare passes"] = ratio(seconds, "SIP-AT step", "bare passes")
    if "folding" in options.parts:  # the last, because it changes the network's layout
        layouts = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
        for layout, bf16 in itertools.product(layouts, (False, True)):
            model.to(memory_format=layouts[layout])  # type: ignore[call-overload]
            x = batch[0].contiguous(memory_format=layouts[layout])
            cast = torch.autocast(options.device, torch.bfloat16, enabled=bf16)
            ways = {name: cast(run) for name, run in of_folding(model, x, *batch[1:]).items()}
            seconds = interleaved(ways, rounds=max(3, options.rounds // 2), device=options.device)
            where = f"torchattacks.PGD, {layout}, {'bfloat16' if bf16 else 'float32'}"
            for ours, theirs in (("wrapped", "bare"), ("wrapped, folded", "bare, folded"), ("wrapped, folded", "bare")):
                results[f"{where}: {ours} / {theirs}"] = ratio(seconds, ours, theirs)
    print(shown(list(results.items())))
    if options.out is not None:
        conditions = {"network": "ResNet-18 of pyautoattack", "batch": options.batch, "steps": STEPS}
        write_json(options.out, run_record(options.seed) | conditions | {"device": options.device, "results": results})
    return results


if __name__ == "__main__":
    main()
