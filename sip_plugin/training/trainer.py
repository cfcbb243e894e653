"""``AdversarialTrainer``: the object that a training loop swaps in for its criterion."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_eps, check_images, check_int, check_labels
from sip_plugin.constraint import SalienceMap, elementwise_budget, feasible_set, prepare_mask
from sip_plugin.distributed import ProcessGroup
from sip_plugin.folding import FoldedModel
from sip_plugin.mask_source import MaskSource, check_mask_source, compute_mask
from sip_plugin.model_state import eval_mode, preserve_model_state
from sip_plugin.model_utils import FabricForward, unwrap_ddp, unwrap_model
from sip_plugin.training.external_attack import ExternalAttack
from sip_plugin.training.method import Method, TrainingProgress
from sip_plugin.training.methods import as_method
from sip_plugin.training.metrics import ForwardRecorder
from sip_plugin.training.search import EarlyStop, Step, compiled_step, projected_ascent
from sip_plugin.utils import isolated_rng, short_repr

_SEARCH = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10, "norm": "Linf", "random_start": True}
_SEARCH |= {"compile": False, "fold_batchnorm": False}


class AdversarialTrainer:
    """An adversarial training method as a criterion: takes images and labels, gives the loss to minimise.

    The caller keeps the loop, the optimiser, the precision and the devices. The search for adversarial images runs with
    the network in eval mode and leaves no trace in it (modes, BatchNorm statistics, parameter gradients); the loss's own
    forward passes run in the mode that the loop set.

    Args:
        model: The network in training, images to logits ``(N, classes)``.
        method: ``"standard"``, ``"madry"``, ``"trades"``, ``"fat"``, ``"part"``, ``"mart"`` or ``"sip-at"``, or a
            :class:`~sip_plugin.training.Method` object with parameters of its own.
        salience: A callable ``(images, labels) -> map`` or ``(images) -> map``, or a map itself, for every method; a call
            may bring its own (``mask=``). Values between 0 and 1 are legal here: the budget is ``ε·(1 − M)``.
        eps: Radius of the ball, in units of images in ``[0, 1]``.
        alpha: Step size.
        steps: Steps of the search (K).
        norm: ``"Linf"`` or ``"L2"``; the defaults of ``eps`` and ``alpha`` are L∞'s.
        random_start: Start the search where the method says, not at the image.
        attack: An attack in the place of the search, with settings of its own: called as ``attack(images, labels)`` or by
            ART's ``generate``, bare or wrapped in ``SIPWrapper``. Without ``salience`` a wrapped one uses its own maps. Give
            it the network itself, not DistributedDataParallel.
        compile: Compile the search's step (forward, backward to the images, projection) as one graph, on CUDA with CUDA
            graphs; takes some seconds for each shape of a batch. The network must be one that
            ``torch.compile(..., fullgraph=True)`` takes; not for FAT, whose batches shrink. Results differ by rounding.
        fold_batchnorm: Search on the network with BatchNorm folded into the convolutions before it, and compute TRADES' f(x)
            there: faster, and less memory in the search; see :class:`~sip_plugin.folding.FoldedModel`. The loss's own passes
            stay as they are. Results differ by rounding.

    ``eps``, ``alpha`` and ``steps`` may also be callables of the epoch that :meth:`set_epoch` was told.

    Attributes:
        metrics: Of the last call, scalar tensors, not synchronised with the device: ``loss``; ``clean_loss``,
            ``clean_accuracy``, ``adversarial_loss`` and ``adversarial_accuracy`` (cross-entropy and share of right answers)
            where the loss has a pass with those images; ``steps`` (mean number of search steps, each with one forward pass,
            that an image used) if there was a built-in search; ``salient`` (share of salient elements) if there was a map.

    Raises:
        ValueError: If a method is unknown, a number is out of range, or two settings exclude each other.

    Example:
        >>> criterion = AdversarialTrainer(model, "sip-at", salience=mask_fn)  # was nn.CrossEntropyLoss()
        >>> loss = criterion(images, labels)  # was criterion(model(images), labels)
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Method = "sip-at",
        *,
        salience: MaskSource = None,
        eps: float | Callable[[int], float] = 8 / 255,
        alpha: float | Callable[[int], float] = 2 / 255,
        steps: int | Callable[[int], int] = 10,
        norm: Norm = "Linf",
        random_start: bool = True,
        attack: Any = None,
        compile: bool = False,
        fold_batchnorm: bool = False,
    ) -> None:
        if norm not in get_args(Norm):
            raise ValueError(f'norm must be "Linf" or "L2", got {norm!r}.')
        self.model = model
        self.method = as_method(method)
        self.salience = check_mask_source(salience, "salience")
        self.eps = eps if callable(eps) else check_eps(eps, norm)
        self.alpha = alpha if callable(alpha) else check_eps(alpha, norm, name="alpha")
        self.steps = steps if callable(steps) else check_int(steps, "steps", 0)
        self.norm: Norm = norm
        self.random_start = random_start
        self.attack = None if attack is None else ExternalAttack(attack, self.method)
        self.compile = bool(compile)
        self.fold_batchnorm = bool(fold_batchnorm)
        self.metrics: dict[str, Tensor] = {}
        self.epoch = 0
        self.epochs: int | None = None
        self._step: Step | None = None
        self._folded: tuple[nn.Module, FoldedModel | None] | None = None  # of which network
        if self.attack is not None:
            if salience is not None or self.method.needs_salience:
                self.attack.check_keeps_salience()
            changed = [name for name, default in _SEARCH.items() if getattr(self, name) != default]
            if changed:
                raise ValueError(f"{', '.join(changed)}: a setting of the built-in search; set it on the attack=.")
        elif self.compile and not self.method.fixed_length:
            raise ValueError(f"compile=True does not go with {self.method.name!r}, whose batches change their length.")
        elif self.method.needs_random_start and not random_start:
            raise ValueError(f"{self.method.name!r} needs random_start=True: at the image itself it has no gradient.")

    def __call__(self, images: Tensor, labels: Tensor, mask: SalienceMap | None = None) -> Tensor:
        """The loss of a batch, a scalar with its graph.

        Args:
            images: ``(N, C, H, W)`` in ``[0, 1]``.
            labels: Class indices ``(N,)``.
            mask: The batch's salience map, in place of ``salience``.

        Raises:
            TypeError: If ``images``, ``labels`` or the map are of the wrong type.
            ValueError: If their shapes or values do not fit, a map is missing, or a schedule's number of epochs.
        """
        check_images(images)
        labels = check_labels(labels, images)
        adversarial, found = self._search(images, labels, mask)
        network = ForwardRecorder(self.model, images, adversarial, labels)
        loss = self.method.loss(network, images, adversarial, labels)
        self.metrics = {"loss": loss.detach(), **network.metrics(), **found}
        return loss

    def perturb(self, images: Tensor, labels: Tensor, mask: SalienceMap | None = None) -> Tensor:
        """The adversarial images that the loss would use, ``(N, C, H, W)``, without a graph.

        Arguments and errors are those of a call. Works inside ``torch.no_grad()`` and ``torch.inference_mode()``.
        """
        check_images(images)
        adversarial, _ = self._search(images, check_labels(labels, images), mask)
        # Without a search they are the caller's images, which must not be written to through the result.
        return adversarial.clone() if adversarial.data_ptr() == images.data_ptr() else adversarial

    def set_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Say which epoch begins (from 0), and of how many: drives the schedules of method and settings.

        Raises:
            ValueError: If ``epoch`` is no integer from 0 below the number of epochs, this or an earlier call's.
        """
        epoch = check_int(epoch, "epoch", 0)
        total = self.epochs if epochs is None else check_int(epochs, "epochs", 1)
        if total is not None and epoch >= total:
            raise ValueError(f"epoch counts from 0 to epochs - 1, got epoch={epoch}, epochs={total}.")
        self.epoch, self.epochs = epoch, total

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside network and optimiser: epochs, the method's state and torch's random state.

        The state of the CPU's generator and of those of the network's CUDA devices; NumPy's and Python's are not in it.
        ``torch.load`` takes it with ``weights_only=True``.
        """
        return {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "method": {"name": self.method.name, "settings": repr(self.method), "state": self.method.state_dict()},
            "rng": {
                "process": ProcessGroup().rank,
                "cpu": torch.get_rng_state(),
                "cuda": [torch.cuda.get_rng_state(device) for device in self._cuda_devices()],
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that :meth:`state_dict` gave, torch's global random state included.

        Load it last, right before the loop goes on: what is drawn in between an uninterrupted run would not have drawn. Of
        several processes only the one that saved it takes up the random state; the others keep their own.

        Raises:
            ValueError: If it is the state of another method.

        Warns:
            RuntimeWarning: If the method had other settings (functions by their names): the run goes on with this trainer's.
        """
        saved = state["method"]
        if saved["name"] != self.method.name:
            raise ValueError(f"The state is of the method {saved['name']!r}, this trainer has {self.method.name!r}.")
        if not saved["state"] and saved["settings"] != repr(self.method):
            warnings.warn(
                f"The state is of {saved['settings']}, this trainer has {self.method!r}: the run will not equal an "
                "uninterrupted one.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.method.load_state_dict(saved["state"])
        self.epoch, self.epochs = state["epoch"], state["epochs"]
        group = ProcessGroup()
        if group.size > 1 and state["rng"].get("process", group.rank) != group.rank:
            return  # or all would draw the same
        torch.set_rng_state(state["rng"]["cpu"].cpu())  # a checkpoint may have been loaded onto another device
        for device, rng_state in zip(self._cuda_devices(), state["rng"]["cuda"], strict=False):
            torch.cuda.set_rng_state(rng_state.cpu(), device)

    def _cuda_devices(self) -> list[torch.device]:
        devices = {parameter.device for parameter in self.model.parameters() if parameter.is_cuda}
        return sorted(devices, key=lambda device: device.index)

    def __repr__(self) -> str:
        settings = [f"attack={self.attack!r}"]
        if self.attack is None:
            sizes = {"eps": self.eps, "alpha": self.alpha, "steps": self.steps}
            settings = [f"{name}={size!r}" if callable(size) else f"{name}={size:.4g}" for name, size in sizes.items()]
            settings += [f"norm={self.norm!r}", f"random_start={self.random_start}"]
            settings += ["compile=True"] * self.compile + ["fold_batchnorm=True"] * self.fold_batchnorm
        settings.insert(0, f"salience={short_repr(self.salience)}")
        return f"AdversarialTrainer({type(self.model).__name__}, {self.method!r}, {', '.join(settings)})"

    def _search(self, images: Tensor, labels: Tensor, mask: SalienceMap | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The images to train on, and what there is to tell about how they were found."""
        if not self.method.adversarial:
            return images.detach(), {}
        # A caller may be inside inference_mode, whose tensors cannot take part in a gradient; copies of them can.
        with torch.inference_mode(False), torch.no_grad():
            images, labels = (t.clone() if t.is_inference() else t.detach() for t in (images, labels))
            salience = self._map(images, labels, mask)
            search_metrics = {} if salience is None else {"salient": salience.to(images.dtype).mean()}
            network = unwrap_ddp(self.model)
            if self.attack is not None:
                with preserve_model_state(network), eval_mode(network):
                    adversarial = self.attack(images, labels, salience)
            else:
                with eval_mode(network):
                    adversarial, passes = self._ascend(network, images, labels, salience)
                search_metrics["steps"] = images.new_full((), passes / len(images))
        if torch.is_autocast_cache_enabled():
            # Weights that were cast where no graph is recorded (f(x) of TRADES, somebody's attack) would stay without one
            # in a torch that does not have the fix of pytorch/pytorch#158232.
            torch.clear_autocast_cache()
        return adversarial, search_metrics

    def _map(self, images: Tensor, labels: Tensor, mask: SalienceMap | None) -> Tensor | None:
        source = self.salience if mask is None else mask
        if source is not None:
            # A function may use the very network in training: its modes, statistics and gradients are put back.
            with preserve_model_state(unwrap_model(self.model) if callable(source) else None):
                return prepare_mask(compute_mask(source, images, labels), images, soft=True)
        if self.method.needs_salience and self.attack is None:
            raise ValueError(
                f"{self.method.name!r} needs a salience map: AdversarialTrainer(..., salience=mask_fn), or mask=... with "
                "the call. Without one it would be plain Madry training."
            )
        return None  # an attack that a map is needed of is a wrapped one, which has its own

    def _ascend(
        self, network: nn.Module, images: Tensor, labels: Tensor, salience: Tensor | None
    ) -> tuple[Tensor, int]:
        method, progress = self.method, TrainingProgress(self.epoch, self.epochs)
        settings = self.eps, self.alpha, self.steps
        eps, alpha, steps = (setting(self.epoch) if callable(setting) else setting for setting in settings)
        eps = check_eps(eps, self.norm)
        budget = elementwise_budget(images, eps, salience)
        own = method.budget(network, images, eps, progress)
        feasible = feasible_set(images, budget if own is None else torch.minimum(budget, own), self.norm)
        patience = method.patience(progress)
        if self.compile and not isinstance(network, FabricForward):
            network = unwrap_model(network)
        if self.fold_batchnorm:
            network = self._fold(network, images)
        target = method.target(network, images.clone(), labels)  # the network may write into its input
        start = method.start(feasible) if self.random_start else images
        search = partial(projected_ascent, network, method.objective, target, start, feasible, noise=method.step_noise)
        if self.compile and self._step is None:  # the step, with the network in it, once
            with isolated_rng():
                search(alpha=0.0, steps=1)  # has the errors; compiled, a gradient that is cut off is 0
            self._step = compiled_step(images.device)
        return search(
            alpha=check_eps(alpha, self.norm, name="alpha"),
            steps=check_int(steps, "steps", 0),
            stop=None if patience is None else EarlyStop(labels, patience),
            step=self._step if self.compile else None,
        )

    def _fold(self, network: nn.Module, images: Tensor) -> nn.Module:
        """The network folded, as it is now; itself if that is not possible."""
        of, folded = self._folded or (None, None)
        try:
            if of is not self.model:
                folded = FoldedModel(network, images[:16])
            elif folded is not None:
                folded.refresh()
        except ValueError as reason:
            folded = None
            warnings.warn(f"fold_batchnorm: the network is searched as it is: {reason}.", RuntimeWarning, stacklevel=5)
        self._folded = (self.model, folded)
        return network if folded is None else folded.network

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_step": None, "_folded": None}  # compiled code is of this process
