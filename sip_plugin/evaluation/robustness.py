"""Clean and robust accuracy of a network at nested ε, image by image, under attacks that no mask restricts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_eps, check_logits
from sip_plugin.evaluation.autoattack import attack_names, autoattack_stages
from sip_plugin.evaluation.data import Data, collect
from sip_plugin.evaluation.findings import Findings
from sip_plugin.evaluation.journal import Journal, fingerprint, model_fingerprint
from sip_plugin.evaluation.processes import Processes
from sip_plugin.evaluation.report import RobustnessReport
from sip_plugin.evaluation.stages import Attempt, Batch, Judge, Stage, derived_seed
from sip_plugin.state import evaluating, preserved


def evaluate_robustness(
    model: nn.Module,
    data: Data,
    *,
    eps: float | Iterable[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    norm: Norm = "Linf",
    version: str | Sequence[str] = "standard",
    assume_survivors: bool = False,
    batch_size: int = 128,
    max_images: int | None = None,
    seed: int = 0,
    return_adversarial: bool = False,
    checkpoint: str | Path | None = None,
) -> RobustnessReport:
    """Attack every image at every ε by AutoAttack, unrestricted, and report what is left."""
    began = time.perf_counter()
    radii = _radii(eps, norm)
    settings: dict[str, Any] = {
        "eps": list(radii),
        "norm": norm,
        "attack": "autoattack",
        "version": version if isinstance(version, str) else list(version),
        "attacks": list(attack_names(version)),
        "assume_survivors": assume_survivors,
        "batch_size": batch_size,
        "seed": seed,
    }
    with torch.inference_mode(False), torch.enable_grad(), _left_as_found(model):
        images, labels = collect(data, max_images)
        journal = Journal(
            checkpoint,
            settings
            | {
                "return_adversarial": return_adversarial,
                "data": fingerprint(images, labels),
                "model": model_fingerprint(model),
            },
        )
        finished = journal.load_report()
        if finished is not None:
            return RobustnessReport(**finished)
        evaluation = _Evaluation(model, images, labels, radii, norm, settings, journal, keep=return_adversarial)
        evaluation.run()
        findings = evaluation.findings
        report = RobustnessReport(
            eps=radii,
            norm=norm,
            attacks=tuple(stage.name for stage in evaluation.stages),
            labels=labels,
            outcome=findings.outcome,
            broken_by=findings.broken_by(),
            smallest_norm=findings.smallest_norm,
            settings=settings,
            seconds=time.perf_counter() - began + evaluation.seconds_before,
            adversarial=findings.adversarial(images),
        )
        journal.finish({field.name: getattr(report, field.name) for field in fields(report)})
    return report


class _Evaluation:
    """One run: which images are attacked next, at which ε, by which attack."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        radii: tuple[float, ...],
        norm: Norm,
        settings: dict[str, Any],
        journal: Journal,
        *,
        keep: bool,
    ) -> None:
        self.model, self.images, self.labels, self.radii, self.norm = model, images, labels, radii, norm
        self.settings, self.journal, self.keep = settings, journal, keep
        self.processes = Processes()
        self.device = _device(model)
        self.judge = Judge(model, radii, norm)
        self.seconds_before = 0.0
        self.stages: Sequence[Stage] = ()
        self.done: list[Tensor] = []

    def run(self) -> None:
        """Fill ``findings``."""
        correct, classes = self._clean()
        self.stages = autoattack_stages(self.model, self.settings["version"], self.norm, classes, self.device)
        self.done = [torch.zeros(len(self.images), dtype=torch.int64) for _ in self.stages]
        self.findings = Findings(self.radii, correct, self.images if self.keep else None)
        assume = self.settings["assume_survivors"]
        balls = range(len(self.radii))
        for ball in reversed(balls) if assume else balls:
            for number in range(len(self.stages)):
                self._attack(ball, number)
            self.findings.close(ball, assume=assume)

    def _clean(self) -> tuple[Tensor, int]:
        def classify(rows: Tensor) -> tuple[Tensor, int]:
            images, labels = self.images[rows].to(self.device), self.labels[rows].to(self.device)
            with torch.no_grad():
                logits = check_logits(self.model(images), len(images))
            return (logits.argmax(1) == labels).cpu(), logits.shape[1]

        results = self.processes.map(self._batches(torch.arange(len(self.images))), classify)
        return torch.cat([right for right, _ in results]), results[0][1]

    def _attack(self, ball: int, number: int) -> None:
        """Run one attack at one ε on all images that are still to be attacked there."""
        stage, done = self.stages[number], self.done[number]
        rows = self.findings.pending(ball)
        if stage.parts:
            rows = rows[done[rows] < stage.parts]
        batches = self._batches(rows)
        attempts = self.processes.map(
            list(enumerate(batches)), lambda task: self._attack_batch(ball, number, task[0], task[1])
        )
        for part, attempt in zip(batches, attempts, strict=True):
            done[part] = attempt.done
            self.findings.record(ball, number, part, attempt.norms, attempt.examples if self.keep else None)

    def _attack_batch(self, ball: int, number: int, place: int, rows: Tensor) -> Attempt:
        """The attack's result on one batch: remembered, or found now."""
        stage, eps = self.stages[number], self.radii[ball]
        name = f"{ball}-{stage.name}-{place}"
        known = self.journal.load(name)
        if known is not None:
            self.seconds_before += known["seconds"]
            return Attempt(known["norms"], known["examples"], known["done"])
        began = time.perf_counter()
        images, labels = self.images[rows].to(self.device), self.labels[rows].to(self.device)
        seed = derived_seed(self.settings["seed"], eps, stage.name)
        attempt = stage.attack(Batch(images, labels, rows, self.done[number][rows], eps, seed, self.judge))
        if not self.keep:
            attempt = Attempt(attempt.norms, attempt.examples[:0], attempt.done)
        self.journal.save(
            name,
            {
                "norms": attempt.norms,
                "examples": attempt.examples,
                "done": attempt.done,
                "seconds": time.perf_counter() - began,
            },
        )
        return attempt

    def _batches(self, rows: Tensor) -> list[Tensor]:
        """As few batches as the batch size allows, of equal size but for one image."""
        count = -(-len(rows) // self.settings["batch_size"])
        return list(rows.tensor_split(count)) if count else []


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode, parameters that need no gradient, and random generators of their own; all put back at the end."""
    device = _device(model)
    with preserved(model), evaluating(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # attacks need the input's gradient alone
        yield


def _radii(eps: float | Iterable[float], norm: Norm) -> tuple[float, ...]:
    given = list(eps) if isinstance(eps, Iterable) else [eps]
    radii = tuple(sorted({check_eps(radius, norm) for radius in given}))
    if not radii or radii[0] == 0:
        raise ValueError(
            f"eps must hold one radius or more, all above 0 (clean accuracy is always reported), got {given}."
        )
    return radii


def _device(model: nn.Module) -> torch.device:
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")
