"""Counting what a call asks of a network's convolutions, so that a pass too many shows, also one that no hook sees."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Convolutions(TorchDispatchMode):
    """Counts convolutions forward, backward to their input, and backward to their weights."""

    def __init__(self):
        super().__init__()
        self.forward = self.to_input = self.to_weights = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.forward += 1
        elif func is torch.ops.aten.convolution_backward.default:
            to_input, *to_weights = args[-1]
            self.to_input += to_input
            self.to_weights += any(to_weights)
        return func(*args, **(kwargs or {}))

    @property
    def counts(self):
        return self.forward, self.to_input, self.to_weights


def convolutions(call):
    """The counts of a call."""
    with Convolutions() as counted:
        call()
    return counted.counts
