"""The two mechanisms that project every step of somebody else's attack. This file knows no attack library.

*Query projection* puts a model in place of the attack's own that projects each query before the network sees it: the
attack then works on ``f∘P_x``, and gradients on salient elements are zero by the chain rule. It needs to know nothing of
the attack.

*Iterate projection* is for attacks whose optimisation variable is the image itself while the network sees a transform of
it (DI-, TI-FGSM), or where salient elements would eat a norm budget (PGDL2). Every gradient attack marks its iterate with
``requires_grad``; that moment is caught, the clean values are selected into the iterate, and its gradient is zeroed on
salient elements.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from sip_plugin.constraint import project


class Mechanism(Enum):
    """Where an attack's steps are projected."""

    QUERY = "query"
    ITERATE = "iterate"
    MEMBERS = "members"


class BatchProjection:
    """``P_x`` for one batch: clean images, their map, and which query belongs to which image.

    A query of as many rows as the batch has its order. Any other number (only the images still robust, a population, a
    sample of noise) takes, row by row, the nearest clean image; two near-identical images that carry different maps
    cannot be told apart that way.

    Args:
        images: The clean images as the attack's queries see them, ``(N, C, H, W)``.
        salience: Their binary map, broadcastable to the images.
        tiled: Whether a query of several times the batch's rows is the whole batch again and again.
        piece: The number of images in each of the consecutive pieces that an attack cuts its batch into, 0 if it does not.
            A query of a piece's size is the nearest piece, in its order.
    """

    def __init__(self, images: Tensor, salience: Tensor, *, tiled: bool = False, piece: int = 0) -> None:
        self.images = images
        self.salience = salience
        self.tiled = tiled
        self.piece = piece

    def covers(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a batch of such images."""
        return tensor.dim() == 4 and tensor.is_floating_point() and tensor.shape[1:] == self.images.shape[1:]

    def rows(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Clean images and map for each row of ``queries``."""
        count = len(self.images)
        if len(queries) == count or count == 1:
            return self.images, self.salience
        if piece := self._nearest_piece(queries.detach()):
            return self.images[piece], self.salience if len(self.salience) == 1 else self.salience[piece]
        if self.tiled and len(queries) % count == 0:
            index = torch.arange(len(queries), device=queries.device) % count
        else:
            index = _nearest(queries.detach(), self.images)
        return self.images[index], salience_rows(self.salience, index)

    def _nearest_piece(self, queries: Tensor) -> slice | None:
        """The piece of the batch that is nearest as a whole, None if no piece has as many rows as the queries."""
        starts = range(0, len(self.images), self.piece) if self.piece else ()
        pieces = [slice(start, start + self.piece) for start in starts]
        pieces = [piece for piece in pieces if len(self.images[piece]) == len(queries)]
        if len(pieces) < 2:
            return pieces[0] if pieces else None
        return min(pieces, key=lambda piece: float(torch.dist(queries.float(), self.images[piece].float())))

    def __call__(self, queries: Tensor) -> Tensor:
        """Queries with their clean values on salient elements; differentiable."""
        images, salience = self.rows(queries)
        return project(queries, images, salience)


def salience_rows(salience: Tensor, index: Tensor) -> Tensor:
    """The maps of some images of a batch; one map for all of them stays one."""
    return salience if len(salience) == 1 else salience[index]


def _nearest(queries: Tensor, images: Tensor) -> Tensor:
    """For each query the index of the nearest image in L2, the first one on a tie."""
    with torch.autocast(queries.device.type, enabled=False):
        # Not by matrix product: reduced precision (TF32, bf16) confuses images that are close to each other.
        distances = torch.cdist(
            queries.flatten(1).float(), images.flatten(1).float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
    return distances.argmin(1)


class Asked(Protocol):
    """What stands in for a model and knows whether it was asked."""

    asked: bool


class ProjectedModel(nn.Module):
    """``f∘P_x``, standing in for the network ``f`` for the length of one call; everything else reaches ``f``.

    Args:
        model: The network (or a function), shared with the caller and never hooked.
        projection: ``P_x``, or None where the iterate is projected instead.
        iterates: The mode that projects iterates, which must not see the network's own operations.
        training: Whether the attack finds the network in train mode, and puts it back into that itself. Not so for an
            attack that is called on its own: the caller's modes are restored for it, after the last user's end.
    """

    def __init__(
        self,
        model: Any,
        projection: Callable[[Tensor], Tensor] | None = None,
        iterates: IterateProjection | None = None,
        *,
        training: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.training = training
        self._projection = projection
        self._iterates = iterates
        self.asked = False  # whether any query came this way

    def forward(self, queries: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's output at the projected queries."""
        self.asked = True
        if self._projection is not None:
            queries = self._projection(queries)
        if self._iterates is None:
            return self.model(queries, *args, **kwargs)
        with self._iterates.suspended():
            return self.model(queries, *args, **kwargs)

    def train(self, mode: bool = True) -> ProjectedModel:
        """The network's own ``train``, also where the network is no module."""
        super().train(mode)
        if not isinstance(self.model, nn.Module) and hasattr(self.model, "train"):
            self.model.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # A network is among our modules, something else in our __dict__; during unpickling it is in neither.
            model = self.__dict__.get("model") or self.__dict__.get("_modules", {}).get("model")
            if model is None:
                raise
            return getattr(model, name)


@contextmanager
def model_replaced(attack: Any, stand_in: ProjectedModel) -> Iterator[None]:
    """Give an attack another model for the length of a block, under whatever names it keeps its own.

    A function in place of a network gets a function in its place.

    Raises:
        TypeError: If ``attack.model`` cannot be set.
    """
    before = attack.model
    value = stand_in.forward if inspect.isroutine(before) else stand_in
    attributes = getattr(attack, "__dict__", {})
    # Past any __setattr__: torchattacks' would keep the stand-in (and with it the images) alive in a default argument.
    names = [name for name, held in attributes.items() if held is before]
    for name in names:
        attributes[name] = value
    through_setter = attack.model is not value  # a property, or a class with slots
    try:
        if through_setter:
            _set_model(attack, value)
        yield
    finally:
        for name in names:
            attributes[name] = before
        if through_setter:
            _set_model(attack, before)


def _set_model(attack: Any, value: Any) -> None:
    try:
        attack.model = value
        done = attack.model is value
    except AttributeError:
        done = False
    if not done:
        raise TypeError(
            f"{type(attack).__name__}.model cannot be set, so the attack's steps cannot be projected. Give the class "
            "a plain attribute or a setter."
        )


def warn_if_never_asked(attack: Any, stand_in: Asked, unchanged: bool) -> None:
    """Say so if an attack found something without asking ``.model``: its steps were not projected then."""
    if not stand_in.asked and not unchanged:
        warnings.warn(
            f"{type(attack).__name__} changed the images without one query to its network (.model; ART's .estimator), "
            "so only its result was projected, not its steps. If it asks the network under another name or through another "
            "attack, wrap that instead.",
            RuntimeWarning,
            stacklevel=4,
        )


class IterateProjection(TorchFunctionMode):
    """While active, projects every tensor that is marked with ``requires_grad`` and is a batch of the images' shape.

    Active for the current thread only. The tensor is written in place, before it becomes a leaf of the graph.

    Args:
        projection: ``P_x`` in the space of the attack's iterate.
    """

    def __init__(self, projection: BatchProjection) -> None:
        super().__init__()
        self.projection = projection

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Project first where ``func`` marks an iterate; then run ``func`` as it is."""
        kwargs = kwargs or {}
        # == and not `is`: the setter's slot wrapper is a new object each time it is looked up.
        marks = func == torch.Tensor.requires_grad_ or func == torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]
        if not (marks and all(args[1:]) and all(kwargs.values()) and self.projection.covers(args[0])):
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
