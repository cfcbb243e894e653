"""A progress bar over an evaluation whose work shrinks as images break."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Counts forward passes of images, done and at most left; needs tqdm to show anything.

    Args:
        show: Whether to show a bar, if tqdm is installed.
    """

    def __init__(self, *, show: bool) -> None:
        self._bar: Any = None
        if show:
            try:
                from tqdm.auto import tqdm
            except ModuleNotFoundError:
                return
            # To a file a line now and then. The time left follows from the average so far: attacks differ too much.
            interval = 0.5 if sys.stderr.isatty() else 30
            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, at most {remaining} left{postfix}"
            self._bar = tqdm(
                total=1, desc="evaluate", mininterval=interval, smoothing=0, bar_format=form, dynamic_ncols=True
            )

    def stage(self, description: str, left: float) -> None:
        """An attack begins at one ε, and at most so many passes are left altogether."""
        if self._bar is not None:
            self._bar.total = self._bar.n + max(left, 1)
            self._bar.set_postfix_str(description, refresh=sys.stderr.isatty())

    def advance(self, passes: float) -> None:
        """So many passes were made."""
        if self._bar is not None:
            self._bar.update(passes)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.total = self._bar.n
            self._bar.set_postfix_str("")
            self._bar.close()
