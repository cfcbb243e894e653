"""Clean and robust accuracy of a network at nested ε, image by image, under attacks that no mask restricts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_eps, check_images, check_int, check_labels
from sip_plugin.distributed import ProcessGroup
from sip_plugin.evaluation import diagnostics
from sip_plugin.evaluation.attacks import Attack, Attacks, derive_seed, run_batch, verified_norms
from sip_plugin.evaluation.autoattack import attack_settings, make_attacks
from sip_plugin.evaluation.checkpoint import Checkpoint, fingerprint
from sip_plugin.evaluation.comparison import RobustnessReport
from sip_plugin.evaluation.eps import distinct_eps
from sip_plugin.folding import FoldedModel
from sip_plugin.model_state import eval_mode, preserve_model_state
from sip_plugin.model_utils import model_device, model_hash, unwrap_ddp, unwrap_model
from sip_plugin.utils import isolated_rng, progress_bar

_SOME = 16  # images for the diagnostics of the network itself
_PROBED = 64  # images for each probe of reliability, together a percent or two of an evaluation


def evaluate_robustness(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[Sequence[Any]],
    *,
    eps: float | Iterable[float] = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    norm: Norm = "Linf",
    attack: Attacks = "autoattack",
    version: str | Sequence[str] = "standard",
    assume_survivors: bool = False,
    batch_size: int = 128,
    max_images: int | None = None,
    seed: int = 0,
    return_adversarial: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    fold_batchnorm: bool | Literal["auto"] = "auto",
    sanity_checks: bool = True,
    distributed: bool = True,
    progress: bool = True,
) -> RobustnessReport:
    """Attack every image at every ε, unrestricted, and report what is left: the paper's evaluation (section 4.4).

    An image counts as robust at an ε only if no attack broke it there. An adversarial example counts at every ε from its
    norm on, and the image is not attacked there again; the targeted FAB, whose work does not depend on ε, runs once for each
    image. Every example is clipped to ``[0, 1]``, mended where rounding put it outside a ball, and verified in eval mode.

    The result does not depend on batch size, order of the images or number of processes, but for rounding. Exceptions:
    FAB's random restarts (version ``"plus"``), random networks, and attacks of one's own; their random numbers follow from
    the seed and the batch. In several processes (``torchrun``) each makes the same call with the whole data and gets the
    whole report. The caller's random generators and all of the network's state are left as they were.

    Args:
        model: Maps images ``(N, C, H, W)`` in ``[0, 1]`` to logits ``(N, classes)``; evaluated in eval mode on its device.
        data: ``(images, labels)``, or an iterable of such batches (further parts, such as salience maps, are left out);
            all of it is held in memory.
        eps: Radii, in any order.
        norm: ``"Linf"`` or ``"L2"``.
        attack: ``"autoattack"`` (from ``pyautoattack``, or the original ``autoattack``); a factory
            ``(model, eps) -> attack``, for instance ``lambda model, eps: torchattacks.PGD(model, eps=eps)``; or a mapping
            of names to these. An attack is called as ``attack(images, labels)``, ``.generate(x=, y=)`` (ART) or
            ``.run_standard_evaluation(images, labels)``.
        version: AutoAttack's ``"standard"``, ``"plus"`` or ``"rand"``, or a list of its attacks (set as in "custom").
        assume_survivors: Begin with the largest ε, and assume that an image that survives it also survives the smaller
            ones. Skips the most expensive part of the work; the report marks what was assumed.
        batch_size: Images in a batch at most.
        max_images: Evaluate the first so many only.
        seed: What all randomness follows from.
        return_adversarial: Also return the adversarial images: for each image the smallest one found.
        checkpoint: A folder that remembers finished batches: the same call resumes an evaluation that was stopped, also in
            another number of processes (which must all see the folder), and gives the report of a finished one at once. Of
            attacks of one's own only the names are compared.
        fold_batchnorm: Attack the network with BatchNorm folded into the convolutions before it (faster; see
            :class:`~sip_plugin.folding.FoldedModel`). Every example is verified on the network itself. ``"auto"`` does so
            where it is possible and the network is not a compiled one. ``report.settings["fold_batchnorm"]`` says whether it
            was done.
        sanity_checks: Look for signs that the figures overestimate robustness; they end up in ``report.warnings``.
        distributed: Divide the work if ``torch.distributed`` is initialised. False evaluates in this process alone.
        progress: Show progress bars, if tqdm is installed.

    Raises:
        TypeError: If an argument is of the wrong type, for instance an attack that was made already.
        ValueError: If images, labels or a setting are not legal, or ``checkpoint`` belongs to another evaluation.
        ImportError: If AutoAttack is not installed.
        RuntimeError: If another process failed.
    """
    began = time.perf_counter()
    group = ProcessGroup(distributed=distributed)

    def prepare() -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
        network = unwrap_ddp(model)
        kinds = {kind.__name__ for module in network.modules() for kind in type(module).__mro__}
        if group.size > 1 and kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}:
            raise ValueError("A network that synchronises processes at each pass needs distributed=False in all.")
        settings: dict[str, Any] = {
            "eps": list(parse_eps(eps, norm)),
            "norm": norm,
            "attack": attack_settings(attack, version),
            "assume_survivors": bool(assume_survivors),
            "seed": check_int(seed, "seed", 0),
            "batch_size": check_int(batch_size, "batch_size", 1),
            "sanity_checks": bool(sanity_checks),
            "fold_batchnorm": fold_batchnorm,
        }
        images, labels = collect(data, None if max_images is None else check_int(max_images, "max_images", 1))
        settings |= {"images": len(images), "data": fingerprint(images, labels)}
        return network, images, labels, settings | {"network": model_hash(unwrap_model(network))}

    with torch.inference_mode(False), isolated_rng():
        network, images, labels, settings = group.call(prepare)
        identity = settings | {"return_adversarial": bool(return_adversarial)}
        group.require_equal("Give all of them the whole data in the same order, or pass distributed=False.", **identity)
        show = progress and group.rank == 0
        store = None if checkpoint is None else Checkpoint(checkpoint)
        device = model_device(network)
        # Attacks may take the current CUDA device for the network's.
        on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with preserve_model_state(network), eval_mode(network), on_device:
            some = images[: min(settings["batch_size"], _SOME)].to(device)
            if store is not None:
                known = group.on_rank_zero(lambda: store.open(identity, diagnostics.stable_logits(network, some)))
                if known is not None:
                    return RobustnessReport(**known)
            given = some.clone()
            dynamic, written = group.on_rank_zero(lambda: (diagnostics.is_dynamic(network, given), given._version > 0))
            if not dynamic:  # attacks need the image's gradient alone, but some compute the others', too
                network.requires_grad_(False)
            if written:  # and attacks need it again
                network.register_forward_pre_hook(lambda _, inputs: inputs[0].clone())
            state = _Evaluation(network, images, labels, settings, store, group, device, show, return_adversarial)
            clean = state.classify()
            attacked, notes = network, []
            compiled = any(hasattr(module, "_orig_mod") for module in network.modules())
            if fold_batchnorm is True or (fold_batchnorm and not compiled):
                try:
                    attacked = FoldedModel(network, some).network
                except ValueError as reason:
                    notes = [f"BatchNorm was not folded: {reason}."] * (fold_batchnorm is True)
            settings["fold_batchnorm"] = attacked is not network
            make = partial(make_attacks, attack, version, attacked, norm, clean, images[0], state.radii[-1])
            attacks = group.call(make)
            state.run(attacks, clean["correct"])
            warnings = notes + [note for each in attacks for note in each.notes]
            if sanity_checks:
                expected = version == "rand"
                # What is random on purpose may withstand an attack at a larger ε by chance.
                probed = state.probe() if not expected and len(state.radii) > 1 else []
                look = partial(diagnostics.network_warnings, network, some, dynamic, expected)
                warnings += [*group.on_rank_zero(look), *diagnostics.clean_warnings(clean), *state.warnings(), *probed]
        report = RobustnessReport(
            eps=state.radii,
            norm=norm,
            attacks=tuple(each.name for each in attacks),
            labels=labels,
            norms=state.norms,
            assumed=state.assumed & (state.norms.amin(0) > state.radii[0]),
            settings=settings,
            warnings=tuple(warnings),
            seconds=time.perf_counter() - began + (store.seconds if store else 0.0),
            adversarial=state.adversarial() if return_adversarial else None,
        )
        if store is not None:
            group.on_rank_zero(lambda: store.finish(vars(report)))
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
    store: Checkpoint | None
    group: ProcessGroup
    device: torch.device
    show: bool
    keep: bool

    def __post_init__(self) -> None:
        self.radii: tuple[float, ...] = tuple(self.settings["eps"])
        self.assumed, self.nan = (torch.zeros(len(self.images), dtype=torch.bool) for _ in range(2))
        self.outside: dict[str, int] = {}

    def classify(self) -> dict[str, Tensor]:
        """Classify all clean images; return what :func:`diagnostics.clean_statistics` says of each."""
        look = partial(diagnostics.clean_statistics, self.model)
        everything = torch.arange(len(self.images))
        parts = self._map("clean", "clean images", everything, lambda rows: look(*self._batch(rows)))
        return {name: torch.cat([part[name] for _, part in parts]) for name in parts[0][1]}

    def run(self, attacks: Sequence[Attack], correct: Tensor) -> None:
        """Run all attacks at all ε; ``norms`` are complete afterwards."""
        self.attacks, self.examples = attacks, self.images.clone()
        self.norms = torch.where(correct, torch.inf, 0.0).double().repeat(len(attacks), 1)
        self.done = torch.zeros_like(self.norms, dtype=torch.int64)  # runs of minimum-norm attacks
        assume = self.settings["assume_survivors"]
        for k in sorted(range(len(self.radii)), reverse=assume):
            for a, attack in enumerate(attacks):
                todo = (self.norms.amin(0) > self.radii[k]) & ~self.assumed & (self.done[a] < attack.runs)
                self._attack(f"{k}-{a}", k, a, todo.nonzero().flatten())
            if assume and k:
                self.assumed |= self.norms.amin(0) > self.radii[k]

    def probe(self) -> list[str]:
        """Cheap tests: do assumed survivors survive the first attack, does each attack also succeed at a larger ε."""
        found, first, last = [], self.radii[0], self.radii[-1]
        if self.settings["assume_survivors"]:
            attack, rows = self.attacks[0], self.assumed.nonzero().flatten()[:_PROBED]
            if not attack.minimum_norm:  # otherwise its findings do not depend on ε
                self._attack("probe", 0, 0, rows)
            if broken := int((self.norms.amin(0)[rows] <= first).sum()):
                found.append(
                    f"Of {len(rows)} images that were assumed to survive eps = {first:g}, {attack.name} broke {broken}: "
                    "assume_survivors does not hold for this network."
                )
            return found
        for a, attack in enumerate(self.attacks):
            broken_first = (self.norms[a] > 0) & (self.norms[a] <= first) & (not attack.minimum_norm)
            rows = broken_first.nonzero().flatten()[:_PROBED]
            results = self._map(f"probe-{a}", "probe", rows, partial(self._attack_batch, len(self.radii) - 1, a))
            if withstood := sum(int((result["norms"] > last).sum()) for _, result in results):
                found.append(
                    f"Of {len(rows)} images that {attack.name} broke at eps = {first:g}, {withstood} withstood the same "
                    f"attack at eps = {last:g}: the attack is unreliable on this network."
                )
        return found

    def warnings(self) -> list[str]:
        """What became suspicious in the course of the attacks."""
        square = self.norms[[a > 0 and attack.name == "square" for a, attack in enumerate(self.attacks)]]
        count, nan, alone = len(self.images), int(self.nan.sum()), ((square > 0) & (square <= self.radii[-1])).sum()
        found = [
            f"{number} adversarial example(s) of {name} lay outside the ball they were asked for; they count only in larger "
            "balls that hold them."
            for name, number in self.outside.items()
        ]
        if nan:
            found.append(
                f"The network gave NaN for adversarial examples of {nan} of {count} images, which count as broken: attacks "
                "that follow its gradients may be blind."
            )
        if alone > 0.002 * count:  # as in AutoAttack
            found.append(
                f"Square, a black-box attack, broke {alone} of {count} images that had withstood the white-box attacks: the "
                "network may mask its gradients, and stronger or adaptive attacks may break more."
            )
        return found

    def adversarial(self) -> dict[float, Tensor]:
        """For each ε the smallest example found of each image if it lies in the ball, the clean image otherwise."""
        smallest = self.norms.amin(0).view(-1, 1, 1, 1)
        return {eps: torch.where(smallest <= eps, self.examples, self.images) for eps in self.radii}

    def _attack(self, name: str, k: int, a: int, rows: Tensor) -> None:
        """Attack some images, and keep what is found."""
        attack, eps = self.attacks[a], self.radii[k]
        shown = f"{attack.name}, eps {eps:.4g}"
        for part, result in self._map(name, shown, rows, partial(self._attack_batch, k, a)):
            found = result["norms"]
            if self.keep:
                better = found < self.norms[:, part].amin(0)
                self.examples[part[better]] = result["examples"][better]
            self.norms[a, part] = torch.minimum(self.norms[a, part], found)
            self.nan[part[result["nan"] & (found <= self.radii[-1])]] = True
            if attack.minimum_norm:
                self.done[a, part] = result["done"]
            elif outside := int((found.isfinite() & (found > eps)).sum()):
                self.outside[attack.name] = self.outside.get(attack.name, 0) + outside

    def _attack_batch(self, k: int, a: int, rows: Tensor) -> dict[str, Tensor]:
        attack, eps = self.attacks[a], self.radii[k]
        seed = derive_seed(self.settings["seed"], eps, attack.name)
        verify = partial(verified_norms, self.model, self.radii, self.settings["norm"])
        result = run_batch(attack, *self._batch(rows), eps, seed, rows, self.done[a, rows], verify)
        return result if self.keep else result | {"examples": torch.empty(0)}

    def _map(
        self, name: str, shown: str, rows: Tensor, run: Callable[[Tensor], dict[str, Tensor]]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """The results for some images, in as few batches as the batch size allows, of equal size but for one image."""
        count = -(-len(rows) // self.settings["batch_size"])
        batches = rows.tensor_split(count) if count else ()
        mine = len(batches[self.group.rank :: self.group.size])
        with progress_bar(self.show and mine > 0, total=mine, desc=shown) as bar:

            def task(number: int) -> dict[str, Tensor]:
                work = partial(run, batches[number])
                with isolated_rng(derive_seed(self.settings["seed"], name, number)):  # for random networks
                    result = self.store.batch(f"{name}-{number}", batches[number], work) if self.store else work()
                bar.update()
                return result

            return list(zip(batches, self.group.map_sharded(range(count), task), strict=True))

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[rows].to(self.device), self.labels[rows].to(self.device)


def parse_eps(eps: float | Iterable[float], norm: Norm) -> tuple[float, ...]:
    """The radii, ascending, each once.

    Raises:
        ValueError: If there is none, one is not above 0, or the norm is unknown.
    """
    radii = distinct_eps(check_eps(each, norm) for each in (eps if isinstance(eps, Iterable) else [eps]))
    if norm not in get_args(Norm) or not radii or radii[0] == 0:
        raise ValueError(f"norm must be Linf or L2, eps one radius or more, all above 0; got {norm!r} and {radii}.")
    return radii


def collect(data: tuple[Tensor, Tensor] | Iterable[Sequence[Any]], max_images: int | None) -> tuple[Tensor, Tensor]:
    """Images ``(N, C, H, W)`` as float32 and labels ``(N,)``, both on the CPU, without further parts (salience maps)."""
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    batches: Iterable[Any] = [data] if pair else data
    parts: list[tuple[Tensor, Tensor]] = []
    for number, (images, labels, *_) in enumerate(batches):
        of_batch = "" if pair else f" of batch {number}"
        check_images(images, name=f"images{of_batch}")
        labels = check_labels(labels, images, name=f"labels{of_batch}")
        # Copies: what the caller made in inference mode cannot take part in a gradient. Attacks need contiguous ones.
        images = images.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        parts.append((images, labels.to("cpu", copy=True)))
        if max_images is not None and sum(len(labels) for _, labels in parts) >= max_images:
            break
    images, labels = (torch.cat(part)[:max_images] for part in zip(*parts, strict=True))
    return images, labels
