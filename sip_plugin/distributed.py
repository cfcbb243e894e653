"""The processes of ``torch.distributed`` that share one job; a process alone is a group of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

_T = TypeVar("_T")
_Task = TypeVar("_Task")


class ProcessGroup:
    """The default group of ``torch.distributed``. An error in one process is an error in all, so that none waits for it.

    Args:
        distributed: Use the default group if there is one; False stands for this process alone.

    Attributes:
        rank: The number of this process.
        size: The number of processes.
    """

    def __init__(self, *, distributed: bool = True) -> None:
        grouped = distributed and dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if grouped else 0
        self.size: int = dist.get_world_size() if grouped else 1

    def gather(self, value: _T) -> list[_T]:
        """The value of each process, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_call(self, function: Callable[[], _T]) -> list[_T]:
        """Call a function in every process; return what each of them got.

        Raises:
            BaseException: What the function raised in this process.
            RuntimeError: If it raised in another process; says in which, and what.
        """
        error: BaseException | None = None
        result: Any = None
        try:
            result = function()
        except BaseException as caught:
            error = caught
        outcomes = self.gather((result, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, failure) in enumerate(outcomes):
            if failure is not None:
                raise RuntimeError(f"Process {rank} of {self.size} failed with {failure}")
        return [value for value, _ in outcomes]

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in every process; return this one's result. Raises as :meth:`gather_call` does."""
        results: list[_T] = []
        self.gather_call(lambda: results.append(function()))
        return results[0]

    def on_rank_zero(self, function: Callable[[], _T]) -> _T:
        """Call a function in the first process only; return its result everywhere. Raises as :meth:`gather_call` does."""
        return self.gather_call(lambda: function() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def map_sharded(self, tasks: Sequence[_Task], run: Callable[[_Task], _T]) -> list[_T]:
        """The results of all tasks, in their order, in every process. Process r runs tasks r, r + size, ...

        Raises as :meth:`gather_call` does.
        """
        shards = self.gather_call(lambda: [run(task) for task in tasks[self.rank :: self.size]])
        return [shards[k % self.size][k // self.size] for k in range(len(tasks))]

    def require_equal(self, advice: str = "", **values: Any) -> None:
        """Make sure that all processes work on the same thing.

        Raises:
            ValueError: If a value is not the same in all of them; ``advice`` is the end of the message.
        """
        everyone = self.gather(values)
        different = [name for name, value in everyone[0].items() if any(other[name] != value for other in everyone)]
        if different:
            raise ValueError(f"The processes differ in {', '.join(different)}. {advice}".rstrip())
