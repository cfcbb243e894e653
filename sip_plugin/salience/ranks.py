"""The processes of ``torch.distributed`` that do one job together; a process alone is a group of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

_T = TypeVar("_T")


class Ranks:
    """The default group: what one finds out all know, and no one waits for another that has failed.

    Attributes:
        rank: The number of this process.
        size: How many there are.
    """

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if grouped else 0
        self.size: int = dist.get_world_size() if grouped else 1

    def each(self, work: Callable[[], _T]) -> list[_T]:
        """Do something in every process; what each of them got.

        Raises:
            BaseException: What ``work`` raised in this process.
            RuntimeError: If it raised in another process; says what and where.
        """
        if self.size == 1:
            return [work()]
        error: BaseException | None = None
        done: Any = None
        try:
            done = work()
        except BaseException as caught:
            error = caught
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, (done, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, said) in enumerate(told):
            if said is not None:
                raise RuntimeError(f"Process {rank} of {self.size} failed: {said}")
        return [value for value, _ in told]

    def each_own(self, work: Callable[[], _T]) -> _T:
        """Do something in every process; what this one got. Raises as :meth:`each` does."""
        kept: list[_T] = []
        self.each(lambda: kept.append(work()))
        return kept[0]

    def first(self, work: Callable[[], _T]) -> _T:
        """Do something in the first process only; what it got. Raises as :meth:`each` does."""
        return self.each(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]
