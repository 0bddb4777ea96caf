"""Plots: dots of rows or classes, curves against a setting or recall, a heat map, a forest; laid out as drawings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.figures.drawing import WIDTH, Curve, Dash, Dot, Drawing, Line, Mark, Point, Text, Tile
from orchestrator.figures.table import GAIN, ends_of, written

MARGIN = 14
DASHES: tuple[Dash, ...] = ((), (6, 4), (2, 3), (8, 3, 2, 3))
PAPERS_DASHES: tuple[Dash, ...] = ((4, 3), (1.5, 2.5), (9, 3, 2, 3))
TALL, SMALL = 148, 84
"""Of the axes of curves: ours, and the paper's where they stand below."""
LETTER = 6.5
"""About as wide as a digit."""
CLASS_LEFT, CLASS_STEP = 20, 12
"""Where the axis of classes begins, right of the rows' letters, and the height of a row."""
FOREST_WIDTH, FOREST_HEIGHT, FOREST_MARGIN = 200, 26, 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A row of a dot plot."""

    label: str
    value: float | None
    """None where it was not measured."""
    interval: tuple[float, float] | None = None
    absent: str = "not run"
    """What is said in the place of a value."""


def dot_plot(metric: str, rows: Sequence[Measurement], reference: str | None, title: str) -> Drawing:
    """Draw the value of each row as a dot, its interval as a line, and a line through the value of the reference row.

    Args:
        metric: what is shown.
        rows: from the top; one of them has a value.
        reference: the label of a row.
        title: of the table.
    """
    values = {row.label: row.value for row in rows if row.value is not None}
    ends = [end for row in rows for end in row.interval or ()]
    low, high = span([*values.values(), *ends])
    bottom = 20 + 34 * len(rows)
    marks: list[Mark] = [Text(0, 12, f"{metric}, and its 95 % interval" if ends else metric, "soft")]
    if reference in values:
        x = _across(values[reference], low, high)
        marks.append(Line(x, 20, x, bottom, "reference"))
    for number, row in enumerate(rows):
        y = 32 + 34 * number
        marks.append(Text(0, y, row.label))
        marks.append(Text(WIDTH, y, row.absent if row.value is None else f"{row.value:.1f}", "soft", "end"))
        if row.interval is not None:
            left, right = (_across(end, low, high) for end in row.interval)
            marks.append(Line(left, y + 10, right, y + 10))
        if row.value is not None:
            marks.append(Dot(_across(row.value, low, high), y + 10, 4, is_hollow=row.label == reference))
    marks.append(Line(0, bottom, WIDTH, bottom, "grid"))
    for tick in ticks(low, high):
        marks.append(Text(_across(tick, low, high), bottom + 14, f"{tick:g}", "soft", "middle"))
    return Drawing(height=bottom + 20, title=f"{metric} of each row: {title}", marks=tuple(marks))


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """The axis that all rows of a forest plot share; it holds 0."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a value stands."""
        low, high = span((self.low, self.high), 0.0)
        return FOREST_MARGIN + (value - low) / (high - low) * (FOREST_WIDTH - 2 * FOREST_MARGIN)


def forest_row(
    forest: Forest, value: float | None, interval: tuple[float, float] | None, *, is_reference: bool
) -> Drawing:
    """Draw a difference as a dot, its interval as a line, and 0 as a line across; the reference is a circle at 0."""
    middle, zero = FOREST_HEIGHT / 2, forest.x(0.0)
    marks: list[Mark] = [Line(zero, 0, zero, FOREST_HEIGHT, "reference")]
    said = "not measured" if value is None else f"{value:+.1f}"
    if value is not None and interval is not None:
        marks.append(Line(forest.x(interval[0]), middle, forest.x(interval[1]), middle))
        said = f"{written(value, interval, GAIN)}, 95 % interval {' to '.join(ends_of(interval, GAIN))}"
    if value is not None:
        marks.append(Dot(forest.x(value), middle, 4))
    if is_reference:
        said = "the reference"
        marks.append(Dot(zero, middle, 4, is_hollow=True))
    return Drawing(height=FOREST_HEIGHT, width=FOREST_WIDTH, title=said, marks=tuple(marks))


