"""Renders a table in any format, and several tables with their figures as one self-contained HTML page."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.figures.table import Table, show
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
    title: str, tables: Sequence[Table], figures: Sequence[str] = (), sections: Sequence[Section] = ()
) -> str:
    """Render tables as one page that needs nothing else: no font, no network, and no script beside those of sections.

    Args:
        title: of the page.
        tables: in their order; of several, a table of contents comes first.
        figures: the SVG or HTML below each table, put in as it is; left out where there are none.
        sections: come after the tables.
    """
    drawn = [*figures, *[""] * (len(tables) - len(figures))]
    parts = [{"table": table, "figure": figure} for table, figure in zip(tables, drawn, strict=True)]
    return fill("page.html", title=title, parts=parts, sections=sections, show=show)


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
