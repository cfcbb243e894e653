"""What has a table can be printed, and written as text, Markdown and LaTeX."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from sip_plugin.evaluation.files import written
from sip_plugin.evaluation.tables import Table


class Tabular(ABC):
    """Something with a table. Each method gives the text and, if there is a path, writes it whole or not at all."""

    @abstractmethod
    def table(self, digits: int = 1) -> Table:
        """The table, accuracies in per cent with so many decimals."""

    def to_text(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table for a terminal; ``str`` gives the same."""
        return written(self.table(digits).to_text(), path)

    def to_markdown(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table in Markdown, as GitHub shows it."""
        return written(self.table(digits).to_markdown(), path)

    def to_latex(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table in LaTeX, which needs booktabs; conditions and notes are its caption."""
        return written(self.table(digits).to_latex(), path)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()
