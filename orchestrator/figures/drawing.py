"""Drawings of lines, dots, tiles and texts: one layout, written as SVG for a page and as PNG for a file.

Lengths are in pixels of a page, y grows downwards. In a page, a drawing takes its colours from the style around it,
light or dark; in a file it has those of the light page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.figures.templating import fill

if TYPE_CHECKING:
    from matplotlib.artist import Artist

WIDTH = 360
"""As wide as a phone, so that its letters are as large there as the page's."""
Point = tuple[float, float]
Dash = tuple[float, ...]
"""Lengths that are drawn and left out in turn; none is a solid line."""


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; y is where its letters stand."""

    x: float
    y: float
    text: str
    kind: Literal["", "soft"] = ""
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: Literal["", "grid", "reference", "paper"] = ""
    dash: Dash = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points."""

    points: tuple[Point, ...]
    dash: Dash = ()
    kind: Literal["", "paper"] = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A disc, or a circle."""

    x: float
    y: float
    radius: float
    is_hollow: bool = False
    kind: Literal["", "paper"] = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle that is the darker the less of the paper shows through."""

    x: float
    y: float
    width: float
    height: float
    opacity: float
    title: str
    """Shown where one points at it."""


Mark = Text | Line | Curve | Dot | Tile


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """Marks, the later above the earlier, on paper of WIDTH by a height."""

    height: float
    title: str
    """Read out to those who do not see it."""
    marks: tuple[Mark, ...]
    width: int = WIDTH


def to_svg(drawing: Drawing) -> str:
    """Write a drawing as a part of a page."""
    marks = [(type(mark).__name__, mark) for mark in drawing.marks]
    # By a template: matplotlib takes seconds to import, and pages are rendered at every submit.
    return fill("drawing.svg", drawing=drawing, marks=marks)


def small_multiples(drawings: Sequence[Drawing]) -> str:
    """Write drawings as a grid of a page, as many side by side as fit; nothing where there are none."""
    return fill("multiples.html", drawings=[to_svg(one) for one in drawings]) if drawings else ""


def svg_sheet(drawings: Sequence[Drawing], title: str, across: int = 4) -> str:
    """Write drawings as one SVG file that needs no page around it, below a title; empty where there are none."""
    if not drawings:
        return ""
    placed, width, height = _sheet(drawings, across)
    colours = {"ink": INK, "soft": SOFT, "grid": GRID, "paper": PAPER}
    parts = [{"x": x, "y": y, "of": one, "drawn": to_svg(one)} for x, y, one in placed]
    return fill("sheet.svg", parts=parts, width=width, height=height, title=title, gap=GAP, **colours)


def _sheet(drawings: Sequence[Drawing], across: int) -> tuple[list[tuple[float, float, Drawing]], float, float]:
    """Place drawings on a sheet, so many side by side; return each with its corner, and width and height of all."""
    rows = [drawings[start : start + across] for start in range(0, len(drawings), across)]
    placed: list[tuple[float, float, Drawing]] = []
    top = 2.0 * GAP
    for row in rows:
        placed += [(GAP + place * (WIDTH + GAP), top, one) for place, one in enumerate(row)]
        top += max(one.height for one in row) + GAP
    return placed, GAP + min(across, len(drawings)) * (WIDTH + GAP), top


INK, SOFT, GRID, PAPER = "#1c1e21", "#5b6168", "#c9ccd1", "#ffffff"
"""Of the light page; see `templates/page.css`."""
COLOURS = {"": INK, "soft": SOFT, "grid": GRID, "reference": SOFT, "paper": SOFT}
ALIGNMENTS: Mapping[str, Literal["left", "center", "right"]] = {"start": "left", "middle": "center", "end": "right"}
GAP = 28
SCALE = 1.5
"""Pixels of a file for one of a page."""
POINT = 0.72
"""Of a page's pixel, where 100 make an inch."""


def write_png(drawings: Sequence[Drawing], title: str, file: Path, across: int = 4) -> None:
    """Draw them on one sheet, so many side by side, below a title; nothing is written where there are none."""
    if not drawings:
        return
    # Only its canvas and its letters are matplotlib's; where each mark stands is decided already.
    from matplotlib.figure import Figure

    placed, width, height = _sheet(drawings, across)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100 * SCALE, facecolor=PAPER)
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set(xlim=(0, width), ylim=(height, 0))
    sheet.set_axis_off()
    sheet.text(GAP, 1.2 * GAP, title, color=INK, fontsize=15 * POINT, parse_math=False)
    for left, top, drawing in placed:
        for order, mark in enumerate(drawing.marks):
            sheet.add_artist(_artist(mark, left, top)).set_zorder(order)
    figure.savefig(file)


def _artist(mark: Mark, left: float, top: float) -> "Artist":
    """Make a mark of a drawing whose corner is at (left, top), styled as `templates/page.css` has it."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Rectangle
    from matplotlib.text import Text as Letters

    match mark:
        case Text(x, y, text, kind, anchor):
            # DejaVu Sans is wider than what browsers take for system-ui, which the layout reckons with.
            size = (10.0 if kind == "soft" else 10.5) * POINT
            letters = Letters(left + x, top + y, text, color=COLOURS[kind], fontsize=size, parse_math=False)
            letters.set_horizontalalignment(ALIGNMENTS[anchor])
            return letters
        case Line(x1, y1, x2, y2, kind, dash):
            width = 1.0 if kind in ("grid", "reference") else 1.5
            style = _dashes((3, 3) if kind == "reference" else dash, width)
            ends = [left + x1, left + x2], [top + y1, top + y2]
            return Line2D(*ends, color=COLOURS[kind], linewidth=width * POINT, linestyle=style)
        case Curve(points, dash, kind):
            xs, ys = [left + x for x, _ in points], [top + y for _, y in points]
            return Line2D(xs, ys, color=COLOURS[kind], linewidth=1.5 * POINT, linestyle=_dashes(dash, 1.5))
        case Dot(x, y, radius, is_hollow, kind):
            ink = COLOURS[kind]
            face = PAPER if is_hollow else ink
            return Circle((left + x, top + y), radius, facecolor=face, edgecolor=ink, linewidth=POINT)
        case Tile(x, y, width, height, opacity):
            return Rectangle((left + x, top + y), width, height, facecolor=INK, alpha=opacity, linewidth=0)


def _dashes(dash: Dash, width: float) -> Literal["-"] | tuple[float, Sequence[float]]:
    return (0.0, [length / width for length in dash]) if dash else "-"  # matplotlib counts in widths of the line
