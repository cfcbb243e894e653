"""Clean and robust accuracy of a network at nested ε, image by image, under attacks that no mask restricts."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_logits
from sip_plugin.evaluation import sanity
from sip_plugin.evaluation.attacks import AttackFactory, FactoryStage, factories
from sip_plugin.evaluation.autoattack import BLACK_BOX, AutoAttackStage, autoattack_stages
from sip_plugin.evaluation.data import Data, collect
from sip_plugin.evaluation.journal import Journal, fingerprint, model_fingerprint
from sip_plugin.evaluation.processes import Processes, bare_network
from sip_plugin.evaluation.progress import Progress
from sip_plugin.evaluation.report import RobustnessReport
from sip_plugin.evaluation.request import Request, attack_list, described, flag, radii, whole
from sip_plugin.evaluation.stages import Stage
from sip_plugin.evaluation.surroundings import device_of, frozen, left_as_found
from sip_plugin.evaluation.sweep import Sweep

_LOOKED_AT = 16  # images for the checks of the network itself


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
        return_adversarial: Also give the adversarial images: for each image the smallest one found.
        checkpoint: A folder that remembers finished batches. An evaluation that was stopped, however, goes on where it
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
    processes = Processes(together=distributed)

    def understood() -> Request:
        if checkpoint is not None and not os.fspath(checkpoint):
            raise ValueError('checkpoint must name a folder, got an empty string. For the current one: checkpoint=".".')
        attacks, stages = factories(attack), attack_list(version)
        settings = {
            "eps": list(radii(eps, norm)),
            "norm": norm,
            "attack": described(attacks, stages),
            "assume_survivors": flag(assume_survivors, "assume_survivors"),
            "seed": whole(seed, "seed", 0),
            "batch_size": whole(batch_size, "batch_size", 1),
            "sanity_checks": flag(sanity_checks, "sanity_checks"),
        }
        keep_examples = flag(return_adversarial, "return_adversarial")
        first = None if max_images is None else whole(max_images, "max_images", 1)
        return Request(bare_network(model, processes.count), attacks, stages, first, keep_examples, settings)

    model, attacks, version, first, keep_examples, settings = processes.each(understood)
    with torch.inference_mode(False), left_as_found(model):
        images, labels = processes.each(lambda: collect(data, first))
        settings |= {
            "images": len(images),
            "data": fingerprint(images, labels),
            "network": model_fingerprint(model),
        }
        identity = settings | {"return_adversarial": keep_examples}
        processes.agree(**identity)
        journal = Journal(checkpoint)
        some = images[: min(settings["batch_size"], _LOOKED_AT)]
        processes.first(lambda: _open(journal, identity, model, some))
        finished = processes.first(journal.load_report)
        if finished is not None:
            return _finished(finished, journal)
        sweep = Sweep(
            model=model,
            images=images,
            labels=labels,
            radii=tuple(settings["eps"]),
            norm=norm,
            device=device_of(model),
            batch_size=settings["batch_size"],
            seed=settings["seed"],
            assume_survivors=settings["assume_survivors"],
            keep_examples=keep_examples,
            journal=journal,
            processes=processes,
            progress=Progress(show=progress and processes.rank == 0),
        )
        with closing(sweep.progress):
            warnings = _run(sweep, attacks, version, sanity_checks=sanity_checks)
        report = sweep.report(settings, warnings, time.perf_counter() - began)
        processes.first(lambda: journal.finish({f.name: getattr(report, f.name) for f in dataclasses.fields(report)}))
    return report


def _open(journal: Journal, identity: Mapping[str, Any], model: nn.Module, some: Tensor) -> None:
    """Go on with a checkpoint, after making sure that it is of this evaluation."""
    journal.open(identity)
    if journal.folder is None:
        return
    with torch.no_grad(), _told_of_types(model, some):
        some = some.to(device_of(model))
        first, second = (check_logits(model(some), len(some)).double().cpu() for _ in range(2))
    if first.isnan().any():
        return  # an error in a moment; the folder must not remember it
    journal.check_logits(None if sanity.differ(first, second) else first)


@contextmanager
def _told_of_types(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Say it in words if a network cannot work on the images because of their type."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("dtype|scalar type|[Ii]nput type|same type", str(error)):
            raise
        types = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point() and p.dtype != images.dtype})
        if not types:
            raise
        raise TypeError(
            f"The network failed on images of {images.dtype} and has parameters of {', '.join(types)}. Evaluate "
            "model.float(), or a module whose forward converts the images and the logits."
        ) from error


def _finished(fields: dict[str, Any], journal: Journal) -> RobustnessReport:
    try:
        return RobustnessReport(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(journal.damaged_report()) from error


def _run(
    sweep: Sweep, attacks: Mapping[str, AttackFactory | str], version: str | Sequence[str], *, sanity_checks: bool
) -> list[str]:
    """Attack everything; give what a reader should be warned of."""
    model, some = sweep.model, sweep.images[: min(sweep.batch_size, _LOOKED_AT)].to(sweep.device)
    with _told_of_types(model, some):
        dynamic = sweep.processes.first(lambda: sanity.is_dynamic(model, some))
    with frozen(model, unless=dynamic):
        clean = sweep.look_at_clean()
        stages = sweep.processes.each(lambda: _stages(sweep, attacks, version))
        notes = sweep.processes.each(lambda: [note for stage in stages for note in stage.notes(sweep.radii[-1])])
        # What is random on purpose may withstand an attack at a larger ε by chance.
        sweep.run(stages, probes=sanity_checks and version != "rand")
        if not sanity_checks:
            return notes
        of_network = sweep.processes.first(
            lambda: sanity.network_warnings(model, some, dynamic=dynamic, randomness_expected=version == "rand")
        )
        return [*notes, *of_network, *sanity.clean_warnings(clean), *sweep.warnings()]


def _stages(sweep: Sweep, attacks: Mapping[str, AttackFactory | str], version: str | Sequence[str]) -> list[Stage]:
    stages: list[Stage] = []
    for name, factory in attacks.items():
        if isinstance(factory, str):
            classes = sweep.clean[0].classes
            stages += autoattack_stages(sweep.model, version, sweep.norm, classes, sweep.device)
        else:
            stages.append(FactoryStage(name, factory, sweep.model))
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError(f"Each attack must have a name of its own, got {', '.join(names)}.")
    if not sweep.clean[0].differentiable:
        _check_black_box(stages)
    return stages


def _check_black_box(stages: Sequence[Stage]) -> None:
    blind = [stage.name for stage in stages if isinstance(stage, AutoAttackStage) and stage.name not in BLACK_BOX]
    if blind:
        raise ValueError(
            f"The network's output has no gradient with respect to the image, which {', '.join(blind)} need. Is its forward "
            'under torch.no_grad(), or does it round? For black-box attacks alone: version=["square"].'
        )
