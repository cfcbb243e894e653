"""What wrapping costs: SIPWrapper against the bare attack, and a SIP-AT step against the passes that it cannot do without.

    python -m benchmarks.speed.wrapper_overhead [--batch 64] [--rounds 9] [--device cuda] [--out FILE]

The network is pyautoattack's ResNet-18 for CIFAR-10, the images are random and the labels what it predicts for them. Maps
are ready (random halves), so that only the wrapper is timed. AutoAttack runs each of its four attacks on half a batch, with
10 iterations, one target class and 20 queries in place of 100, 9 and 5000, at ε = 1/255, where some images fall and some do
not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchattacks
from pyautoattack import AutoAttack
from torch import Tensor, nn

from benchmarks.record import run_record, write_json
from benchmarks.speed.measure import interleaved, ratio, reference_resnet18, shown
from sip_plugin import AdversarialTrainer, SIPWrapper

STEPS = 10


def bare_passes(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """K passes forward and back to the input, one forward and back to the weights: what Madry training needs."""
    model.eval()
    for _ in range(STEPS):
        point = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(point), labels), point)
    model.train()
    F.cross_entropy(model(images), labels).backward()


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


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--attacks", nargs="+", default=["PGD", "FGSM", "APGD", "DIFGSM", "PGDL2"])
    parser.add_argument("--autoattack", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file (JSON)")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    model = reference_resnet18().to(options.device)
    images = torch.rand(options.batch, 3, 32, 32, device=options.device)
    with torch.no_grad():
        labels = model(images).argmax(1)
    salience = torch.rand_like(images) < 0.5
    results: dict[str, Any] = {}
    ways: dict[str, Callable[[], Any]]
    for name in options.attacks:
        attack = getattr(torchattacks, name)(model, **({} if name == "FGSM" else {"steps": STEPS}))
        wrapped = SIPWrapper(attack, salience)
        ways = {"wrapped": partial(wrapped, images, labels), "bare": partial(attack, images, labels)}
        seconds = interleaved(ways, rounds=options.rounds * (STEPS if name == "FGSM" else 1), device=options.device)
        results[f"SIPWrapper(torchattacks.{name}) / bare"] = ratio(seconds, "wrapped", "bare")
    if options.autoattack:
        attack = scaled_down_autoattack(model, options.device, options.seed)
        wrapped = SIPWrapper(attack, salience[: options.batch // 2])
        half = images[: options.batch // 2], labels[: options.batch // 2]
        ways = {
            "wrapped": partial(wrapped.run_standard_evaluation_individual, *half),
            "bare": partial(attack.run_standard_evaluation_individual, *half),
        }
        seconds = interleaved(ways, rounds=max(3, options.rounds // 2), device=options.device)
        results["SIPWrapper(pyautoattack.AutoAttack) / bare"] = ratio(seconds, "wrapped", "bare")
    trainer = AdversarialTrainer(model, "sip-at", salience=salience, steps=STEPS)

    def step() -> None:
        model.train()
        trainer(images, labels).backward()

    ways = {"SIP-AT step": step, "bare passes": partial(bare_passes, model, images, labels)}
    seconds = interleaved(ways, rounds=options.rounds, device=options.device)
    results["AdversarialTrainer('sip-at') step / bare passes"] = ratio(seconds, "SIP-AT step", "bare passes")
    print(shown(list(results.items())))
    if options.out is not None:
        conditions = {"network": "ResNet-18 of pyautoattack", "batch": options.batch, "steps": STEPS}
        write_json(options.out, run_record(options.seed) | conditions | {"device": options.device, "results": results})
    return results


if __name__ == "__main__":
    main()