def forest_axis(forest: Forest, name: str) -> Drawing:
    """Draw the axis at the foot of a forest plot."""
    marks: list[Mark] = [Line(0, 1, FOREST_WIDTH, 1, "grid")]
    for tick in ticks(*span((forest.low, forest.high), 0.0)):
        x = forest.x(tick)
        marks += [Line(x, 1, x, 5, "grid"), Text(x, 17, f"{tick:+g}" if tick else "0", "soft", "middle")]
    return Drawing(height=22, width=FOREST_WIDTH, title=f"Axis: {name}", marks=tuple(marks))


def curve_plot(
    metric: str,
    setting: str,
    curves: Mapping[str, Sequence[Point]],
    title: str,
    *,
    papers: Mapping[str, Sequence[Point]] | None = None,
    is_apart: bool = False,
    marked: Mapping[str, float] | None = None,
) -> Drawing:
    """Draw a metric against a setting, a line for each label; a single curve needs none.

    Args:
        metric: what is shown.
        setting: what it is shown against.
        curves: points by label.
        title: of the table.
        papers: the paper's points, by label; dashed and grey.
        is_apart: whether the paper's have a panel of their own below, as numbers of other data.
        marked: values of the setting at which a line stands upright, by what is said beside it.
    """
    ours = [_Styled(label, points, DASHES[n % 4], "") for n, (label, points) in enumerate(curves.items()) if points]
    theirs = [
        _Styled(label, points, PAPERS_DASHES[n % 3], "paper")
        for n, (label, points) in enumerate((papers or {}).items())
        if points
    ]
    panels = [ours, theirs] if is_apart and ours and theirs else [[*ours, *theirs]]
    marks: list[Mark] = [Text(0, 12, f"{metric} against {setting}", "soft")]
    top = 22.0
    for number, panel in enumerate(panels):
        top = _add_panel(marks, panel, top, SMALL if number else TALL, marked or {})
    return Drawing(height=top, title=f"{metric} against {setting}: {title}", marks=tuple(marks))


@dataclass(frozen=True, slots=True)
class _Styled:
    """A curve, and how it is drawn."""

    label: str
    points: Sequence[Point]
    dash: Dash
    kind: Literal["", "paper"]


def _add_panel(
    marks: list[Mark], curves: Sequence[_Styled], top: float, tall: float, marked: Mapping[str, float]
) -> float:
    """Draw curves on axes of their own below `top`, with a key above them, and return where the panel ends."""
    xs, ys = ([point[axis] for curve in curves for point in curve.points] for axis in (0, 1))
    (left, right), (low, high) = span(xs, 0.0), span(ys)
    key = top + 16 * sum(bool(curve.label) for curve in curves)
    first = key + 14 * len(marked)
    bottom = first + tall

    def at(x: float, y: float) -> Point:
        return 44 + (x - left) / (right - left) * (WIDTH - 58), bottom - (y - low) / (high - low) * tall

    for tick in ticks(low, high):
        _, y = at(left, tick)
        marks += [Line(34, y, WIDTH, y, "grid"), Text(28, y + 4, f"{tick:g}", "soft", "end")]
    shown = sorted(set(xs))
    for x in shown[:: _every([f"{x:g}" for x in shown], WIDTH - 58)]:
        marks.append(Text(at(x, low)[0], bottom + 16, f"{x:g}", "soft", "middle"))
    for place, (said, value) in enumerate(marked.items()):
        x, wide = at(value, low)[0], LETTER * len(said) + 10
        # Above the curves, each on a line of its own, and away from the other marks.
        y = key + 14 * place
        goes_left = value == min(marked.values()) and value < max(marked.values())
        goes_left = x + wide > WIDTH or (goes_left and x - wide > 34)
        marks.append(Line(x, y, x, bottom, "reference"))
        marks.append(Text(x - 5 if goes_left else x + 5, y + 9, said, "soft", "end" if goes_left else "start"))
    for place, curve in enumerate(curves):
        if curve.label:
            y = top + 6 + 16 * place
            marks.append(Line(34, y - 4, 60, y - 4, curve.kind, curve.dash))
            marks.append(Text(66, y, curve.label, "soft" if curve.kind else ""))
        through = tuple(at(x, y) for x, y in sorted(curve.points))
        marks.append(Curve(through, curve.dash, curve.kind))
        marks += [Dot(x, y, 2.5, kind=curve.kind) for x, y in through]
    return bottom + 24


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMeasurement:
    """A class in a plot of classes."""

    name: str
    said: str
    """In grey beside it."""
    values: Sequence[Measurement]
    """Of each row, in the order of the key; a label is read out."""
    curves: Sequence[Sequence[Sequence[float]]] = ()
    """Of each row precision at IoU 0.5 and at 0.75, by recall from 0 to 1, 0 to 1; empty where there is none."""


