"""Several processes share the batches of an evaluation; each of them ends up with all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Processes:
    """The processes of torch.distributed's default group, or this one alone.

    Args:
        together: Share the work, if torch.distributed is initialised.
    """

    def __init__(self, *, together: bool = True) -> None:
        active = together and torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if active else 0
        self.count = torch.distributed.get_world_size() if active else 1

    def map(self, tasks: Sequence[_Task], run: Callable[[_Task], _Result]) -> list[_Result]:
        """The results of all tasks, in their order, in every process. Process r runs tasks r, r + count, ...

        Raises:
            Exception: What a task of this process raised.
            RuntimeError: If a task of another process raised.
        """
        own = self.each(lambda: [run(task) for task in tasks[self.rank :: self.count]])
        everyone = self.gather(own)
        return [everyone[k % self.count][k // self.count] for k in range(len(tasks))]

    def each(self, run: Callable[[], _Result]) -> _Result:
        """What a call gives in this process; each process makes it. If it raises in one, no other waits for that one.

        Raises:
            Exception: What the call raised in this process.
            RuntimeError: If it raised in another one.
        """
        result: list[_Result] = []
        error: Exception | None = None
        try:
            result.append(run())
        except Exception as caught:
            error = caught
        failures = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise RuntimeError(f"Process {rank} of the evaluation failed with {failure}")
        return result[0]

    def first(self, run: Callable[[], _Result]) -> _Result:
        """What the first process gets from a call; the others wait for it and get the same.

        Raises:
            Exception: What the call raised, in the first process.
            RuntimeError: If it raised, in the others.
        """
        return self.map([None], lambda _: run())[0]

    def agree(self, **values: Any) -> None:
        """Make sure that all processes evaluate the same thing.

        Raises:
            ValueError: If a value is not the same in all of them.
        """
        everyone = self.gather(values)
        different = [name for name, value in everyone[0].items() if any(other[name] != value for other in everyone)]
        if different:
            raise ValueError(
                f"The processes differ in {', '.join(different)}. Each must call evaluate_robustness with the same network, "
                "the whole data in the same order (no DistributedSampler, no shuffling) and the same settings; the work is "
                "then divided among them. To evaluate in this process alone: distributed=False."
            )

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values


def bare_network(model: nn.Module, processes: int) -> nn.Module:
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
    if processes == 1:
        return model
    compiled = getattr(model, "_orig_mod", model)
    if isinstance(compiled, DistributedDataParallel):
        inner: nn.Module = compiled.module
        return bare_network(inner, processes)
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if kinds & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}:
        raise ValueError(
            "The network synchronises its processes at each forward pass, and the evaluation gives them unequal numbers of "
            "passes. Hand over the whole network beneath DistributedDataParallel or FSDP, or call with distributed=False in "
            "every process."
        )
    return model
