"""torch's random generators: what a resumed run needs to draw what an uninterrupted one would have drawn."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn


def rng_state(model: nn.Module) -> dict[str, Any]:
    """The states of the CPU's generator and of those of the CUDA devices that the network is on."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(device) for device in _devices(model)]}


def restore_rng_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Set the generators to what :func:`rng_state` gave; a device keeps its place, not its number."""
    torch.set_rng_state(state["cpu"].cpu())  # a checkpoint may have been loaded onto another device
    devices = _devices(model)
    if len(devices) != len(state["cuda"]):
        warnings.warn(
            f"The state was saved with the network on {len(state['cuda'])} CUDA device(s), and it is on {len(devices)} now: "
            "their random generators are not restored, so the run will not equal an uninterrupted one bit for bit.",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    for device, saved in zip(devices, state["cuda"], strict=True):
        torch.cuda.set_rng_state(saved.cpu(), device)


def _devices(model: nn.Module) -> list[torch.device]:
    on = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    return sorted(on, key=lambda device: device.index)