def row_key(labels: Mapping[str, str], title: str) -> Drawing:
    """Draw which line of the plots of classes is which row's, by the letter that the row is called."""
    marks: list[Mark] = []
    for place, (key, label) in enumerate(labels.items()):
        y = 12 + 17 * place
        marks += [Text(0, y, key), Line(16, y - 4, 50, y - 4, dash=DASHES[place % 4]), Text(58, y, label)]
    return Drawing(height=8 + 17 * len(labels), title=title, marks=tuple(marks))


def class_dots(classes: Sequence[ClassMeasurement], keys: Sequence[str], reference: int | None, title: str) -> Drawing:
    """Draw AP of each class as dots, one below the other for each row, their intervals as lines, all on one axis.

    Args:
        classes: from the top.
        keys: what each row is called, which a single one need not be.
        reference: the place of the row that has circles.
        title: of the drawing.
    """
    rows = [value for one in classes for value in one.values]
    ends = [end for row in rows for end in row.interval or ()] + [row.value for row in rows if row.value is not None]
    low, high = span(ends)

    def at(value: float) -> float:
        return CLASS_LEFT + (value - low) / (high - low) * (WIDTH - CLASS_LEFT - MARGIN)

    across = [(tick, at(tick)) for tick in ticks(low, high)]
    marks: list[Mark] = [Text(0, 12, "AP of each class, and its 95 % interval", "soft")]
    top = 22.0
    for one in classes:
        marks += [Text(0, top + 13, one.name), Text(WIDTH, top + 13, one.said, "soft", "end")]
        bottom = top + 21 + CLASS_STEP * len(one.values)
        marks += [Line(x, top + 18, x, bottom, "grid") for _, x in across]
        for place, row in enumerate(one.values):
            y = top + 26 + CLASS_STEP * place
            marks += [Text(0, y + 4, keys[place], "soft")] if len(keys) > 1 else []
            if row.interval is not None:
                marks.append(Line(at(row.interval[0]), y, at(row.interval[1]), y))
            if row.value is not None:
                marks.append(Dot(at(row.value), y, 3, is_hollow=place == reference))
        top = bottom + 4
    marks += [Text(x, top + 12, f"{tick:g}", "soft", "middle") for tick, x in across]
    return Drawing(height=top + 18, title=title, marks=tuple(marks))


def precision_recall(one: ClassMeasurement) -> Drawing:
    """Draw the precision of a class against recall, at IoU 0.5 to the left and at 0.75 to the right, a line a row."""
    wide, tall, top = (WIDTH - 26 - 16) / 2, 118.0, 40.0
    marks: list[Mark] = [Text(0, 13, one.name), Text(WIDTH, 13, one.said, "soft", "end")]
    for panel, iou in enumerate(("0.5", "0.75")):
        left = 26 + panel * (wide + 16)
        marks.append(Text(left, top - 8, f"IoU {iou}", "soft"))
        for tick in (0.0, 0.5, 1.0):
            y = top + (1 - tick) * tall
            marks.append(Line(left, y, left + wide, y, "grid"))
            marks += [Text(20, y + 4, f"{tick:g}", "soft", "end")] if panel == 0 else []
            anchor: Literal["start", "middle", "end"] = "start" if tick == 0 else "end" if tick == 1 else "middle"
            marks.append(Text(left + tick * wide, top + tall + 15, f"{tick:g}", "soft", anchor))
        for place, of_row in enumerate(one.curves):
            last = len(of_row[panel]) - 1
            points = [(left + n / last * wide, top + (1 - p) * tall) for n, p in enumerate(of_row[panel])]
            marks.append(Curve(_without_needless(points), DASHES[place % 4]))
    return Drawing(height=top + tall + 20, title=f"Precision by recall: {one.name}", marks=tuple(marks))


