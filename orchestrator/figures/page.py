"""Tables in any of the formats, and as one self-contained HTML page with their figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.errors import UserError
from orchestrator.figures.table import Column, Table, show, to_json, to_latex, to_markdown, to_text

FORMATS = ("text", "markdown", "latex", "html", "json")


def render(table: Table, form: str) -> str:
    """Render in one of FORMATS."""
    if form not in FORMATS:
        raise UserError(f"format is {form!r}, expected one of: {', '.join(FORMATS)}")
    if form == "html":
        return html_page(table.title, [table])
    return {"text": to_text, "markdown": to_markdown, "latex": to_latex, "json": to_json}[form](table)


@dataclass(frozen=True, slots=True)
class Section:
    """Part of a page beside its tables."""

    title: str
    """Of the entry in the table of contents."""
    anchor: str
    html: str


def html_page(
    title: str, tables: Sequence[Table], figures: Sequence[str] = (), sections: Sequence[Section] = ()
) -> str:
    """Render tables as one page that needs nothing else: no font, no network, and no script beside those of sections.

    Args:
        title: of the page.
        tables: in their order; of several, a table of contents comes first.
        figures: the SVG below each table; left out where there are none.
        sections: come after the tables.
    """
    drawn = [*figures, *[""] * (len(tables) - len(figures))]
    body = "\n".join(
        html_table(t, figure, f"table-{n}") for n, (t, figure) in enumerate(zip(tables, drawn, strict=True))
    )
    entries = [(f"table-{n}", table.title) for n, table in enumerate(tables)]
    entries += [(section.anchor, section.title) for section in sections]
    body = "\n".join([body, *(section.html for section in sections)])
    if len(entries) > 1:
        lines = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in entries)
        body = f"<nav><ol>{lines}</ol></nav>\n{body}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def html_table(table: Table, figure: str, anchor: str) -> str:
    """Render one table with its figure as a section; a wide table scrolls within itself."""
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
        f'<section id="{anchor}">\n<h2>{escape(table.title)}</h2>\n{caption}'
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(body)
        + "\n</tbody>\n</table></div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + (f"<figure>{figure}</figure>\n" if figure else "")
        + "</section>"
    )


def _css_class(column: Column) -> str:
    return ' class="number"' if column.numeric else ""


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
a { color: inherit; } nav { color: var(--soft); } nav ol { padding-left: 1.2rem; }
figure { margin: 1rem 0; } img { display: block; max-width: 100%; margin-bottom: 1rem; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; margin-bottom: 1rem; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg .soft { fill: var(--soft); font-size: 11px; }
svg line, svg polyline { stroke: var(--ink); fill: none; stroke-width: 1.5; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg circle { fill: var(--ink); } svg .hollow { fill: var(--paper); stroke: var(--ink); stroke-width: 1.5; }
svg .cell { fill: var(--ink); }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem 2rem; }
svg .reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
"""
