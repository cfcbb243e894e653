"""Several processes share the batches of an evaluation; each of them ends up with all results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed

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
        own: list[_Result] = []
        error: Exception | None = None
        try:
            own += [run(task) for task in tasks[self.rank :: self.count]]
        except Exception as caught:
            error = caught
        everyone = self.gather((own, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, failed) in enumerate(everyone):
            if failed is not None:
                raise RuntimeError(f"Process {rank} of the evaluation failed with {failed}")
        return [everyone[k % self.count][0][k // self.count] for k in range(len(tasks))]

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values
