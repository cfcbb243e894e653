"""The arguments of an evaluation, checked and made plain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sip_plugin.checks import Norm, check_eps, check_images, check_labels
from sip_plugin.evaluation.eps import distinct_eps
from sip_plugin.model_utils import unwrap_ddp

Data = tuple[Tensor, Tensor] | Iterable[Sequence[Any]]
"""Images ``(N, C, H, W)`` and labels ``(N,)``, or batches ``(images, labels, ...)`` of them."""


def parse_eps(eps: Any, norm: Norm) -> tuple[float, ...]:
    """The radii, ascending, each once; one or more, all above 0."""
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}.")
    eps = eps.tolist() if isinstance(eps, (Tensor, np.ndarray)) else eps
    given = list(eps) if isinstance(eps, Iterable) else [eps]
    radii = distinct_eps(
        check_eps(each.item() if isinstance(each, (Tensor, np.ndarray)) else each, norm) for each in given
    )
    if not radii or radii[0] == 0:
        raise ValueError(
            f"eps must hold one radius or more, all above 0 (clean accuracy is always reported), got {given}."
        )
    return radii


def check_network(model: Any, processes: int) -> nn.Module:
    """The network without what synchronises it between processes at each forward pass, of which they make unequal numbers.

    Raises:
        TypeError: If it is no network.
        ValueError: If it cannot do without, or was made under ``torch.inference_mode()``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}. A function goes into the forward of one, so that "
            "its networks can be put into eval mode."
        )
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "The network was made under torch.inference_mode(), so no gradient passes through it. Make it "
            "outside, or evaluate copy.deepcopy(model), made outside."
        )
    network = unwrap_ddp(model)
    kinds = {kind.__name__ for module in network.modules() for kind in type(module).__mro__}
    if processes > 1 and kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}:
        raise ValueError(
            "The network synchronises its processes at each forward pass, and the evaluation gives them unequal numbers of "
            "passes. Hand over the whole network beneath DistributedDataParallel or FSDP, or call with distributed=False in "
            "every process."
        )
    return network


def collect(data: Data, max_images: int | None) -> tuple[Tensor, Tensor]:
    """Images ``(N, C, H, W)`` as float32 and labels ``(N,)``, both on the CPU, without further parts (salience maps).

    Raises:
        TypeError: If ``data`` is neither a pair nor batches, or a part is of the wrong type.
        ValueError: If there are no images, or a batch's shapes or values do not fit.
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be (images, labels) or an iterable of such batches, for instance a DataLoader, got "
            f"{type(data).__name__}."
        )
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    parts: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate([data] if pair else data):
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(f"Batch {number} must be (images, labels, ...), got {type(batch).__name__}.")
        of_batch = "" if pair else f" of batch {number}"
        check_images(batch[0], name=f"images{of_batch}")
        labels = check_labels(batch[1], batch[0], name=f"labels{of_batch}")
        # Copies: what the caller made in inference mode cannot take part in a gradient.
        parts.append((batch[0].detach().to("cpu", torch.float32, copy=True), labels.to("cpu", copy=True)))
        if max_images is not None and sum(len(labels) for _, labels in parts) >= max_images:
            break
    if not parts:
        raise ValueError("data holds no batch; a generator that was used up already gives none.")
    shapes = {tuple(images.shape[1:]) for images, _ in parts}
    if len(shapes) > 1:
        raise ValueError(f"All images must be of one shape, got {', '.join(map(str, sorted(shapes)))}.")
    return torch.cat([images for images, _ in parts])[:max_images], torch.cat([y for _, y in parts])[:max_images]
