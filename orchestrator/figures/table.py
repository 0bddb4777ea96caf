"""A table of values that renders itself: as text, Markdown, LaTeX, HTML, JSON, a DataFrame, or in a notebook."""

import json
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Value = str | int | float | None
TEXT_WIDTH = 120
NOT_APPLICABLE = "n/a"
"""Shown for a number that cannot exist, such as the AP of a size of which the data set has no object."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and how it is shown."""

    value: Value
    spread: float | None = None
    """Standard deviation, shown behind the value."""
    bold: bool = False
    interval: tuple[float, float] | None = None
    """Low and high end, shown in brackets behind the value."""
    mark: str = ""
    """Shown behind everything else, such as an asterisk that a note explains."""
    soft: bool = False
    """Pages show it in grey: a number that is not ours."""
    absent: str = "—"
    """What an absent value is shown as: a dash where it may still come, NOT_APPLICABLE where it cannot exist."""


@dataclass(frozen=True, slots=True)
class Column:
    """The heading of a column, and how its values are shown."""

    name: str
    numeric: bool = True
    """Numbers stand to the right, text to the left."""
    digits: int = 1
    """Decimals of a float."""
    signed: bool = False
    """Differences show their plus."""
    under: str = ""
    """The column of which this one is a detail; text that is too wide shows it on a line of its own below the row."""
    detail: str = ""
    """What that line is called."""
    wrap: int | None = None
    """Of text: the characters of a line; a table with such columns shows details below their column's own text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of cells under columns; plain values are cells as well."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell | Value, ...], ...]
    caption: str = ""
    """A sentence below the title: the question that the table answers."""
    notes: tuple[str, ...] = ()
    rules_before: tuple[int, ...] = ()
    """Rows, by place, that begin a new group."""

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"columns {names} of table {self.title!r}: expected different names")
        for place, row in enumerate(self.rows):
            if len(row) != len(names):
                raise ValueError(f"row {place} of table {self.title!r} has {len(row)} cells, expected {len(names)}")

    def cells(self) -> list[list[Cell]]:
        """Return the rows with every plain value made a cell."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def begins_group(self, place: int) -> bool:
        """Whether a rule stands before a row."""
        return place in self.rules_before and place > 0

    def to_text(self, max_width: int = TEXT_WIDTH) -> str:
        """Render for a terminal: columns aligned by the width that characters take on a screen.

        What would be wider than `max_width` has spreads and details of columns on lines of their own below each row.
        """
        columns, groups = self.columns, [[_texts(row, self.columns)] for row in self.cells()]
        is_wrapped = any(column.wrap for column in columns)
        if is_wrapped:
            columns = tuple(column for column in self.columns if not column.under)
            groups = [_wrapped(row, self.columns) for row in self.cells()]
        elif _total(columns, groups) > max_width and _has_details(self):
            columns = tuple(column for column in self.columns if not column.under)
            groups = [_folded(row, self.columns) for row in self.cells()]
        widths = _widths(columns, groups)
        rule = "  ".join("─" * n for n in widths)
        lines = [self.title, *([self.caption] if self.caption else []), ""]
        lines += [_aligned([column.name for column in columns], widths, columns), rule]
        for place, group in enumerate(groups):
            lines += [rule] if self.begins_group(place) else [""] if is_wrapped and place > 0 else []
            lines += [_aligned(texts, widths, columns) for texts in group]
        notes = [line for note in self.notes for line in (_wrap(note, max_width) if is_wrapped else [note])]
        lines += ["", *notes] if notes else []
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Render for GitHub."""
        lines = [f"**{_markdown(self.title)}**", ""]
        lines += [_markdown(self.caption), ""] if self.caption else []
        lines.append("| " + " | ".join(_markdown(column.name) for column in self.columns) + " |")
        lines.append("|" + "|".join("---:" if column.numeric else "---" for column in self.columns) + "|")
        for row in self.cells():
            texts = [(_markdown(show(cell, column)), cell) for cell, column in zip(row, self.columns, strict=True)]
            lines.append("| " + " | ".join(f"**{text}**" if cell.bold else text for text, cell in texts) + " |")
        lines += ["", *(f"- {_markdown(note)}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    def to_latex(self) -> str:
        r"""Render for a paper; it needs \usepackage{booktabs}."""
        caption = " ".join(_latex(_sentence(part)) for part in (self.title, self.caption) if part)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        lines.append(rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in self.columns)}}}")
        lines += [r"\toprule", " & ".join(_latex(column.name) for column in self.columns) + r" \\", r"\midrule"]
        for place, row in enumerate(self.cells()):
            lines += [r"\midrule"] if self.begins_group(place) else []
            texts = [(_latex(show(cell, column)), cell) for cell, column in zip(row, self.columns, strict=True)]
            lines.append(" & ".join(rf"\textbf{{{text}}}" if cell.bold else text for text, cell in texts) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_latex(_sentence(note))}" for note in self.notes]
        return "\n".join([*lines, r"\end{table}"])

    def to_html(self) -> str:
        """Render as a part of a page: title, caption, a `<table>` and notes, which take the style of the page."""
        from orchestrator.figures.templating import fill

        return fill("table.html", table=self, show=show)

    def to_json(self) -> str:
        """Render for a program: one object for each row, its values by column name.

        Spreads stand as `<column> std`, intervals as `<column> low` and `<column> high`.
        """
        content = {
            "title": self.title,
            "caption": self.caption,
            "columns": [column.name for column in self.columns],
            "rows": self._records(),
            "notes": list(self.notes),
        }
        return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)

    def to_pandas(self) -> Any:
        """Return the full values as a pandas.DataFrame: numbers as numbers, absent ones as NaN.

        What some cell has beside its value follows its column: a spread as `<column> std`, an interval as
        `<column> low` and `<column> high`.
        """
        import pandas as pd  # type: ignore[import-untyped]

        records, columns = self._records(), {}
        for column in self.columns:
            for name in (column.name, f"{column.name} std", f"{column.name} low", f"{column.name} high"):
                values = [record.get(name) for record in records]
                is_empty = all(value is None for value in values)
                if name == column.name or not is_empty:
                    # Left to itself, pandas takes a column of nothing but None for text.
                    columns[name] = pd.Series(values, dtype=float if is_empty and column.numeric else None)
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()

    def _records(self) -> list[dict[str, Value]]:
        records = []
        for cells in self.cells():
            record: dict[str, Value] = {}
            for cell, column in zip(cells, self.columns, strict=True):
                record[column.name] = cell.value
                if cell.spread is not None:
                    record[f"{column.name} std"] = cell.spread
                if cell.interval is not None:
                    record[f"{column.name} low"], record[f"{column.name} high"] = cell.interval
            records.append(record)
        return records


def show(cell: Cell, column: Column) -> str:
    """Write a cell's value as the column has it."""
    if cell.value is None:
        return cell.absent
    shown = _number(cell.value, column)
    spread = "" if cell.spread is None else f" ± {cell.spread:.{column.digits}f}"
    interval = "" if cell.interval is None else f" [{', '.join(_number(end, column) for end in cell.interval)}]"
    return f"{shown}{spread}{interval}{cell.mark}"


