"""Attacks of any other library: objects called as ``attack(images, labels)`` with a ``.model``, and functions."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sip_plugin.adapters.base import Batch, SalienceAttack, map_tensors, project_result
from sip_plugin.adapters.projection import (
    BatchProjection,
    ProjectedModel,
    counted_calls,
    model_replaced,
    warn_if_not_queried,
)
from sip_plugin.checks import check_images, check_labels
from sip_plugin.constraint import SalienceMap
from sip_plugin.mask_source import MaskSource
from sip_plugin.model_state import preserve_model_state
from sip_plugin.utils import attack_name, takes_targets

_LABELS = ("labels", "label", "y", "y_true")  # what attack functions call them
# Modules of attacks that ask about copies of one image, also in pieces of as many rows as the batch has.
_COPIES = ("attacks.stochastic_sparse_attacks", "torchattack.geoda", "attacks.spsa", "attacks.hop_skip_jump_attack")
_BY_POSITION, _BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


class SalienceCallable(SalienceAttack):
    """An ``attack(images, labels)`` with a ``.model``, every query of which is projected."""

    def __init__(self, attack: Any, mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        super().__init__(attack, mask_fn, one_by_one=one_by_one)
        copies = str(getattr(attack, "func", type(attack)).__module__).endswith(_COPIES)
        self.__dict__.update(_copies=copies, _queries_unknown_rows=copies)
        with model_replaced(self._holder, ProjectedModel(self._holder.model)):
            pass  # an attack whose model cannot be replaced is refused now and not at its first call

    @property
    def _holder(self) -> Any:
        """What holds the network as its ``model``."""
        return self.wrapped

    def __call__(
        self, images: Tensor, labels: Tensor | None = None, *args: Any, mask: SalienceMap | None = None, **kwargs: Any
    ) -> Any:
        """Adversarial images ``(N, C, H, W)`` that equal the clean ones on salient elements.

        ``images`` are in ``[0, 1]``, ``labels`` class indices ``(N,)``, or None where the attack needs none. ``mask`` is the
        map for this call, in place of ``mask_fn``; further arguments are the attack's own. What it returns besides images
        (in a tuple, list or dict) is returned, too. Raises a ``TypeError`` or ``ValueError`` if images, labels or map do
        not fit.
        """
        with self._lock, preserve_model_state(self._holder.model):
            check_images(images)
            images = images.detach()
            labels = None if labels is None else check_labels(labels, images)
            given = (self.wrapped.keywords if isinstance(self.wrapped, functools.partial) else {}) | kwargs
            named = (
                v for v in map(given.get, _LABELS) if isinstance(v, Tensor) and v.dtype == torch.int64 and v.dim() == 1
            )
            targeted = given.get("targeted", takes_targets(self.wrapped))
            of_map = None if targeted else next(named, None) if labels is None else labels
            batch = Batch(images, labels, self.salience(images, of_map, mask), args, given)

            def run(alone: bool) -> Any:
                return map_tensors(_joined, *map(self._attack, batch.split(1 if alone else len(images))))

            return self._alone_if_need_be(run, batch.salience)

    def _attack(self, batch: Batch) -> Any:
        holder, images = self._holder, batch.images
        if self._copies and bool(batch.salience.all()):
            return images.clone()  # nothing would fool the network, and some search until something does
        is_torchattack = any(kind.__module__.startswith("torchattack.") for kind in type(self.wrapped).__mro__)
        # Mean and standard deviation between the images and the network; SecML-Torch's classifier has a _preprocessing.
        prepare = self.wrapped.normalize if is_torchattack else getattr(holder, "_preprocessing", None)
        if "foolbox_attacks" in type(getattr(self.wrapped, "func", None)).__module__:
            prepare = None  # SecML-Torch's Foolbox backend goes past the preprocessing
        projection = BatchProjection(prepare(images) if prepare else images, batch.salience)
        training = getattr(holder.model, "training", False)
        stand_in = ProjectedModel(holder.model, projection, training=training, labels=batch.labels)
        with counted_calls(holder.model) as calls, model_replaced(holder, stand_in):
            result = self._run(holder, batch)
        found: list[Tensor] = []

        def projected(part: Any) -> Any:
            if not isinstance(part, Tensor) or part.shape != images.shape or not part.is_floating_point():
                return part
            found.append(project_result(self.wrapped, part, images, batch.salience))
            return found[-1]

        result = map_tensors(projected, result)
        if not found:
            project_result(self.wrapped, result, images, batch.salience)  # says what is wrong
        if len(found) > 1:
            raise RuntimeError(
                f"{attack_name(self.wrapped)} returned {len(found)} tensors of the images' shape. Expected one, the "
                "adversarial images: of several it cannot be known which hold perturbations."
            )
        mine = calls.count(threading.get_ident())  # others may use the network, too
        warn_if_not_queried(self.wrapped, stand_in.queried, torch.equal(found[0], images), mine)
        return result

    def _run(self, holder: Any, batch: Batch) -> Any:
        labels = () if batch.labels is None else (batch.labels,)
        return self.wrapped(batch.images.clone(), *labels, *batch.args, **batch.kwargs)


class SalienceFunction(SalienceCallable):
    """``functools.partial(function, model, ...)``: an attack function with its network among the arguments.

    Images go to its first free argument, labels to the one named ``labels``, ``label``, ``y`` or ``y_true``, or after the
    images. SecML-Torch's attacks take images and labels, or a loader of them, for which they give a loader.
    """

    def __init__(self, attack: functools.partial[Any], mask_fn: MaskSource = None, *, one_by_one: bool = False) -> None:
        given = {id(value): value for value in (*attack.args, *attack.keywords.values()) if _module(value) is not None}
        networks = [value for value in given.values() if any(True for _ in _module(value).parameters())]  # type: ignore[union-attr]
        networks = networks or list(given.values())  # a loss may be a module, too
        if len(networks) != 1:
            raise TypeError(
                f"The arguments of {attack_name(attack)} must hold one network (torch.nn.Module), got "
                f"{len(networks) or 'none'}. Expected functools.partial(function, model, ...); for a function of several "
                "networks write a class with the one to be projected in .model."
            )
        parameters = inspect.signature(attack).parameters.values()
        free = [p for p in parameters if p.kind in (_BY_POSITION, _BY_NAME) and p.name not in attack.keywords]
        if any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters):
            free = []  # both by position
        after = [p.name for p in free[1:2] if p.kind is _BY_POSITION and (p.default is None or p.default is p.empty)]
        named = [p.name for p in free[1:] if p.name in _LABELS] or after
        self.__dict__.update(_network=networks[0], _names=(free[0].name if free else "", named[0] if named else ""))
        super().__init__(attack, mask_fn, one_by_one=one_by_one)

    @property
    def _holder(self) -> Any:
        network = self._network
        return SimpleNamespace(model=network) if isinstance(network, nn.Module) else copy.copy(network)

    def __call__(
        self, images: Any, labels: Tensor | None = None, *args: Any, mask: SalienceMap | None = None, **kwargs: Any
    ) -> Any:
        """As :meth:`SalienceCallable.__call__`; for a ``DataLoader`` of images and labels, one of adversarial images."""
        if isinstance(images, DataLoader):
            stream = kwargs.pop("stream", False)
            found = ((self(x, y, *args, mask=mask, **kwargs), y) for x, y in images)
            if stream:
                return found
            made = (torch.cat(parts) for parts in zip(*found, strict=True))
            return DataLoader(TensorDataset(*made), batch_size=images.batch_size)
        labels = kwargs.pop(self._names[1], None) if labels is None else labels
        return super().__call__(images, labels, *args, mask=mask, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("mask_fn", "one_by_one") and "wrapped" in self.__dict__:
            raise AttributeError(f"{name!r} of a functools.partial cannot be set: wrap one with other arguments.")
        super().__setattr__(name, value)

    def _run(self, holder: Any, batch: Batch) -> Any:
        function = self.wrapped.func
        put = holder.model if isinstance(holder, SimpleNamespace) else holder
        args = [put if value is self._network else value for value in self.wrapped.args]
        kwargs = {name: put if value is self._network else value for name, value in batch.kwargs.items()}
        images, labels = batch.images.clone(), batch.labels
        name, labels_name = self._names
        if name == "data_loader":  # a loader would draw a random number, a list draws none
            ((adversarial, _),) = function(*args, *batch.args, data_loader=[(images, labels)], **kwargs, stream=True)
            return adversarial
        if batch.args or not name:
            given = (images,) if labels is None and not labels_name else (images, labels)
            return function(*args, *given, *batch.args, **kwargs)
        if labels is not None and not labels_name:
            raise TypeError(
                f"{attack_name(self.wrapped)} has no argument for labels (one of {', '.join(_LABELS)}, or the one after the "
                "images). Call it without labels, or wrap a function of (model, images, labels)."
            )
        return function(*args, **{name: images}, **({} if labels is None else {labels_name: labels}), **kwargs)


def _module(value: Any) -> nn.Module | None:
    """The network that an argument is or, as SecML-Torch's classifier, holds."""
    value = value if isinstance(value, nn.Module) else getattr(value, "model", None)
    return value if isinstance(value, nn.Module) else None


def _joined(*parts: Any) -> Any:
    """The results for parts of a batch: rows in one tensor, anything else in a list."""
    rows = isinstance(parts[0], Tensor) and parts[0].shape[:1] == (1,)
    return parts[0] if len(parts) == 1 else torch.cat(parts) if rows else list(parts)
