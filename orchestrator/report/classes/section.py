"""The classes of an experiment on a page: their table, AP as dots with intervals, and precision by recall."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from orchestrator.figures.drawing import Drawing, small_multiples, to_svg
from orchestrator.figures.page import Section
from orchestrator.figures.plots import ClassMeasurement, Measurement, class_dots, precision_recall, row_key
from orchestrator.figures.table import Cell, Column, Table, Value
from orchestrator.figures.templating import fill
from orchestrator.report.classes.numbers import METRICS, Classes, RowOfClasses
from orchestrator.report.classes.table import (
    ap_cell,
    compared_cell,
    keyed,
    leading_rows,
    metric_cell,
    notes_on,
    order_of,
)

MOST_LINES = 4
"""So many rows are told apart by how their lines are drawn."""
OPEN_CLASSES = 12
"""So many classes are shown at once, the others when they are unfolded."""
MOST_CURVES = 120
"""So many classes have curves on a page, 2 kB for each row; those of LVIS would make it 10 MB."""
DOTS_IN_ONE = 24


@lru_cache(maxsize=16)  # a submit writes the page of the suite, and one for each table
def classes_section(classes: Classes, anchor: str) -> Section:
    """Return the part of a page; with many classes the least first, and all but those folded."""
    rows = leading_rows(classes.rows, MOST_LINES)
    places = order_of(classes, rows[0], by_ap=len(classes.classes) > OPEN_CLASSES)
    parts = [_part(classes, rows, places[:OPEN_CLASSES], MOST_CURVES, "")]
    if rest := places[OPEN_CLASSES:]:
        num_drawn = MOST_CURVES - OPEN_CLASSES
        summary = f"{len(rest)} more classes" + f", {num_drawn} of them drawn" * (len(rest) > num_drawn)
        parts.append(_part(classes, rows, rest, num_drawn, summary))
    title = f"{classes.title}: classes"
    html = fill(
        "classes.html",
        anchor=anchor,
        title=title,
        caption="Which classes does it find well, and which not?",
        key=to_svg(_key(rows)) if len(rows) > 1 else "",
        parts=parts,
        notes=notes_on(classes, rows),
    )
    return Section(title=title, anchor=anchor, html=html)


def page_table(classes: Classes, rows: Sequence[RowOfClasses], places: Sequence[int]) -> Table:
    """Return a line for each class, with AP, AP50 and AP75 of each of the rows."""
    columns = [Column("class", numeric=False), Column("objects"), Column("images")]
    prefixes = [f"{key} " for key in keyed(rows)] if len(rows) > 1 else [""]
    columns += [Column(f"{prefix}{metric}") for prefix in prefixes for metric in METRICS]
    lines: list[tuple[Cell | Value, ...]] = []
    for place in places:
        one = classes.classes[place]
        line: list[Cell | Value] = [one.name, one.num_objects, one.num_images]
        for row in rows:
            ap = compared_cell(classes, row, place) if len(rows) > 1 else ap_cell(classes, row, place)
            line += [ap, *(metric_cell(row, place, metric) for metric in METRICS[1:])]
        lines.append(tuple(line))
    return Table(title="", columns=tuple(columns), rows=tuple(lines))


def _key(rows: Sequence[RowOfClasses]) -> Drawing:
    called = [f"{row.label} (reference)" if row.is_reference else row.label for row in rows]
    return row_key(dict(zip(keyed(rows), called, strict=True)), "Which line is which row's")


def _part(
    classes: Classes, rows: Sequence[RowOfClasses], places: Sequence[int], most: int, summary: str
) -> Mapping[str, Any]:
    """Return what the template shows of some classes: their table, and drawings of so many that have an object."""
    measured = [_measured(classes, rows, place) for place in places if classes.classes[place].num_objects][:most]
    chunks = [measured[start : start + DOTS_IN_ONE] for start in range(0, len(measured), DOTS_IN_ONE)]
    reference = next((place for place, row in enumerate(rows) if row.is_reference), None)
    dots = [class_dots(chunk, keyed(rows), reference, f"AP of each class: {classes.title}") for chunk in chunks]
    said = "Precision against recall, as COCO's envelope has it: the highest at that recall or a higher one"
    has_seeds = any(len(row.row.seeds) > 1 for one in rows for row in one.by_class[:1])
    return page_table(classes, rows, places).html_part() | {
        "summary": summary,
        "dots": to_svg(dots[0]) if len(dots) == 1 else small_multiples(dots),
        "curves": small_multiples([precision_recall(one) for one in measured]),
        "said": f"{said}{', the mean over seeds' * has_seeds}.",
    }


def _measured(classes: Classes, rows: Sequence[RowOfClasses], place: int) -> ClassMeasurement:
    one = classes.classes[place]
    values = []
    for row in rows:
        found = classes.estimate(row, place)
        interval = (found.low, found.high) if found else None
        values.append(Measurement(label=row.label, value=row.by_class[place].mean("AP"), interval=interval))
    images = f"{one.num_images:,} image{'s' * (one.num_images > 1)}"
    return ClassMeasurement(
        name=one.name,
        said=f"{one.num_objects:,} object{'s' * (one.num_objects > 1)} in {images}",
        values=values,
        curves=[np.nan_to_num(row.precision[:2, :, place]).tolist() for row in rows],
    )