def _texts(row: Sequence[Cell], columns: Sequence[Column]) -> list[str]:
    return [show(cell, column) for cell, column in zip(row, columns, strict=True)]


def _widths(columns: Sequence[Column], groups: Sequence[Sequence[Sequence[str]]]) -> list[int]:
    lines = [[column.name for column in columns], *(texts for group in groups for texts in group)]
    return [max(map(width, texts)) for texts in zip(*lines, strict=True)]


def _total(columns: Sequence[Column], groups: Sequence[Sequence[Sequence[str]]]) -> int:
    return sum(_widths(columns, groups)) + 2 * (len(columns) - 1)


def _has_details(table: Table) -> bool:
    return any(c.under for c in table.columns) or any(cell.spread is not None for row in table.cells() for cell in row)


def _folded(row: Sequence[Cell], columns: Sequence[Column]) -> list[list[str]]:
    """The line of a row, then one of its spreads and one of each detail, as far as there are any."""
    cells = {column.name: (cell, column) for cell, column in zip(row, columns, strict=True)}
    main = [column for column in columns if not column.under]
    lines = [[show(replace(cells[column.name][0], spread=None), column) for column in main]]
    spreads = {
        name: f"± {cell.spread:.{column.digits}f}" for name, (cell, column) in cells.items() if cell.spread is not None
    }
    details = {"std over seeds": spreads}
    for cell, column in cells.values():
        if column.under and cell.value is not None:
            details.setdefault(column.detail, {})[column.under] = show(cell, column)
    for detail, texts in details.items():
        if texts:
            lines.append([f"  {detail}", *(texts.get(column.name, "") for column in main[1:])])
    return lines


def _wrapped(row: Sequence[Cell], columns: Sequence[Column]) -> list[list[str]]:
    """The lines of a row whose texts are wrapped, each followed by the details under its column."""
    below: dict[str, list[str]] = {column.name: [] for column in columns if not column.under}
    for cell, column in zip(row, columns, strict=True):
        below[column.under or column.name] += _wrap(show(cell, column), column.wrap or TEXT_WIDTH)
    height = max(map(len, below.values()))
    return [[lines[place] if place < len(lines) else "" for lines in below.values()] for place in range(height)]


def _wrap(text: str, width: int) -> list[str]:
    # Never within a word, and never at a hyphen: "R-CNN" and "1e-4" are words.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def width(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    # Combining marks take no column, East Asian wide letters two.
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _number(value: str | int | float, column: Column) -> str:
    if isinstance(value, float):
        shown = f"{value:+.{column.digits}f}" if column.signed else f"{value:.{column.digits}f}"
        # -0.04 would be shown as -0.0, and a difference that rounds to nothing as +0.0.
        return shown if float(shown) else shown.lstrip("+-")
    return f"{value:+d}" if column.signed and isinstance(value, int) and value else str(value)


def _aligned(texts: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = []
    for text, wide, column in zip(texts, widths, columns, strict=True):
        space = " " * (wide - width(text))
        padded.append(space + text if column.numeric else text + space)
    return "  ".join(padded).rstrip()


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]~])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "lambda", "mu", "sigma")
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # or it would be an argument of the line break before it
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "\u00d7": r"$\times$",
    "—": "---",
    "Δ": r"$\Delta$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    **{c: rf"$\{name}$" for c, name in zip("\u03b1β\u03b3δελμ\u03c3", _GREEK, strict=True)},
}
