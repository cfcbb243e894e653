"""Clean and robust accuracy of a network at nested ε, image by image, under attacks that no mask restricts."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_int, check_logits
from sip_plugin.distributed import ProcessGroup
from sip_plugin.evaluation import diagnostics
from sip_plugin.evaluation.arguments import Data, check_network, collect, parse_eps
from sip_plugin.evaluation.attacks import Attack, AttackFactory, CallableAttack, derive_seed, parse_attacks, run_batch
from sip_plugin.evaluation.autoattack import attack_settings, autoattack_members
from sip_plugin.evaluation.checkpoint import Checkpoint, fingerprint
from sip_plugin.evaluation.comparison import RobustnessReport
from sip_plugin.model_state import eval_mode, preserve_model_state
from sip_plugin.model_utils import model_device, model_hash, unwrap_model
from sip_plugin.utils import isolated_rng, progress_bar

_SOME = 16  # images for the diagnostics of the network itself
_PROBED = 64  # images for each probe of reliability, together a percent or two of an evaluation
_ADVICE = (
    "Each must call evaluate_robustness with the same network, the whole data in the same order (no DistributedSampler, no "
    "shuffling) and the same settings; the work is then divided among them. To evaluate in this process alone: "
    "distributed=False."
)


def evaluate_robustness(
    model: nn.Module,
    data: Data,
    *,
    eps: float | Iterable[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    norm: Norm = "Linf",
    attack: str | AttackFactory | Mapping[str, AttackFactory | str] = "autoattack",
    version: str | Sequence[str] = "standard",
    assume_survivors: bool = False,
    batch_size: int = 128,
    max_images: int | None = None,
    seed: int = 0,
    return_adversarial: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    sanity_checks: bool = True,
    distributed: bool = True,
    progress: bool = True,
) -> RobustnessReport:
    """Attack every image at every ε, unrestricted, and report what is left: the paper's evaluation (section 4.4).

    An image counts as robust at an ε only if no attack broke it there. The ε-balls are nested: an adversarial example found
    at one ε counts at every larger one (at a smaller one, too, if its norm allows), and the image is not attacked there
    again. The targeted FAB, which looks for the smallest perturbation whatever ε is, runs once for each image. Every example
    is verified by a forward pass of its own in eval mode, after being clipped to the ball and to ``[0, 1]``.

    The result does not depend on the batch size, the order of the images or the number of processes, but for the rounding
    of the network's own arithmetic: APGD's random starts follow from the seed and the image, Square's search is the same
    for all images. Exceptions: FAB's random restarts (version ``"plus"``), networks that are random themselves, and
    attacks of one's own; their random numbers follow from the seed and the batch.

    In several processes (``torchrun``) each calls this function with the same arguments and the whole data; the batches
    are divided among them, and each gets the whole report.

    The caller's random generators, the network's modes, buffers, gradients and ``requires_grad`` are left as they were.

    Args:
        model: Maps images ``(N, C, H, W)`` in ``[0, 1]`` to logits ``(N, classes)``; evaluated in eval mode on the device
            it is on.
        data: ``(images, labels)``, or an iterable of such batches (further parts, such as salience maps, are left out);
            all of it is held in memory.
        eps: Radii, in any order.
        norm: ``"Linf"`` or ``"L2"``.
        attack: ``"autoattack"`` (from ``pyautoattack``, or the original ``autoattack``); a factory
            ``(model, eps) -> attack``, for instance ``lambda model, eps: torchattacks.PGD(model, eps=eps)``; or a mapping
            of names to these. An attack is called as ``attack(images, labels)``, ``.generate(x=, y=)`` (ART) or
            ``.run_standard_evaluation(images, labels)``.
        version: AutoAttack's ``"standard"``, ``"plus"`` or ``"rand"``, or a list of its attacks (then with the settings of
            its custom version).
        assume_survivors: Begin with the largest ε, and assume that an image that survives it also survives the smaller
            ones. Skips the most expensive part of the work; the report marks what was assumed.
        batch_size: Images in a batch at most.
        max_images: Evaluate the first so many only.
        seed: What all randomness follows from.
        return_adversarial: Also return the adversarial images: for each image the smallest one found.
        checkpoint: A folder that remembers finished batches. An evaluation that was stopped, however, resumes where it
            was when called with the same arguments, also with another number of processes; one that was finished gives
            its report at once. Of attacks of one's own only the names are compared. Several processes need a folder that
            they all see.
        sanity_checks: Look for signs that the figures overestimate robustness; they end up in ``report.warnings``.
        distributed: Divide the work among the processes if ``torch.distributed`` is initialised. False evaluates in this
            process alone, for instance where only the first one calls.
        progress: Show a progress bar, if tqdm is installed.

    Returns:
        The report.

    Raises:
        TypeError: If an argument is of the wrong type, for instance an attack that was made already.
        ValueError: If images, labels or a setting are not legal, or ``checkpoint`` belongs to another evaluation.
        ImportError: If AutoAttack is not installed.
        RuntimeError: If another process failed.
    """
    began = time.perf_counter()
    group = ProcessGroup(distributed=distributed)

    def prepare() -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
        network = check_network(model, group.size)
        settings: dict[str, Any] = {
            "eps": list(parse_eps(eps, norm)),
            "norm": norm,
            "attack": attack_settings(parse_attacks(attack), version),
            "assume_survivors": bool(assume_survivors),
            "seed": check_int(seed, "seed", 0),
            "batch_size": check_int(batch_size, "batch_size", 1),
            "sanity_checks": bool(sanity_checks),
        }
        images, labels = collect(data, None if max_images is None else check_int(max_images, "max_images", 1))
        settings |= {"images": len(images), "data": fingerprint(images, labels)}
        return network, images, labels, settings | {"network": model_hash(unwrap_model(network))}

    with torch.inference_mode(False):
        network, images, labels, settings = group.call(prepare)
        identity = settings | {"return_adversarial": bool(return_adversarial)}
        group.require_equal(_ADVICE, **identity)
        with isolated_evaluation(network):
            state = _Evaluation(network, images, labels, settings, Checkpoint(checkpoint), group)
            some = images[: min(settings["batch_size"], _SOME)].to(state.device)
            with explain_dtype_error(network, some):
                group.on_rank_zero(lambda: _open(state.checkpoint, identity, network, some))
                finished = group.on_rank_zero(state.checkpoint.load_report)
                if finished is not None:
                    return RobustnessReport(**finished)
                dynamic = group.on_rank_zero(lambda: diagnostics.is_dynamic(network, some))
            if not dynamic:  # attacks need the image's gradient alone, but some compute the others', too
                network.requires_grad_(False)
            clean = state.classify()
            attacks = group.call(lambda: _attacks(state, clean, parse_attacks(attack), version))
            warnings = group.call(lambda: [note for each in attacks for note in each.notes(state.radii[-1])])
            show = progress and group.rank == 0 and find_spec("tqdm") is not None
            state.run(attacks, show=show, keep_examples=bool(return_adversarial))
            if sanity_checks:
                # What is random on purpose may withstand an attack at a larger ε by chance.
                probed = state.probe() if version != "rand" and len(state.radii) > 1 else []
                warnings += group.on_rank_zero(
                    lambda: diagnostics.network_warnings(
                        network, some, dynamic=dynamic, randomness_expected=version == "rand"
                    )
                )
                warnings += [*diagnostics.clean_warnings(clean), *state.warnings(), *probed]
        seconds = time.perf_counter() - began + state.checkpoint.seconds
        report = RobustnessReport(
            eps=state.radii,
            norm=norm,
            attacks=tuple(each.name for each in attacks),
            labels=labels,
            norms=state.norms,
            assumed=state.assumed & (state.norms.amin(0) > state.radii[0]),
            settings=settings,
            warnings=tuple(warnings),
            seconds=seconds,
            adversarial=state.adversarial(),
        )
        group.on_rank_zero(lambda: state.checkpoint.finish({f.name: getattr(report, f.name) for f in fields(report)}))
    return report


@dataclass
class _Evaluation:
    """What is known so far: the smallest norm at which each attack broke each image.

    The work goes attack by attack over all images that are still to be attacked at one ε, so that batches are full. ε
    ascend; with ``assume_survivors`` they descend, and what survives one is not attacked at the smaller ones.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    settings: dict[str, Any]
    checkpoint: Checkpoint
    group: ProcessGroup

    def __post_init__(self) -> None:
        self.device = model_device(self.model)
        self.radii: tuple[float, ...] = tuple(self.settings["eps"])
        self.norm: Norm = self.settings["norm"]
        self.assumed = torch.zeros(len(self.images), dtype=torch.bool)
        self.nan = torch.zeros(len(self.images), dtype=torch.bool)
        self.outside: dict[str, int] = {}
        self.withstood: dict[int, Tensor] = {}

    def classify(self) -> dict[str, Tensor]:
        """Classify all clean images; return what :func:`diagnostics.clean_statistics` says of each."""

        def look(rows: Tensor) -> dict[str, Tensor]:
            return diagnostics.clean_statistics(self.model, *self._on_device(rows))

        parts = [part for _, part in self._map("clean", torch.arange(len(self.images)), look)]
        clean = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.start = torch.where(clean["correct"], torch.inf, 0.0).double()
        return clean

    def run(self, attacks: Sequence[Attack], *, show: bool, keep_examples: bool) -> None:
        """Run all attacks at all ε; ``norms`` are complete afterwards."""
        self.attacks, self.examples = attacks, self.images.clone() if keep_examples else None
        self.norms = self.start.repeat(len(attacks), 1)
        self.done = torch.zeros_like(self.norms, dtype=torch.int64)
        assume = self.settings["assume_survivors"]
        everything = len(self.images) * len(self.radii) * sum(attack.cost for attack in attacks)
        with _bar(show, everything) as self.bar:
            for k in sorted(range(len(self.radii)), reverse=assume):
                for a, attack in enumerate(attacks):
                    todo = self._unbroken(k)
                    if attack.minimum_norm:
                        todo &= self.done[a] < attack.runs
                    self.bar.set_postfix_str(f"{attack.name}, eps {self.radii[k]:.4g}", refresh=sys.stderr.isatty())
                    self.bar.update((len(self.images) - int(todo.sum())) * attack.cost)
                    self._attack(f"{k}-{a}", k, a, todo.nonzero().flatten())
                self.withstood[k] = self._unbroken(k)
                if assume and k:
                    self.assumed |= self.withstood[k]
            self.bar.set_postfix_str("")

    def probe(self) -> list[str]:
        """Cheap tests: do assumed survivors survive the first attack, does each attack also succeed at a larger ε."""
        found, first, last = [], 0, len(self.radii) - 1
        if self.settings["assume_survivors"]:
            attack, rows = self.attacks[0], self.assumed.nonzero().flatten()[:_PROBED]
            if not attack.minimum_norm:  # otherwise its findings do not depend on ε
                self._attack("probe", first, 0, rows)
            if broken := int((self.norms[:, rows].amin(0) <= self.radii[first]).sum()):
                found.append(diagnostics.assumption_warning(attack.name, self.radii, len(rows), broken))
            return found
        for a, attack in enumerate(self.attacks):
            broken_first = (self.norms[a] <= self.radii[first]) & (self.start > 0) & (not attack.minimum_norm)
            rows = broken_first.nonzero().flatten()[:_PROBED]
            results = self._map(f"probe-{a}", rows, partial(self._attack_batch, last, a))
            if withstood := sum(int((result["norms"] > self.radii[last]).sum()) for _, result in results):
                found.append(diagnostics.larger_ball_warning(attack.name, self.radii, len(rows), withstood))
        return found

    def warnings(self) -> list[str]:
        """What became suspicious in the course of the attacks."""
        black_box = [a for a, attack in enumerate(self.attacks) if attack.black_box and a > 0]
        broken = (self.norms[black_box] <= self.radii[-1]).any(0) & (self.start > 0)
        return diagnostics.attack_warnings(
            self.radii,
            images=len(self.images),
            outside=self.outside,
            nan=int(self.nan.sum()),
            black_box=int(broken.sum()),
            contradicted=[
                int((self.withstood[k] & (self.norms.amin(0) <= self.radii[k])).sum()) for k in range(len(self.radii))
            ],
        )

    def adversarial(self) -> dict[float, Tensor] | None:
        """For each ε the smallest example found of each image if it lies in the ball, the clean image otherwise."""
        if self.examples is None:
            return None
        smallest = self.norms.amin(0).view(-1, 1, 1, 1)
        return {eps: torch.where(smallest <= eps, self.examples, self.images) for eps in self.radii}

    def _unbroken(self, k: int) -> Tensor:
        """The images without an example in a ball, and without those that are assumed to have none."""
        return (self.norms.amin(0) > self.radii[k]) & ~self.assumed

    def _attack(self, name: str, k: int, a: int, rows: Tensor) -> None:
        """Attack some images, and keep what is found."""
        attack = self.attacks[a]
        for part, result in self._map(name, rows, partial(self._attack_batch, k, a), attack.cost):
            found = result["norms"]
            if self.examples is not None:
                better = found < self.norms[:, part].amin(0)
                self.examples[part[better]] = result["examples"][better]
            self.norms[a, part] = torch.minimum(self.norms[a, part], found)
            self.done[a, part] = result["done"]
            self.nan[part[result["nan"] & (found <= self.radii[-1])]] = True
            outside = int((found.isfinite() & (found > self.radii[k])).sum())
            if outside and not attack.minimum_norm:
                self.outside[attack.name] = self.outside.get(attack.name, 0) + outside

    def _attack_batch(self, k: int, a: int, rows: Tensor) -> dict[str, Tensor]:
        attack, eps = self.attacks[a], self.radii[k]
        seed = derive_seed(self.settings["seed"], eps, attack.name)
        done = self.done[a, rows] if attack.minimum_norm else torch.zeros_like(rows)
        result = run_batch(attack, *self._on_device(rows), eps, seed, rows, done, self.radii, self.norm)
        return result if self.examples is not None else result | {"examples": torch.empty(0)}

    def _map(
        self, name: str, rows: Tensor, run: Callable[[Tensor], dict[str, Tensor]], cost: float = 0
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The results for some images, in as few batches as the batch size allows, of equal size but for one image."""
        count = -(-len(rows) // self.settings["batch_size"])
        batches = list(rows.tensor_split(count)) if count else []

        def task(number: int) -> dict[str, Tensor]:
            result = self.checkpoint.batch(f"{name}-{number}", batches[number], lambda: run(batches[number]))
            if cost:
                self.bar.update(len(batches[number]) * cost * self.group.size)
            return result

        return list(zip(batches, self.group.map_sharded(range(len(batches)), task), strict=True))

    def _on_device(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[rows].to(self.device), self.labels[rows].to(self.device)


@contextmanager
def isolated_evaluation(model: nn.Module) -> Iterator[None]:
    """A network in eval mode, seeds that may be set, AutoAttack's logger quiet; all as before at the end."""
    device, logger = model_device(model), logging.getLogger("auto-attack")
    # AutoAttack seeds the generator of the current CUDA device, whichever the network is on.
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    disabled, logger.disabled = logger.disabled, True
    try:
        with preserve_model_state(model), eval_mode(model), on_device, isolated_rng(device):
            yield
    finally:
        logger.disabled = disabled


@contextmanager
def explain_dtype_error(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Say it in words if a network cannot work on the images because of their type."""
    try:
        yield
    except RuntimeError as error:
        types = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != images.dtype})
        if not types or not re.search("dtype|scalar type|[Ii]nput type|same type", str(error)):
            raise
        raise TypeError(
            f"The network failed on images of {images.dtype} and has parameters of {', '.join(types)}. Evaluate "
            "model.float(), or a module whose forward converts the images and the logits."
        ) from error


def _open(checkpoint: Checkpoint, identity: Mapping[str, Any], model: nn.Module, some: Tensor) -> None:
    """Resume a checkpoint, after making sure that it is of this evaluation."""
    if checkpoint.folder is not None:
        with torch.no_grad():
            first, second = (check_logits(model(some), len(some)).double().cpu() for _ in range(2))
        diagnostics.check_not_nan(first)
        checkpoint.open(identity, None if diagnostics.differ(first, second) else first)


def _attacks(
    state: _Evaluation,
    clean: Mapping[str, Tensor],
    named: Mapping[str, AttackFactory | str],
    version: str | Sequence[str],
) -> list[Attack]:
    attacks: list[Attack] = []
    for name, factory in named.items():
        if isinstance(factory, str):
            attacks += autoattack_members(state.model, version, state.norm, int(clean["classes"][0]), state.device)
        else:
            attacks.append(CallableAttack(name, state.model, factory=factory))
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"Each attack must have a name of its own, got {', '.join(names)}.")
    blind = [attack.name for attack in attacks if attack.black_box is False]
    if blind and not clean["differentiable"].all():
        raise ValueError(
            f"The network's output has no gradient with respect to the image, which {', '.join(blind)} need. Is its forward "
            'under torch.no_grad(), or does it round? For black-box attacks alone: version=["square"].'
        )
    return attacks


def _bar(show: bool, total: float) -> Any:
    """A bar over the forward passes; skipped ones count as done, since work shrinks as images break."""
    # To a file a line now and then. The time left follows from the average so far: attacks differ too much.
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, at most {remaining} left{postfix}"
    interval = 0.5 if sys.stderr.isatty() else 30
    return progress_bar(
        show, total=total, desc="evaluate", mininterval=interval, smoothing=0, bar_format=form, dynamic_ncols=True
    )
