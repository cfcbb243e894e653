"""Two ways of doing the same thing, timed turn by turn in one process, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def to_the_input(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One pass of a search: forward and back to the input."""
    point = images.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(point), labels), point)


def bare_passes(model: nn.Module, images: Tensor, labels: Tensor, rows: list[int], clean: int, trained: int) -> None:
    """Passes of a search with so many rows each, passes without a gradient, and passes to the weights."""
    model.eval()
    for _ in range(clean):
        with torch.no_grad():
            model(images)
    for count in rows:
        to_the_input(model, images[:count], labels[:count])
    model.train()
    losses = [F.cross_entropy(model(images), labels) for _ in range(trained)]
    torch.stack(losses).sum().backward()


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    """The gradient of the predicted classes' logits to the images: one pass forward and one back."""
    point = images.clone().requires_grad_()
    return torch.autograd.grad(model(point).max(1).values.sum(), point)[0]


def interleaved(
    ways: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds that each way took in each round, after one round that does not count; the order turns round each time.

    ``clock=time.process_time`` leaves out what other processes on a busy machine take, and waiting for a disk.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(-1, rounds), desc=" against ".join(ways), unit="round"):
        names = list(ways) if number % 2 else list(ways)[::-1]
        for name in names:
            wait(device)
            start = clock()
            ways[name]()
            wait(device)
            if number >= 0:
                seconds[name].append(clock() - start)
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


def resnet18(width: int) -> nn.Sequential:
    """A ResNet-18 for 32×32 images with another number of channels (``width``, 2, 4 and 8 times it), untrained."""
    from pyautoattack.examples.resnet import BasicBlock

    stages: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for number in range(4):
        after = width * 2**number
        first, second = BasicBlock(before, after, 1 if number == 0 else 2), BasicBlock(after, after, 1)
        stages.append(nn.Sequential(first, second))
        before = after
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class PeakMemory(TorchDispatchMode):
    """The largest sum of the tensors that are alive at once, of those made while it is active.

    Attributes:
        bytes: The peak so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what is alive after it."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return output


def shown(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A line for each result."""
    return "\n".join(
        f"{name}: {result['median_ratio']:.3f} (median of {len(result['ratios'])})" for name, result in results
    )


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
