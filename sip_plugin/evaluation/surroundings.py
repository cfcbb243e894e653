"""What an evaluation changes around it for as long as it runs."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from sip_plugin.model_state import eval_mode, preserve_model_state

_LOGGER = "auto-attack"  # AutoAttack tells it each stage, which here the progress bar and the report say


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """A network in eval mode, seeds that may be set, AutoAttack's logger quiet; all as before at the end."""
    device, logger = device_of(model), logging.getLogger(_LOGGER)
    # AutoAttack seeds the generator of the current CUDA device, whichever the network is on.
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    disabled, python, numpy = logger.disabled, random.getstate(), np.random.get_state()
    logger.disabled = True
    try:
        with preserve_model_state(model), eval_mode(model), on_device, torch.random.fork_rng(_cuda()):
            yield
    finally:
        logger.disabled = disabled
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def frozen(model: nn.Module, *, unless: bool = False) -> Iterator[None]:
    """Parameters that need no gradient: attacks need the image's alone, but some compute the others', too.

    Args:
        model: The network.
        unless: Do nothing; for a network that computes gradients of its own.
    """
    before = [] if unless else [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; the CPU if it has none."""
    for tensor in [*model.parameters(), *model.buffers()]:
        return tensor.device
    return torch.device("cpu")


def _cuda() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
