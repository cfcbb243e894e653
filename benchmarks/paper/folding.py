"""BatchNorm folded into convolutions, for the evaluation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def fold_batchnorm(network: nn.Module, images: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """The network in eval mode with BatchNorm folded into the convolutions, and how much its logits differ on the images.

    Raises:
        ValueError: If logits differ by more than rounding.
    """
    from torch.fx.experimental.optimization import fuse

    folded: nn.Module = fuse(copy.deepcopy(network).eval())
    folded = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = next(network.parameters()).device
    largest, differing = 0.0, 0
    with torch.no_grad():
        for x in images.split(256):
            x = x.to(device)
            ours, theirs = folded(x), network(x)
            largest = max(largest, (ours - theirs).abs().max().item())
            differing += int((ours.argmax(1) != theirs.argmax(1)).sum())
    if largest > 1e-3:
        raise ValueError(f"Folding BatchNorm changes logits by up to {largest:g}: leave it out (--no-fold-batchnorm).")
    return folded, {"largest_logit_difference": largest, "predictions_that_differ": differing}
