"""The two mechanisms that project every step of somebody else's attack. This file knows no attack library.

*Query projection* puts a model in place of the attack's own that projects each query before the network sees it: gradients
on salient elements are zero by the chain rule. *Iterate projection* is for attacks whose variable is the image itself while
the network sees a transform of it (DI-, TI-FGSM), or where salient elements would eat a norm budget (PGDL2): the moment at
which the iterate is marked with ``requires_grad`` is caught, and its values and its gradient are projected.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from enum import Enum
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from sip_plugin.checks import check_classes, check_logits
from sip_plugin.constraint import project
from sip_plugin.utils import attack_name, patched_attribute

# To be compared with == and not `is`: the setter's slot wrapper is a new object each time it is looked up.
_MARKS = (torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


class Mechanism(Enum):
    """Where an attack's steps are projected."""

    QUERY = "query"
    ITERATE = "iterate"
    MEMBERS = "members"


class UnknownRowsError(BaseException):
    """An attack asks about rows of which the images cannot be known. An attack's own ``except Exception`` lets it pass."""


class RowSelections:
    """Which images of a batch an attack goes on with, read from the very index by which it cuts the batch.

    An attack that leaves out the images it has fooled (or takes the batch in pieces) indexes the images with the rows it
    keeps, and queries that many rows then. The indexing is seen by :class:`WatchedTensor` or :class:`WatchedArray`. That
    the last selection of so many rows is the one queried holds for the libraries' own attacks; only they are watched.

    Args:
        images: The batch as the attack is given it, ``(N, ...)``.
    """

    def __init__(self, images: Tensor) -> None:
        self._shape = images.shape[1:]
        self._rows = {len(images): torch.arange(len(images), device=images.device)}

    def record(self, source: Any, index: Any, part: Any) -> None:
        """Take note that ``part`` is ``source[index]``, tensors or arrays; of interest are rows of a batch of images."""
        whole, taken = source.shape, part.shape
        rows = self._rows.get(whole[0]) if whole[1:] == self._shape else None
        if rows is None or not (taken[1:] == self._shape or taken == self._shape):
            return
        first = index[0] if isinstance(index, tuple) else index
        kept = torch.from_numpy(np.array(rows.numpy()[first])) if isinstance(source, np.ndarray) else rows[first]
        kept = kept if kept.dim() else kept[None]
        known = self._rows.get(len(kept))
        # As many rows as the source has are the same rows, in the same order.
        if len(kept) < whole[0] and (known is None or not torch.equal(known, kept)):
            self._rows[len(kept)] = kept

    def of(self, count: int) -> Tensor:
        """The indices of the images that a query of ``count`` rows is about.

        Raises:
            UnknownRowsError: If the attack has not selected so many.
        """
        try:
            return self._rows[count]
        except KeyError:
            raise UnknownRowsError(f"It queried {count} rows.") from None

    def __deepcopy__(self, memo: Any) -> RowSelections:
        return self  # copies of what it watches (ART's parallel AutoAttack makes them) go on recording here