def _without_needless(points: Sequence[Point], most: float = 0.5) -> tuple[Point, ...]:
    """Leave out points that lie so near to the line between those that are kept; x rises."""
    kept = [points[0]]
    (x0, y0), last = points[0], points[0]
    low, high = -math.inf, math.inf  # the slopes of lines from (x0, y0) that pass all points since near enough
    for x, y in points[1:]:
        if not low <= (y - y0) / (x - x0) <= high:
            kept.append(last)
            (x0, y0), low, high = last, -math.inf, math.inf
        low, high = max(low, (y - most - y0) / (x - x0)), min(high, (y + most - y0) / (x - x0))
        last = (x, y)
    return (*kept, points[-1])


def heat_map(
    metric: str,
    across: tuple[str, Sequence[str]],
    down: tuple[str, Sequence[str]],
    values: Sequence[Sequence[float | None]],
) -> Drawing:
    """Draw a metric against one or two settings: the higher, the darker its cell, with the value where that fits.

    Args:
        metric: what is shown.
        across: name and values of the setting from left to right; "" and one value where there is none.
        down: name and values of the one from top to bottom.
        values: [down, across]; None leaves a cell empty.
    """
    there = [value for row in values for value in row if value is not None]
    low, high = min(there), max(there)
    digits = 1 if high >= 1 else 3
    left = 8 + LETTER * max(map(len, down[1]))
    wide, tall = (WIDTH - left) / len(across[1]), 18
    said, title = f"{across[0]} (across) and {down[0]} (down)", f"{across[0]} and {down[0]}"
    if not across[0]:
        said = title = down[0]
    marks: list[Mark] = [Text(0, 12, f"{metric} against {said}", "soft")]
    for row, (name, of_row) in enumerate(zip(down[1], values, strict=True)):
        y = 22 + tall * row
        marks.append(Text(left - 6, y + 13, name, "soft", "end"))
        for place, value in enumerate(of_row):
            if value is None:
                continue
            x, shade = left + wide * place, 0.0 if high == low else (value - low) / (high - low)
            # At most 0.44 of ink, on which the value in the cell can still be read, in light and in dark.
            marks.append(Tile(x, y, wide, tall, round(0.04 + 0.4 * shade, 3), f"{value:.4g}"))
            if LETTER * len(shown := f"{value:.{digits}f}") <= wide:
                marks.append(Text(x + wide / 2, y + 13, shown, anchor="middle"))
    bottom = 22 + tall * len(down[1])
    for place in range(0, len(across[1]), _every(across[1], WIDTH - left)):
        marks.append(Text(left + wide * (place + 0.5), bottom + 14, across[1][place], "soft", "middle"))
    return Drawing(height=bottom + 20, title=f"{metric} against {title}", marks=tuple(marks))


def span(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    """The ends of an axis that holds the values, with some room on either side."""
    low, high = min(values), max(values)
    wide = high - low
    if not wide:  # of a single value; dividing by its span would fail
        wide, room = 1.0, room or 0.5
    return low - room * wide, high + room * wide


def ticks(low: float, high: float) -> list[float]:
    """Return three to eight round numbers from one end to the other."""
    # From coarse to fine, so that the first that fits at least three times is taken.
    steps = (digit * 10.0**power for power in range(6, -9, -1) for digit in (5, 2, 1))
    step = next(step for step in steps if (high - low) / step >= 3)
    # The ends themselves count, though sums of decimals may be a last bit beyond them.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _across(value: float, low: float, high: float) -> float:
    """Where a value stands on an axis over the whole width."""
    return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)


def _every(names: Sequence[str], wide: float) -> int:
    """Of how many names in a row one has to be shown, so that none touches the next."""
    fit = max(1, int(wide // (LETTER * max(map(len, names)) + 8)))
    return -(-len(names) // fit)
