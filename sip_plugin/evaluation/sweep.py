"""One evaluation: which images are attacked next, at which ε, by which attack."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm
from sip_plugin.evaluation import sanity
from sip_plugin.evaluation.autoattack import BLACK_BOX
from sip_plugin.evaluation.codes import ASSUMED
from sip_plugin.evaluation.findings import PENDING, Findings
from sip_plugin.evaluation.journal import Journal, damaged
from sip_plugin.evaluation.processes import Processes
from sip_plugin.evaluation.progress import Progress
from sip_plugin.evaluation.report import RobustnessReport
from sip_plugin.evaluation.stages import Attempt, Batch, Judge, Stage, derived_seed

_PROBED = 64  # images for each probe of reliability, together a percent or two of an evaluation


_Result = TypeVar("_Result", sanity.Clean, Attempt)


@dataclasses.dataclass
class Sweep:
    """All attacks over all ε.

    The work goes attack by attack over all images that are still to be attacked at one ε, so that batches are full. ε
    ascend; with ``assume_survivors`` they descend, and what survives one is not attacked at the smaller ones.

    Attributes:
        model: The network, in eval mode.
        images: Clean images ``(N, C, H, W)``, on the CPU.
        labels: ``(N,)``, on the CPU.
        radii: The ε, ascending.
        norm: Their norm.
        device: Where the network is.
        batch_size: Images a batch at most.
        seed: What all randomness follows from.
        assume_survivors: See above.
        keep_examples: Keep each image's smallest adversarial example.
        journal: Remembers finished batches.
        processes: Who else works on this evaluation.
        progress: Is told how far it is.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    radii: tuple[float, ...]
    norm: Norm
    device: torch.device
    batch_size: int
    seed: int
    assume_survivors: bool
    keep_examples: bool
    journal: Journal
    processes: Processes
    progress: Progress

    def __post_init__(self) -> None:
        self.judge = Judge(self.model, self.radii, self.norm)
        self.remembered_seconds = 0.0
        self._outside: dict[str, int] = {}
        self._nan = torch.zeros(len(self.images), dtype=torch.bool)
        self._probe_warnings: list[str] = []

    def look_at_clean(self) -> list[sanity.Clean]:
        """Classify all clean images; the first thing to do."""

        def look(place: int, rows: Tensor) -> sanity.Clean:
            def now() -> sanity.Clean:
                return sanity.look_at_clean(self.model, *self._on_device(rows))

            return self._remembered(f"clean-{place}", rows, sanity.Clean, now)

        batches = self._batches(torch.arange(len(self.images)))
        self.clean = self.processes.map(list(enumerate(batches)), lambda task: look(*task))
        correct = torch.cat([part.correct for part in self.clean])
        self.findings = Findings(self.radii, correct, self.images if self.keep_examples else None)
        return self.clean

    def run(self, stages: Sequence[Stage], *, probes: bool) -> None:
        """Attack; ``findings`` is complete afterwards."""
        self.stages = stages
        self._done = [torch.zeros(len(self.images), dtype=torch.int64) for _ in stages]
        balls = range(len(self.radii))
        for ball in reversed(balls) if self.assume_survivors else balls:
            for number in range(len(stages)):
                self._attack_all(ball, number)
            self.findings.close(ball, assume=self.assume_survivors)
        if probes and len(self.radii) > 1:
            self._probe()

    def report(self, settings: dict[str, Any], warnings: Sequence[str], seconds: float) -> RobustnessReport:
        """The finished report."""
        return RobustnessReport(
            eps=self.radii,
            norm=self.norm,
            attacks=tuple(stage.name for stage in self.stages),
            labels=self.labels,
            outcome=self.findings.outcome,
            broken_by=self.findings.broken_by(),
            smallest_norm=self.findings.smallest_norm,
            settings=settings,
            warnings=tuple(warnings),
            seconds=seconds + self.remembered_seconds,
            adversarial=self.findings.adversarial(self.images),
        )

    def warnings(self) -> list[str]:
        """What became suspicious in the course of the attacks."""
        found = [
            f"{count} adversarial example(s) of {name} lay outside the ball they were asked for; they count only in larger "
            "balls that hold them."
            for name, count in self._outside.items()
        ]
        found += sanity.nan_warning(int(self._nan.sum()), len(self.images))
        black = [number for number, stage in enumerate(self.stages) if stage.name in BLACK_BOX]
        if black and black[0] > 0:
            by = torch.isin(self.findings.outcome, torch.tensor(black)).any(0)
            found += sanity.black_box_warning(int(by.sum()), len(self.images))
        found += sanity.contradiction_warning(self.radii, self.findings.contradicted)
        return found + self._probe_warnings

    def _attack_all(self, ball: int, number: int) -> None:
        """Run one attack at one ε on all images that are still to be attacked there."""
        stage, done = self.stages[number], self._done[number]
        self.progress.stage(f"{stage.name}, eps {self.radii[ball]:.4g}", self._passes_left(ball, number))
        rows = self.findings.pending(ball)
        if stage.parts:
            rows = rows[done[rows] < stage.parts]
        self._attack(ball, number, self._batches(rows), f"{ball}-{number}")

    def _attack(self, ball: int, number: int, batches: list[Tensor], name: str) -> None:
        def attack(place: int, rows: Tensor) -> Attempt:
            attempt = self._remembered(f"{name}-{place}", rows, Attempt, lambda: self._attack_batch(ball, number, rows))
            self.progress.advance(len(rows) * self.stages[number].cost * self.processes.count)
            return attempt

        attempts = self.processes.map(list(enumerate(batches)), lambda task: attack(*task))
        stage = self.stages[number]
        for rows, attempt in zip(batches, attempts, strict=True):
            self._done[number][rows] = attempt.done
            self.findings.record(ball, number, rows, attempt.norms, attempt.examples if self.keep_examples else None)
            self._nan[rows[attempt.nan & (attempt.norms <= self.radii[-1])]] = True
            outside = int((attempt.norms.isfinite() & (attempt.norms > self.radii[ball])).sum())
            if outside and not stage.parts:
                self._outside[stage.name] = self._outside.get(stage.name, 0) + outside

    def _attack_batch(self, ball: int, number: int, rows: Tensor) -> Attempt:
        stage, eps = self.stages[number], self.radii[ball]
        seed = derived_seed(self.seed, eps, stage.name)
        batch = Batch(*self._on_device(rows), rows, self._done[number][rows], eps, seed, self.judge)
        attempt = stage.attack(batch)
        return attempt if self.keep_examples else dataclasses.replace(attempt, examples=torch.empty(0))

    def _probe(self) -> None:
        """Cheap tests: do assumed survivors survive the first attack, does each attack also succeed at a larger ε."""
        if not self.assume_survivors:
            for number, stage in enumerate(self.stages):
                if not stage.parts:  # otherwise its findings do not depend on ε
                    self._probe_larger_ball(number)
        elif not self.stages[0].parts:
            probed = (self.findings.outcome[0] == ASSUMED).nonzero().flatten()[:_PROBED]
            self._attack(0, 0, self._batches(probed), "probe")
            broken = int(self.findings.broken(0)[probed].sum())
            self._probe_warnings += sanity.assumption_warning(self.stages[0].name, self.radii, len(probed), broken)

    def _probe_larger_ball(self, number: int) -> None:
        """Run an attack at the largest ε on images that it broke at the smallest, which carrying spared it."""
        last = len(self.radii) - 1
        probed = (self.findings.outcome[0] == number).nonzero().flatten()[:_PROBED]

        def attack(place: int, rows: Tensor) -> Attempt:
            name = f"probe-{number}-{place}"
            return self._remembered(name, rows, Attempt, lambda: self._attack_batch(last, number, rows))

        attempts = self.processes.map(list(enumerate(self._batches(probed))), lambda task: attack(*task))
        withstood = sum(int((attempt.norms > self.radii[last]).sum()) for attempt in attempts)
        name = self.stages[number].name
        self._probe_warnings += sanity.larger_ball_warning(name, self.radii, len(probed), withstood)

    def _remembered(self, name: str, rows: Tensor, kind: type[_Result], run: Callable[[], _Result]) -> _Result:
        """A batch's result: from the journal, or found now and written there."""
        known = self.journal.load(name)
        if known is not None:
            path = self.journal.batch(name)
            if not isinstance(known.get("rows"), Tensor):
                raise ValueError(damaged(path, path))
            if not torch.equal(known["rows"], rows):
                raise ValueError(
                    f"checkpoint={str(self.journal.folder)!r} does not fit together: batch {name} is of other images. It "
                    "was written by another version of this library, or changed; begin anew in an empty folder."
                )
            if not _is_whole(known, kind):
                raise ValueError(damaged(path, path))
            self.remembered_seconds += known["seconds"]
            return kind(**known["result"])
        began = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - began
        self.journal.save(name, {"rows": rows.clone(), "result": dict(vars(result)), "seconds": seconds})
        return result

    def _passes_left(self, ball: int, number: int) -> float:
        """Forward passes of images that are left at most, counted from one attack at one ε."""
        costs = [stage.cost for stage in self.stages]
        here = len(self.findings.pending(ball)) * sum(costs[number:])
        if self.assume_survivors:
            others = self.findings.outcome[:ball] == PENDING
            return here + float((others.any(0) & (self.findings.outcome[ball] != PENDING)).sum()) * sum(costs)
        anew = sum(stage.cost for stage in self.stages if not stage.parts)
        return here + sum(len(self.findings.pending(k)) for k in range(ball + 1, len(self.radii))) * anew

    def _on_device(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[rows].to(self.device), self.labels[rows].to(self.device)

    def _batches(self, rows: Tensor) -> list[Tensor]:
        """As few batches as the batch size allows, of equal size but for one image."""
        count = -(-len(rows) // self.batch_size)
        return list(rows.tensor_split(count)) if count else []


def _is_whole(known: dict[str, Any], kind: type) -> bool:
    """Whether a file of the journal holds a result of that kind for each of its rows."""
    if known.keys() != {"rows", "result", "seconds"}:
        return False
    result, fields = known["result"], {each.name: each.type for each in dataclasses.fields(kind)}
    if not isinstance(known["seconds"], float) or not isinstance(result, dict) or result.keys() != fields.keys():
        return False
    count = len(known["rows"])
    return all(
        (isinstance(result[name], Tensor) and (len(result[name]) == count or name == "examples"))
        if annotation == "Tensor"
        else isinstance(result[name], int)
        for name, annotation in fields.items()
    )
