"""Tables as text, Markdown and LaTeX: one content, three forms."""

from __future__ import annotations

import importlib
import os
import re
import textwrap
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from sip_plugin.checks import check_int
from sip_plugin.utils import atomic_write

_PLAIN = str.maketrans({"ε": "eps", "∞": "inf", "–": "-", "√": "sqrt"})  # what every terminal has
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|*_`<[]~$&#"})
_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}"}
    | {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"${character}$" for character in "<>|"}
    | {character: f"{{{character}}}" for character in "[]*"}  # which a line break would take for its argument
    | {"ε": r"$\varepsilon$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "τ": r"$\tau$"}
    | {"∞": r"$\infty$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$"}
)


class Cell(NamedTuple):
    """What stands in a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A row, and what separates it from the one above: ``""``, ``"space"`` or ``"line"``."""

    cells: tuple[Cell, ...]
    above: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title and notes; the text may have ``ε`` and ``±``, which each form writes in its own way.

    Attributes:
        title: One sentence.
        header: The head of each column.
        rows: Rows with a cell for each column.
        notes: Sentences beneath the table.
        names: How many columns, from the left, hold names and not figures.
        best: What it means that a cell is the best of its column.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    names: int = 1
    best: str = ""

    def to_text(self) -> str:
        """For a terminal; the best of a column has an asterisk."""
        starred = self._any_best()
        lines = [[head.translate(_PLAIN) + " " * starred for head in self.header]]
        lines += [
            [cell.text.translate(_PLAIN) + ("*" if cell.best else " " * starred) for cell in row.cells]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        names = self.names
        aligned = [
            "  ".join(
                [cell.ljust(width) for cell, width in zip(line[:names], widths, strict=False)]
                + [cell.rjust(width) for cell, width in zip(line[names:], widths[names:], strict=True)]
            ).rstrip()
            for line in lines
        ]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        body = [aligned[0], rule]
        for number, (row, line) in enumerate(zip(self.rows, aligned[1:], strict=True)):
            body += [{"line": rule, "space": ""}[row.above]] if row.above and number else []
            body.append(line)
        notes = (line for note in self._notes("*") for line in _wrapped(note))
        return "\n".join([*_wrapped(self.title), "", *body, rule, *notes])

    def to_markdown(self) -> str:
        """For GitHub and its like; the best of a column is bold."""
        lines = [map(_markdown, self.header), ("---" if n < self.names else "---:" for n in range(len(self.header)))]
        lines += [(_marked(_markdown(cell.text), cell.best, "**{}**") for cell in row.cells) for row in self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "\n".join(f"- {_markdown(note)}" for note in self._notes("Bold"))
        return f"{_markdown(self.title)}\n\n{table}\n\n{notes}\n"

    def to_latex(self) -> str:
        r"""For a paper; needs ``\usepackage{booktabs}``. The title and notes are the caption; the best are bold."""
        columns = "l" * self.names + "r" * (len(self.header) - self.names)
        lines = ["% needs \\usepackage{booktabs}", "\\begin{table}[t]", "\\centering"]
        lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(map(_latex, self.header)) + r" \\"]
        lines.append("\\midrule")
        for number, row in enumerate(self.rows):
            lines += [{"line": "\\midrule", "space": "\\addlinespace"}[row.above]] if row.above and number else []
            cells = (_marked(_latex(cell.text), cell.best, r"\textbf{{{}}}") for cell in row.cells)
            lines.append(" & ".join(cells) + r" \\")
        caption = "\n".join(map(_latex, (self.title, *self._notes("Bold"))))
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{caption}}}", "\\end{table}", ""])

    def _any_best(self) -> bool:
        return any(cell.best for row in self.rows for cell in row.cells)

    def _notes(self, mark: str) -> tuple[str, ...]:
        return (f"{mark}: {self.best}", *self.notes) if self._any_best() else self.notes


class Tabular(ABC):
    """Something with a table. Each method returns the text and, if there is a path, writes it whole or not at all."""

    @abstractmethod
    def table(self, digits: int = 1) -> Table:
        """The table, accuracies in per cent with so many decimals."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The accuracies, one figure a line; what :meth:`to_frame` makes a frame of."""

    def to_frame(self) -> Any:
        """The accuracies (at ε = 0 the clean one) as a tidy :class:`pandas.DataFrame`; needs pandas."""
        return importlib.import_module("pandas").DataFrame(self.records())

    def to_text(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table for a terminal; ``str`` gives the same."""
        return write_text(self.table(digits).to_text(), path)

    def to_markdown(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table in Markdown, as GitHub shows it."""
        return write_text(self.table(digits).to_markdown(), path)

    def to_latex(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table in LaTeX, which needs booktabs; conditions and notes are its caption."""
        return write_text(self.table(digits).to_latex(), path)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def write_text(text: str, path: str | os.PathLike[str] | None) -> str:
    """Return the text, and write it to a file if there is a path."""
    if path is not None:
        with atomic_write(path) as file:
            file.write_text(text, encoding="utf-8", newline="\n")
    return text


def per_cent(share: float, digits: int) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * share:.{check_int(digits, 'digits', 0)}f}"


def _marked(text: str, best: bool, form: str) -> str:
    return form.format(text) if best else text


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.translate(_PLAIN), 100, subsequent_indent="  ")


def _markdown(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN)


def _latex(text: str) -> str:
    return re.sub(r"L\$\\infty\$", r"$\\ell_\\infty$", " ".join(text.split()).translate(_LATEX))
