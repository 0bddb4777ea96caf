"""One drawing as SVG and as PNG: both put each mark where the drawing has it, and escape what they write."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from orchestrator.figures.drawing import (
    GAP,
    SCALE,
    Curve,
    Dot,
    Drawing,
    Line,
    Text,
    Tile,
    small_multiples,
    svg_sheet,
    to_svg,
    write_png,
)
from orchestrator.figures.plots import curve_plot

DRAWING = Drawing(
    height=100,
    title='Curves & "tails" <1>',
    marks=(
        Tile(200, 40, 100, 20, 0.5, "a <tile>"),
        Line(0, 90, 360, 90, "grid"),
        Curve(((10.0, 10.0), (50.04, 30.0), (90, 10)), (6, 4)),
        Dot(100, 50, 20),
        Dot(40, 70, 8, is_hollow=True),
        Text(0, 12, "$x$ < 1 & more", "soft", "end"),
    ),
)


def test_svg_has_every_mark_in_its_order_and_takes_its_colours_from_the_page() -> None:
    text = to_svg(DRAWING)
    svg = ElementTree.fromstring(text)
    assert [mark.tag for mark in svg] == ["rect", "line", "polyline", "circle", "circle", "text"]
    assert svg.attrib == {"viewBox": "0 0 360 100", "role": "img", "aria-label": DRAWING.title}
    tile, grid, curve, dot, hollow, words = svg
    assert tile.attrib["fill-opacity"] == "0.5" and tile[0].text == "a <tile>"
    assert grid.attrib == {"class": "grid", "x1": "0", "x2": "360", "y1": "90", "y2": "90"}
    assert curve.attrib == {"points": "10,10 50,30 90,10", "stroke-dasharray": "6 4"}
    assert "class" not in dot.attrib and hollow.attrib["class"] == "hollow"
    assert words.text == "$x$ < 1 & more" and words.attrib["text-anchor"] == "end"
    assert 'fill="' not in text and "style" not in text


def test_png_has_the_marks_where_the_drawing_has_them(tmp_path: Path) -> None:
    write_png([DRAWING, DRAWING], "Two", tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert pixels.shape == (round((100 + 3 * GAP) * SCALE), round((2 * 360 + 3 * GAP) * SCALE))
    for left in (GAP, 2 * GAP + 360):

        def at(x: float, y: float, left: float = left) -> int:
            return int(pixels[round((2 * GAP + y) * SCALE), round((left + x) * SCALE)])

        assert at(100, 50) < 40 and at(100, 34) < 40 and at(100, 25) == 255  # the disc, up to its radius
        assert at(40, 70) == 255 and min(at(40 + far / 10, 70) for far in range(70, 90)) < 120  # the circle
        assert 130 < at(250, 50) < 150 and at(250, 65) == 255  # half ink on white
        assert at(180, 90) < 230


def test_one_sheet_and_one_page_hold_the_same_drawings(tmp_path: Path) -> None:
    drawings = [curve_plot(f"AP{n}", "exponent", {"": [(0.0, 1.0), (1.0, 2.0)]}, "t") for n in range(5)]
    grid = ElementTree.fromstring(small_multiples(drawings))
    assert grid.attrib["class"] == "multiples" and len(grid) == 5
    write_png(drawings, "Five", tmp_path / "sheet.png", across=4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        tall = sum(max(one.height for one in row) for row in (drawings[:4], drawings[4:]))
        assert sheet.height == round((2 * GAP + tall + 2 * GAP) * SCALE)
    again = tmp_path / "again.png"
    write_png(drawings, "Five", again, across=4)
    assert again.read_bytes() == (tmp_path / "sheet.png").read_bytes()


def test_an_svg_file_needs_no_page_and_has_every_drawing_at_its_place() -> None:
    text = svg_sheet([DRAWING] * 5, 'Five & "more"', across=4)
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg" and root.findtext(f"{space}title") == 'Five & "more"'
    corners = [(float(one.attrib["x"]), float(one.attrib["y"])) for one in root.findall(f"{space}svg")]
    lefts = [GAP + place * (360 + GAP) for place in range(4)]
    assert corners == [*((left, 2 * GAP) for left in lefts), (GAP, 2 * GAP + 100 + GAP)]
    assert float(root.attrib["height"]) == 2 * GAP + 2 * (100 + GAP)
    assert "<style>" in text and "var(" not in text and "url(" not in text


def test_nothing_drawn_is_nothing_written(tmp_path: Path) -> None:
    write_png([], "None", tmp_path / "none.png")
    assert small_multiples([]) == "" and svg_sheet([], "None") == "" and not (tmp_path / "none.png").exists()


def test_a_page_with_plots_is_made_without_matplotlib() -> None:
    """A submit that finds nothing to do renders its reports again; matplotlib alone would take a second of it."""
    code = """
import sys
from orchestrator.driver import submit
from orchestrator.figures.drawing import to_svg
from orchestrator.figures.page import html_page
from orchestrator.figures.plots import curve_plot
from orchestrator.figures.table import Column, Table
figure = to_svg(curve_plot("AP", "exponent", {"": [(0.0, 1.0), (1.0, 2.0)]}, "t"))
assert "<polyline" in html_page("t", [Table(title="t", columns=(Column("a"),), rows=())], [figure])
print(*sorted({"matplotlib", "pandas", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