class WatchedTensor(Tensor):
    """A tensor of images that records in :class:`RowSelections` which of its rows are taken; its copies do, too.

    Everything else that is computed from it is a plain tensor, at a plain tensor's cost. So is a selection from a selection:
    attacks leave out what they have fooled before a run and within it, and no deeper.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    selections: RowSelections
    levels: int

    def __getitem__(self, index: Any) -> Tensor:
        part = Tensor.__getitem__(self, index)
        self.selections.record(self, index, part)
        return watched(part, self.selections, self.levels - 1) if self.levels > 1 else part


def _copying(name: str) -> None:
    def method(self: WatchedTensor, *args: Any, **kwargs: Any) -> Tensor:
        return watched(getattr(Tensor, name)(self, *args, **kwargs), self.selections, self.levels)

    setattr(WatchedTensor, name, method)


for _name in ("clone", "detach", "to", "float"):
    _copying(_name)


def watched(images: Tensor, selections: RowSelections | None, levels: int = 2) -> Tensor:
    """The same tensor, whose selections are recorded, and those of its parts; as it is if there is no record to be kept."""
    if selections is None:
        return images
    view = torch.Tensor._make_subclass(WatchedTensor, images)  # as_subclass would make a view, which autograd follows
    view.selections, view.levels = selections, levels
    return view


def plain_tensor(tensor: Tensor) -> Tensor:
    """The same tensor, no longer watched."""
    return tensor.as_subclass(Tensor) if isinstance(tensor, WatchedTensor) else tensor


class WatchedArray(np.ndarray):
    """An array of images that records in :class:`RowSelections` which of its rows are taken; so do results from it."""

    selections: RowSelections | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.selections = getattr(source, "selections", None)

    def __reduce__(self) -> Any:
        build, arguments, state = cast("tuple[Any, Any, Any]", super().__reduce__())
        return build, arguments, (state, self.selections)

    def __setstate__(self, state: Any) -> None:
        array, self.selections = state
        super().__setstate__(array)

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        if self.selections is not None and self.ndim > 1:
            self.selections.record(self, index, part)
        return part


def watched_array(array: np.ndarray, selections: RowSelections) -> np.ndarray:
    """A copy of an array of images whose selections are seen."""
    copy = array.copy(order="K").view(WatchedArray)
    copy.selections = selections
    return copy


class BatchProjection:
    """``P_x`` for one batch: clean images, their map, and which image each row of a query belongs to.

    That is known, never guessed: a query of as many rows as the batch has its order, part of the batch was selected where
    ``selections`` saw it, and a tiled query is the batch again and again.

    Args:
        images: The clean images as the attack's queries see them, ``(N, C, H, W)``.
        salience: Their binary map, broadcastable to the images. Where it is 0 everywhere, queries stay what they are.
        tiled: Whether a query of several times the batch's rows is the whole batch again and again.
        selections: What the attack selects of its batch, if that says which rows it asks about.
    """

    def __init__(
        self, images: Tensor, salience: Tensor, *, tiled: bool = False, selections: RowSelections | None = None
    ) -> None:
        self.images = images
        self.salience = salience
        self.tiled = tiled
        self.selections = selections
        self.free = not bool(salience.any())
        self._part: tuple[Tensor | None, Tensor, Tensor] = (None, images, salience)

    def rows(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Clean images and map for each row of ``queries``; an :class:`UnknownRowsError` if they cannot be known."""
        count, total = queries.shape[0], self.images.shape[0]
        if count == total or total == 1:
            return self.images, self.salience
        if self.tiled and count % total == 0:
            index = torch.arange(count, device=self.images.device) % total
        elif self.selections is None:
            raise UnknownRowsError(f"It queried {count} rows.")
        else:
            index = self.selections.of(count)
        if index is not self._part[0]:
            self._part = (None, self.images, self.salience)  # lets go of the rows before
            self._part = (index, self.images[index], salience_rows(self.salience, index))
        return self._part[1:]

    def __call__(self, queries: Tensor) -> Tensor:
        """Queries with their clean values on salient elements; differentiable."""
        if self.free:
            return queries.clone()  # the network may write into it
        images, salience = self.rows(queries)
        return project(queries, images.to(queries.dtype), salience)


def salience_rows(salience: Tensor, index: Any) -> Tensor:
    """The maps of some images of a batch, by a slice or an index; one map for all of them stays one."""
    return salience if len(salience) == 1 else salience[index]


