"""The classes of an experiment on a page: their table, AP as dots with intervals, and precision by recall."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.figures.drawing import Drawing, small_multiples, svg_sheet, to_svg
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


def classes_section(classes: Classes, anchor: str) -> Section:
    """Return the part of a page; with many classes the least first, and all but those folded."""
    rows = leading_rows(classes.rows, MOST_LINES)
    is_long = len(classes.classes) > OPEN_CLASSES
    held = [one.place for one in classes.classes if one.num_objects]
    places = [place for place in order_of(classes, rows[0], by_ap=is_long) if place in set(held)]
    parts = [_part(classes, rows, places[:OPEN_CLASSES], "")] if places else []
    if rest := places[OPEN_CLASSES:MOST_CURVES]:
        summary = f"{len(rest)} more classes" + f" of {len(places) - OPEN_CLASSES}" * (len(places) > MOST_CURVES)
        parts.append(_part(classes, rows, rest, summary))
    table = page_table(classes, rows, is_long=is_long)
    title = f"{classes.title}: classes"
    html = fill(
        "classes.html",
        anchor=anchor,
        title=title,
        caption="Which classes does it find well, and which not?",
        key=to_svg(_key(rows)) if len(rows) > 1 else "",
        parts=parts,
        **table.html_part(),
    )
    return Section(title=title, anchor=anchor, html=html)


def curves_sheet(classes: Classes, label: str) -> str:
    """Return AP of each class and its curves as one SVG file; empty where no class has an object."""
    rows = list(classes.rows)
    held = [place for place in order_of(classes, rows[0], by_ap=True) if classes.classes[place].num_objects]
    drawings: list[Drawing] = [precision_recall(_measured(classes, rows, place)) for place in held[:MOST_CURVES]]
    return svg_sheet(drawings, f"{label}: precision by recall of each class, the least AP first")


def page_table(classes: Classes, rows: Sequence[RowOfClasses], *, is_long: bool) -> Table:
    """Return a line for each class, with AP, AP50 and AP75 of each of the rows."""
    columns = [Column("class", numeric=False), Column("objects"), Column("images")]
    prefixes = [f"{key} " for key in keyed(rows)] if len(rows) > 1 else [""]
    columns += [Column(f"{prefix}{metric}") for prefix in prefixes for metric in METRICS]
    lines: list[tuple[Cell | Value, ...]] = []
    for place in order_of(classes, rows[0], by_ap=is_long):
        one = classes.classes[place]
        line: list[Cell | Value] = [one.name, one.num_objects, one.num_images]
        for row in rows:
            ap = compared_cell(classes, row, place) if len(rows) > 1 else ap_cell(classes, row, place)
            line += [ap, *(metric_cell(row, place, metric) for metric in METRICS[1:])]
        lines.append(tuple(line))
    return Table(title="", columns=tuple(columns), rows=tuple(lines), notes=tuple(notes_on(classes, rows)))


def _key(rows: Sequence[RowOfClasses]) -> Drawing:
    called = [f"{row.label} (reference)" if row.is_reference else row.label for row in rows]
    return row_key(dict(zip(keyed(rows), called, strict=True)), "Which line is which row's")


def _part(classes: Classes, rows: Sequence[RowOfClasses], places: Sequence[int], summary: str) -> Mapping[str, Any]:
    measured = [_measured(classes, rows, place) for place in places]
    chunks = [measured[start : start + DOTS_IN_ONE] for start in range(0, len(measured), DOTS_IN_ONE)]
    reference = next((place for place, row in enumerate(rows) if row.is_reference), None)
    dots = [class_dots(chunk, keyed(rows), reference, f"AP of each class: {classes.title}") for chunk in chunks]
    return {
        "summary": summary,
        "dots": to_svg(dots[0]) if len(dots) == 1 else small_multiples(dots),
        "curves": small_multiples([precision_recall(one) for one in measured]),
        "said": "Precision against recall, as COCO's envelope has it: the highest at that recall or a higher one.",
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
