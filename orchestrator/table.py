"""A table of values, rendered as text, Markdown, LaTeX, HTML or JSON."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.errors import UserError

FORMATS = ("text", "markdown", "latex", "html", "json")

Value = str | int | float | None
NOT_APPLICABLE = "n/a"
"""Shown for a number that cannot exist, such as the AP of a size of which the data set has no object."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and how it is shown."""

    value: Value
    spread: float | None = None
    """Standard deviation, shown behind the value."""
    bold: bool = False
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

    def to_html(self) -> str:
        """Render as a self-contained page."""
        return html_page(self.title, [self])

    def to_json(self) -> str:
        """Render for a program."""
        return to_json(self)


def render(table: Table, form: str) -> str:
    """Render in one of FORMATS."""
    if form not in FORMATS:
        raise UserError(f"format is {form!r}, expected one of: {', '.join(FORMATS)}")
    renderers = {
        "text": to_text,
        "markdown": to_markdown,
        "latex": to_latex,
        "html": Table.to_html,
        "json": to_json,
    }
    return renderers[form](table)


def show(cell: Cell, column: Column) -> str:
    """Write a cell's value as the column has it."""
    if cell.value is None:
        return cell.absent
    shown = _number(cell.value, column)
    return shown if cell.spread is None else f"{shown} ± {cell.spread:.{column.digits}f}"


def to_text(table: Table) -> str:
    """Render for a terminal: columns aligned by the width that characters take on a screen."""
    header = [column.name for column in table.columns]
    body = [[show(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.cells()]
    widths = [max(map(width, column)) for column in zip(header, *body, strict=True)]
    rule = "  ".join("─" * n for n in widths)
    lines = [table.title, *([table.caption] if table.caption else []), ""]
    lines += [_aligned(header, widths, table.columns), rule]
    for place, row in enumerate(body):
        lines += [rule] if place in table.rules_before and place > 0 else []
        lines.append(_aligned(row, widths, table.columns))
    lines += ["", *table.notes] if table.notes else []
    return "\n".join(lines)


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
    """Render for a program: one object for each row, its values by column name, spreads as `<column> std`."""
    rows = []
    for cells in table.cells():
        row: dict[str, Value] = {}
        for cell, column in zip(cells, table.columns, strict=True):
            row[column.name] = cell.value
            if cell.spread is not None:
                row[f"{column.name} std"] = cell.spread
        rows.append(row)
    content = {
        "title": table.title,
        "caption": table.caption,
        "columns": [column.name for column in table.columns],
        "rows": rows,
        "notes": list(table.notes),
    }
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)


def html_page(title: str, tables: Sequence[Table]) -> str:
    """Render tables as one page that needs nothing else: no script, no font, no network."""
    body = "\n".join(html_table(table) for table in tables)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def html_table(table: Table) -> str:
    """Render one table as a section; a wide table scrolls within itself."""
    head = "".join(f'<th scope="col"{_css_class(c)}>{escape(c.name)}</th>' for c in table.columns)
    body = []
    for place, row in enumerate(table.cells()):
        cells = []
        for cell, column in zip(row, table.columns, strict=True):
            text = escape(show(cell, column))
            cells.append(f"<td{_css_class(column)}>{f'<strong>{text}</strong>' if cell.bold else text}</td>")
        begins = ' class="group"' if place in table.rules_before and place > 0 else ""
        body.append(f"<tr{begins}>{''.join(cells)}</tr>")
    caption = f"<p>{escape(table.caption)}</p>\n" if table.caption else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f"<section>\n<h2>{escape(table.title)}</h2>\n{caption}"
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(body)
        + "\n</tbody>\n</table></div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + "</section>"
    )


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


def _css_class(column: Column) -> str:
    return ' class="number"' if column.numeric else ""


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "\u00d7": r"$\times$",
    "—": "---",
    "Δ": r"$\Delta$",
    "\u03b1": r"$\alpha$",
}

_CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --line: #c9ccd1; --soft: #5b6168; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --paper: #16181b; --line: #44494f; --soft: #a2a8b0; } }
body { margin: 0; color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; }
th, td { padding: .35rem .75rem; text-align: left; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); } tr.group td { border-top: 2px solid var(--soft) !important; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.notes { color: var(--soft); font-size: .9rem; padding-left: 1.2rem; }
"""
