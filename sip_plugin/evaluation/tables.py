"""Tables as text, Markdown and LaTeX: one content, three forms."""

from __future__ import annotations

import numbers
import re
import textwrap
from dataclasses import dataclass
from typing import Literal, NamedTuple

Parting = Literal["", "space", "line"]
_WIDTH = 100


class Cell(NamedTuple):
    """What stands in a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A row, and what parts it from the one above: nothing, some space, or a line."""

    cells: tuple[Cell, ...]
    above: Parting = ""


@dataclass(frozen=True)
class Table:
    """A table with its title and notes, in plain characters (``ε``, ``±``); each form writes them in its own way.

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
        """For a terminal, in characters that every terminal has; the best of a column has an asterisk."""
        starred = self._any_best()
        lines = [[_plain(head) + " " * starred for head in self.header]]
        for row in self.rows:
            lines.append([_plain(cell.text) + ("*" if cell.best else " " * starred) for cell in row.cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if column < self.names else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        body = [aligned[0], rule]
        for number, (row, line) in enumerate(zip(self.rows, aligned[1:], strict=True)):
            if row.above and number:
                body.append(rule if row.above == "line" else "")
            body.append(line)
        notes = (line for note in self._notes("*") for line in _wrapped(note))
        return "\n".join([*_wrapped(self.title), "", *body, rule, *notes])

    def to_markdown(self) -> str:
        """For GitHub and its like; the best of a column is bold."""
        heads = "|".join(f" {_markdown(head)} " for head in self.header)
        ruler = "|".join(" --- " if column < self.names else " ---: " for column in range(len(self.header)))
        rows = ("|".join(f" {_markdown_cell(cell)} " for cell in row.cells) for row in self.rows)
        table = "\n".join(f"|{line}|" for line in (heads, ruler, *rows))
        notes = "\n".join(f"- {_markdown(note)}" for note in self._notes("Bold"))
        return f"{_markdown(self.title)}\n\n{table}\n\n{notes}\n"

    def to_latex(self) -> str:
        r"""For a paper; needs ``\usepackage{booktabs}``. The title and notes are the caption; the best are bold."""
        columns = "l" * self.names + "r" * (len(self.header) - self.names)
        lines = [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}[t]",
            "\\centering",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            " & ".join(map(_latex, self.header)) + r" \\",
            "\\midrule",
        ]
        for number, row in enumerate(self.rows):
            if row.above and number:
                lines.append("\\midrule" if row.above == "line" else "\\addlinespace")
            lines.append(" & ".join(map(_latex_cell, row.cells)) + r" \\")
        caption = "\n".join(map(_latex, (self.title, *self._notes("Bold"))))
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{caption}}}", "\\end{table}", ""])

    def _any_best(self) -> bool:
        return any(cell.best for row in self.rows for cell in row.cells)

    def _notes(self, mark: str) -> tuple[str, ...]:
        return (f"{mark}: {self.best}", *self.notes) if self._any_best() else self.notes


def per_cent(share: float, digits: int) -> str:
    """A share in per cent, without the sign.

    Raises:
        ValueError: If the number of decimals is none.
    """
    if isinstance(digits, bool) or not isinstance(digits, numbers.Integral) or digits < 0:
        raise ValueError(f"digits must be a whole number from 0, got {digits!r}.")
    return f"{100 * share:.{digits}f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(_plain(text), _WIDTH, subsequent_indent="  ")


def _plain(text: str) -> str:
    return text.replace("ε", "eps").replace("L∞", "Linf").replace("–", "-").replace("√", "sqrt")


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<\[\]~$&#])", r"\\\1", " ".join(text.split()))


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(cell.text)
    return f"**{text}**" if cell.best else text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "<>|"},
    **{character: f"{{{character}}}" for character in "[]*"},  # which a line break would take for its argument
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "§": r"\S{}",
    "¶": r"\P{}",
    **{
        character: f"$\\{command}$"
        for character, command in {
            "ε": "varepsilon",
            "α": "alpha",
            "β": "beta",
            "γ": "gamma",
            "δ": "delta",
            "λ": "lambda",
            "μ": "mu",
            "σ": "sigma",
            "τ": "tau",
            "ω": "omega",
            "∞": "infty",
            "±": "pm",
            "×": "times",
            "·": "cdot",
            "≤": "leq",
            "≥": "geq",
            "→": "to",
        }.items()
    },
}


def _latex(text: str) -> str:
    text = " ".join(text.split()).replace("L∞", "\x00")
    return "".join(_LATEX.get(character, character) for character in text).replace("\x00", r"$\ell_\infty$")


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text)
    return f"\\textbf{{{text}}}" if cell.best else text