class ProjectedModel(nn.Module):
    """``f∘P_x``, standing in for the network ``f`` for the length of one call; everything else reaches ``f``.

    Args:
        model: The network (or a function), shared with the caller and never hooked.
        projection: ``P_x``, or None where the iterate is projected instead.
        mode: The mode that projects iterates, which must not see the network's own operations.
        training: Whether the attack finds the network in train mode.
        labels: Class indices, for which the network must have logits.
        logits: Whether the attack works on logits alone, and not on what else a network may give (a transformers output).
    """

    def __init__(
        self,
        model: Any,
        projection: Callable[[Tensor], Tensor] | None = None,
        mode: IterateProjection | None = None,
        *,
        training: bool = False,
        labels: Tensor | None = None,
        logits: bool = False,
    ) -> None:
        super().__init__()
        self._network = model
        self.training = training
        self._logits = logits
        self._projection, self._mode, self._labels = projection, mode, labels
        self.queried = 0  # how many queries came this way

    def forward(self, queries: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output at the projected queries."""
        self.queried += 1
        queries = plain_tensor(queries)
        # A copy, for a network that writes into its input: what is projected is one.
        queries = queries.clone() if self._projection is None else self._projection(queries)
        with nullcontext() if self._mode is None else self._mode.suspended():
            output = self._network(queries, *args, **kwargs)
        if self._logits and not isinstance(output, Tensor):
            check_logits(output, len(queries))  # says what is wrong
        if self._labels is not None:
            check_classes(self._labels, output)
            self._labels = None  # once is enough
        return output

    def train(self, mode: bool = True) -> ProjectedModel:
        """The network's own ``train``, also where the network is no module."""
        super().train(mode)
        if not isinstance(self._network, nn.Module) and hasattr(self._network, "train"):
            self._network.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_network":
                raise  # during unpickling there is none yet
            return getattr(self._network, name)


@contextmanager
def model_replaced(attack: Any, stand_in: ProjectedModel) -> Iterator[None]:
    """Give an attack another model for the length of a block, under whatever names it keeps its own.

    A function in place of a network gets a function in its place. A model that cannot be set is refused.
    """
    before = attack.model
    value = stand_in.forward if inspect.isroutine(before) else stand_in
    with ExitStack() as stack:
        for name in [name for name, held in getattr(attack, "__dict__", {}).items() if held is before]:
            stack.enter_context(patched_attribute(attack, name, value))
        if attack.model is not value:  # a property, or a class with slots
            with suppress(AttributeError):
                attack.model = value
                stack.callback(setattr, attack, "model", before)
            if attack.model is not value:
                raise TypeError(
                    f"{type(attack).__name__}.model cannot be set, so the attack's steps cannot be projected. Give the "
                    "class a plain attribute or a setter."
                )
        yield


@contextmanager
def counted_calls(model: Any) -> Iterator[list[int]]:
    """For each call of a network within a block the thread that made it; empty for a function."""
    calls: list[int] = []
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(model.register_forward_pre_hook(lambda *_: calls.append(threading.get_ident())))
        yield calls


def warn_if_not_queried(attack: Any, queried: int, unchanged: bool, calls: int = 0) -> None:
    """Say so if an attack found something without asking ``.model``, or also otherwise (``calls`` of the network in all):
    its steps were not projected then.
    """
    if (not queried or calls > queried) and not unchanged:
        past = f"with {calls - queried} call(s) of its network past .model"
        how = past if queried else "without one query to its network (.model; ART's .estimator)"
        warnings.warn(
            f"{attack_name(attack)} changed the images {how}, so steps of it were not projected, only its result. If it "
            "asks the network under another name or through another attack, wrap that instead.",
            RuntimeWarning,
            stacklevel=4,
        )


class IterateProjection(TorchFunctionMode):
    """While active in a thread, projects tensors of the images' shape in place as they are marked with ``requires_grad``.

    Their gradient is 0 on salient elements. ``projection`` is ``P_x`` in the space of the attack's iterate.
    """

    def __init__(self, projection: BatchProjection) -> None:
        super().__init__()
        self.projection = projection

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        marks = func in _MARKS and all(args[1:]) and all(kwargs.values())
        if not (marks and args[0].dim() == 4 and args[0].shape[1:] == self.projection.images.shape[1:]):
            return func(*args, **kwargs)
        iterate: Tensor = args[0]
        images, salience = self.projection.rows(iterate)
        with torch.no_grad():
            iterate.copy_(project(iterate, images, salience))
        result = func(*args, **kwargs)
        iterate.register_hook(lambda gradient: gradient.masked_fill(salience, 0))
        return result

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Out of the way of the network's own operations, each of which would pay for the mode."""
        if _get_current_function_mode() is not self:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()
