"""Tables as text, Markdown and LaTeX: one content, three forms."""

from __future__ import annotations

import importlib
import os
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Table:
    """A table with its title and notes; the text may have ``ε`` and ``±``, which each form writes in its own way.

    Attributes:
        title: One sentence.
        header: The head of each column.
        rows: The cells of each row.
        notes: Sentences beneath the table.
        names: How many columns, from the left, hold names and not figures.
        best: Which cells (row, column) are the best of their column.
        meaning_of_best: What that means.
        parted: What is above a row, by its number: ``"line"`` or ``"space"``.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...]
    names: int = 1
    best: frozenset[tuple[int, int]] = frozenset()
    meaning_of_best: str = ""
    parted: Mapping[int, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """For a terminal; the best of a column has an asterisk."""
        plain = " " * bool(self.best)
        lines = self._lines(lambda text: text.translate(_PLAIN), "{}*", "{}" + plain)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = ["<" if column < self.names else ">" for column in range(len(widths))]
        form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        head, *body = (form.format(*line).rstrip() for line in lines)
        notes = (line for note in self._notes("*") for line in _wrapped(note))
        return "\n".join([*_wrapped(self.title), "", head, rule, *self._parted(body, rule, ""), rule, *notes])

    def to_markdown(self) -> str:
        """For GitHub and its like; the best of a column is bold."""
        head, *body = ("| " + " | ".join(line) + " |" for line in self._lines(_markdown, "**{}**"))
        figures = len(self.header) - self.names
        rule = "| " + " | ".join(["---"] * self.names + ["---:"] * figures) + " |"
        notes = (f"- {_markdown(note)}" for note in self._notes("Bold"))
        return "\n".join([_markdown(self.title), "", head, rule, *body, "", *notes, ""])

    def to_latex(self) -> str:
        r"""For a paper; needs ``\usepackage{booktabs}``. The title and notes are the caption; the best are bold."""
        columns = "l" * self.names + "r" * (len(self.header) - self.names)
        head, *body = (" & ".join(line) + r" \\" for line in self._lines(_latex, r"\textbf{{{}}}"))
        return "\n".join(
            [
                r"% needs \usepackage{booktabs}",
                r"\begin{table}[t]",
                r"\centering",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                r"\midrule",
                *self._parted(body, r"\midrule", r"\addlinespace"),
                r"\bottomrule",
                r"\end{tabular}",
                r"\caption{" + "\n".join(map(_latex, (self.title, *self._notes("Bold")))) + "}",
                r"\end{table}",
                "",
            ]
        )

    def _lines(self, escape: Callable[[str], str], best: str, other: str = "{}") -> list[list[str]]:
        """The cells of the head and of all rows, each in its form."""
        return [
            [(best if (row, column) in self.best else other).format(escape(text)) for column, text in enumerate(cells)]
            for row, cells in enumerate([self.header, *self.rows], -1)
        ]

    def _parted(self, body: list[str], line: str, space: str) -> Iterator[str]:
        for number, row in enumerate(body):
            if number and number in self.parted:
                yield line if self.parted[number] == "line" else space
            yield row

    def _notes(self, mark: str) -> tuple[str, ...]:
        return (f"{mark}: {self.meaning_of_best}", *self.notes) if self.best else self.notes


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


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.translate(_PLAIN), 100, subsequent_indent="  ")


def _markdown(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN)


def _latex(text: str) -> str:
    return re.sub(r"L\$\\infty\$", r"$\\ell_\\infty$", " ".join(text.split()).translate(_LATEX))
