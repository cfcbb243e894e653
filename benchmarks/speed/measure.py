"""Two ways of doing the same thing, timed turn by turn in one process, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm


def interleaved(ways: Mapping[str, Callable[[], Any]], *, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds that each way took in each round, after one round that does not count; the order turns round each time."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(-1, rounds), desc=" against ".join(ways), unit="round"):
        names = list(ways) if number % 2 else list(ways)[::-1]
        for name in names:
            _wait(device)
            start = time.perf_counter()
            ways[name]()
            _wait(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """The median over the rounds of our time over theirs, with the raw figures."""
    ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    return {
        "median_ratio": statistics.median(ratios),
        "ratios": ratios,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }


def reference_resnet18() -> nn.Module:
    """The CIFAR-10 ResNet-18 (93.8 % clean, not robust) inside the pyautoattack package, images in [0, 1]."""
    from importlib import resources

    from pyautoattack.examples.resnet import ResNet18

    model: nn.Module = ResNet18()
    with resources.as_file(resources.files("pyautoattack") / "examples" / "model_test.pt") as path:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def shown(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A line for each result."""
    return "\n".join(
        f"{name}: {result['median_ratio']:.3f} (median of {len(result['ratios'])})" for name, result in results
    )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
