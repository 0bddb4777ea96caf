"""A table of values, written as text, Markdown, LaTeX or JSON."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    def to_text(self) -> str:
        """Render for a terminal, aligned."""
        return to_text(self)

    def to_markdown(self) -> str:
        """Render for GitHub."""
        return to_markdown(self)

    def to_latex(self) -> str:
        """Render for a paper, with booktabs."""
        return to_latex(self)

    def to_json(self) -> str:
        """Render for a program."""
        return to_json(self)


def show(cell: Cell, column: Column) -> str:
    """Write a cell's value as the column has it."""
    if cell.value is None:
        return cell.absent
    shown = _number(cell.value, column)
    spread = "" if cell.spread is None else f" ± {cell.spread:.{column.digits}f}"
    interval = "" if cell.interval is None else f" [{', '.join(_number(end, column) for end in cell.interval)}]"
    return f"{shown}{spread}{interval}{cell.mark}"


def to_text(table: Table, max_width: int = TEXT_WIDTH) -> str:
    """Render for a terminal: columns aligned by the width that characters take on a screen.

    What would be wider than `max_width` has spreads and details of columns on lines of their own below each row.
    """
    columns, groups = table.columns, [[_texts(row, table.columns)] for row in table.cells()]
    if _total(columns, groups) > max_width and _has_details(table):
        columns = tuple(column for column in table.columns if not column.under)
        groups = [_folded(row, table.columns) for row in table.cells()]
    widths = _widths(columns, groups)
    rule = "  ".join("─" * n for n in widths)
    lines = [table.title, *([table.caption] if table.caption else []), ""]
    lines += [_aligned([column.name for column in columns], widths, columns), rule]
    for place, group in enumerate(groups):
        lines += [rule] if place in table.rules_before and place > 0 else []
        lines += [_aligned(texts, widths, columns) for texts in group]
    lines += ["", *table.notes] if table.notes else []
    return "\n".join(lines)


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


def to_markdown(table: Table) -> str:
    """Render for GitHub."""
    lines = [f"**{_markdown(table.title)}**", ""]
    lines += [_markdown(table.caption), ""] if table.caption else []
    lines.append("| " + " | ".join(_markdown(column.name) for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
    for row in table.cells():
        texts = [(_markdown(show(cell, column)), cell) for cell, column in zip(row, table.columns, strict=True)]
        lines.append("| " + " | ".join(f"**{text}**" if cell.bold else text for text, cell in texts) + " |")
    lines += ["", *(f"- {_markdown(note)}" for note in table.notes)] if table.notes else []
    return "\n".join(lines)


def to_latex(table: Table) -> str:
    r"""Render for a paper; it needs \usepackage{booktabs}."""
    caption = " ".join(_latex(_sentence(part)) for part in (table.title, table.caption) if part)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    lines.append(rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}")
    lines += [r"\toprule", " & ".join(_latex(column.name) for column in table.columns) + r" \\", r"\midrule"]
    for place, row in enumerate(table.cells()):
        lines += [r"\midrule"] if place in table.rules_before and place > 0 else []
        texts = [(_latex(show(cell, column)), cell) for cell, column in zip(row, table.columns, strict=True)]
        lines.append(" & ".join(rf"\textbf{{{text}}}" if cell.bold else text for text, cell in texts) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {_latex(_sentence(note))}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"])


def to_json(table: Table) -> str:
    """Render for a program: one object for each row, its values by column name.

    Spreads stand as `<column> std`, intervals as `<column> low` and `<column> high`.
    """
    rows = []
    for cells in table.cells():
        row: dict[str, Value] = {}
        for cell, column in zip(cells, table.columns, strict=True):
            row[column.name] = cell.value
            if cell.spread is not None:
                row[f"{column.name} std"] = cell.spread
            if cell.interval is not None:
                row[f"{column.name} low"], row[f"{column.name} high"] = cell.interval
        rows.append(row)
    content = {
        "title": table.title,
        "caption": table.caption,
        "columns": [column.name for column in table.columns],
        "rows": rows,
        "notes": list(table.notes),
    }
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)


def width(text: str) -> int:
    """Return the number of terminal columns that a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _number(value: str | int | float, column: Column) -> str:
    if isinstance(value, float):
        shown = f"{value:+.{column.digits}f}" if column.signed else f"{value:.{column.digits}f}"
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
    **{c: rf"$\{name}$" for c, name in zip("\u03b1β\u03b3δελμ\u03c3", _GREEK, strict=True)},
}
