"""Renders a table in any format, and several tables with their figures as one self-contained HTML page."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.figures.drawing import to_svg
from orchestrator.figures.plots import Forest, forest_axis, forest_row
from orchestrator.figures.table import Table
from orchestrator.figures.templating import fill


@dataclass(frozen=True, slots=True)
class Section:
    """Part of a page beside its tables."""

    title: str
    """Of the entry in the table of contents."""
    anchor: str
    html: str
    """Put in as it is."""


def render(table: Table, form: str) -> str:
    """Render in one of FORMATS; HTML is a whole page.

    Raises:
        UserError: there is no such format.
    """
    if form not in WRITERS:
        raise UserError(f"format is {form!r}, expected one of: {', '.join(FORMATS)}")
    return WRITERS[form](table)


def html_page(
    title: str,
    tables: Sequence[Table],
    figures: Sequence[str] = (),
    sections: Sequence[Section] = (),
    *,
    found: Sequence[str] = (),
    facts: Sequence[str] = (),
    cites: str = "",
) -> str:
    """Render tables as one page that needs nothing else: no font, no network, and no script beside those of sections.

    Args:
        title: of the page.
        tables: in their order; of several, a table of contents comes first.
        figures: the SVG or HTML below each table, put in as it is; left out where there are none.
        sections: come after the tables.
        found: sentences below the title: what the tables say.
        facts: what that rests on, in a line below.
        cites: BibTeX at the foot.
    """
    drawn = [*figures, *[""] * (len(tables) - len(figures))]
    parts = [table_part(table) | {"figure": figure} for table, figure in zip(tables, drawn, strict=True)]
    return fill("page.html", title=title, parts=parts, sections=sections, found=found, facts=facts, cites=cites)


def table_part(table: Table) -> dict[str, Any]:
    """Return what the templates of a page need of a table, with the intervals of its rows drawn."""
    shown = table.compact or table
    return shown.html_part(*_forest(shown))


def table_html(table: Table, figure: str = "") -> str:
    """Render a table and its figure without their heading, as a page keeps them for later."""
    return fill("table_alone.html", **table_part(table), figure=figure)


def kept_section(title: str, anchor: str, html: str, *, when: str, note: str) -> Section:
    """Return the section of a table that was rendered before.

    Args:
        title: of the table.
        anchor: of the section.
        html: what `table_html` gave.
        when: it was rendered, for the table of contents.
        note: how old it is, and what it rests on.
    """
    html = fill("kept.html", title=title, anchor=anchor, html=html, note=note)
    return Section(f"{title} ({when})", anchor, html)


def _forest(table: Table) -> tuple[dict[int, str], str]:
    """Draw the intervals of a table's rows, by the row's place, on one axis; empty where there are none."""
    place = next((place for place, column in enumerate(table.columns) if column.has_forest), None)
    cells = [] if place is None else [row[place] for row in table.cells()]
    spans = [cell.interval for cell in cells if cell.interval is not None]
    if place is None or not spans:
        return {}, ""
    forest = Forest(low=min(0.0, *(low for low, _ in spans)), high=max(0.0, *(high for _, high in spans)))
    drawn = {}
    for row, cell in enumerate(cells):
        value = cell.value if isinstance(cell.value, float) else None
        drawn[row] = to_svg(forest_row(forest, value, cell.interval, is_reference=cell.absent == "reference"))
    return drawn, to_svg(forest_axis(forest, table.columns[place].head))


def captioned(drawn: str, caption: str, kind: str = "") -> str:
    """Render drawings as a part of a page with a caption; `kind` is a class of the style."""
    return fill("captioned.html", drawn=drawn, caption=caption, kind=kind)


def html_image(content: bytes, form: str, alt: str) -> str:
    """Render a picture as a part of a page, which then needs no file.

    Args:
        content: of its file.
        form: "png", "webp" or such.
        alt: says what it shows to those who do not see it.
    """
    return fill("image.html", coded=b64encode(content).decode(), form=form, alt=alt)


WRITERS: Mapping[str, Callable[[Table], str]] = {
    "text": Table.to_text,
    "markdown": Table.to_markdown,
    "latex": Table.to_latex,
    "html": lambda table: html_page(table.title, [table]),
    "json": Table.to_json,
}
FORMATS = tuple(WRITERS)
