"""Tables as text, Markdown and LaTeX: one content, three forms."""

from __future__ import annotations

import os
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import methodcaller
from typing import NamedTuple

from sip_plugin.utils import atomic_write

_plain = methodcaller("translate", str.maketrans({"ε": "eps", "∞": "inf", "–": "-"}))  # what every terminal has
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|*_`<[]~$&#"})
_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "…": r"\ldots{}"}
    | {character: f"\\{character}" for character in "&%$#_{}"}
    | {character: f"${character}$" for character in "<>|"}
    | {character: f"{{{character}}}" for character in "[]*"}  # which a line break would take for its argument
    | {"ε": r"$\varepsilon$", "∞": r"$\infty$", "±": r"$\pm$", "–": "--", "−": "$-$"}
)


class Best(str):
    """A cell that is the best of its column."""


class Table(NamedTuple):
    """Cells with a title and notes; the text may have ``ε`` and ``±``, which each form writes in its own way."""

    title: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]  # what is above ("line", "space" or nothing), and the cells
    notes: Sequence[str]
    names: int = 1  # columns, from the left, that hold names and not figures
    meaning_of_best: str = ""

    def forms(self, escape: Callable[[str], str], best: str, mark: str) -> tuple[str, list[str], list[list[str]]]:
        """Title, notes and cells (the head first) in their form, ``best`` being that of a column's best cell."""
        found = any(isinstance(cell, Best) for _, cells in self.rows for cell in cells)
        notes = [f"{mark}: {self.meaning_of_best}"] * found + [*self.notes]
        other = "{} " if found and escape is _plain else "{}"
        lines = (self.header, *(cells for _, cells in self.rows))
        cells = [[(best if isinstance(cell, Best) else other).format(escape(cell)) for cell in line] for line in lines]
        return escape(self.title), [escape(note) for note in notes], cells

    def parted(self, lines: Iterable[str], line: str, space: str) -> Iterator[str]:
        """The lines of the rows, with what is between them."""
        for number, ((above, _), text) in enumerate(zip(self.rows, lines, strict=True)):
            if number and above:
                yield line if above == "line" else space
            yield text


class Tabular(ABC):
    """Something with a table. Each method returns the text and, if there is a path, writes it whole or not at all."""

    @abstractmethod
    def table(self, digits: int = 1) -> Table:
        """The table, accuracies in per cent with so many decimals."""

    def to_text(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table for a terminal, where the best of a column has an asterisk; ``str`` gives the same."""
        table = self.table(digits)
        title, notes, cells = table.forms(_plain, "{}*", "*")
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        form = "  ".join(f"{{:{'<' if column < table.names else '>'}{width}}}" for column, width in enumerate(widths))
        head, *body = (form.format(*line).rstrip() for line in cells)
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        title, *notes = (textwrap.fill(text, 100, subsequent_indent="  ") for text in (title, *notes))
        return write_text("\n".join([title, "", head, rule, *table.parted(body, rule, ""), rule, *notes]), path)

    def to_markdown(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table in Markdown, as GitHub shows it; the best of a column is bold."""
        table = self.table(digits)
        title, notes, (head, *body) = table.forms(_markdown, "**{}**", "Bold")
        rule = ["---"] * table.names + ["---:"] * (len(head) - table.names)
        lines = ("| " + " | ".join(line) + " |" for line in (head, rule, *body))
        return write_text("\n".join([title, "", *lines, "", *(f"- {note}" for note in notes), ""]), path)

    def to_latex(self, path: str | os.PathLike[str] | None = None, *, digits: int = 1) -> str:
        """The table in LaTeX, which needs booktabs; conditions and notes are its caption, the best of a column is bold."""
        table = self.table(digits)
        title, notes, cells = table.forms(_latex, r"\textbf{{{}}}", "Bold")
        head, *body = (" & ".join(line) + r" \\" for line in cells)
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering",
            r"\begin{tabular}{" + "l" * table.names + "r" * (len(table.header) - table.names) + "}",
            r"\toprule",
            head,
            r"\midrule",
            *table.parted(body, r"\midrule", r"\addlinespace"),
            r"\bottomrule",
            r"\end{tabular}",
            r"\caption{" + "\n".join([title, *notes]) + "}",
            r"\end{table}",
        ]
        return write_text("\n".join(lines) + "\n", path)

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
    return f"{100 * share:.{digits}f}"


def _markdown(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN)


def _latex(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX).replace(r"L$\infty$", r"$\ell_\infty$")
