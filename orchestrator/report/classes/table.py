"""AP per class as a table: for people a line for each class, for programs one for each class and row."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.settings import suggestion
from orchestrator.errors import UserError
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value
from orchestrator.figures.texts import width
from orchestrator.report.classes.numbers import METRICS, Classes, RowOfClasses
from orchestrator.report.results.table import EXCLUDES_ZERO, FEW, FEW_IMAGES, interval_note

MOST_ROWS = 5
"""So many rows of an experiment have room beside the names of classes in 80 columns."""
LONGEST_NAME = 22
OVER = "AP over reference"


def classes_table(classes: Classes, label: str | None = None, *, by_ap: bool = False) -> Table:
    """Show AP of each class: of one row with its interval, of several side by side.

    Programs get a record for each class and row, with AP50, AP75 and all intervals.

    Args:
        classes: of one experiment, or of one scoring.
        label: of a row; None shows all, or the reference and the best where there are more than MOST_ROWS.
        by_ap: the classes of least AP first, by the first row that is shown; else they are by id.

    Raises:
        UserError: there is no row of that label, or it is not measured.
    """
    if label is None:
        rows = list(classes.rows)
    else:
        rows = [row for row in classes.rows if row.label == label]
        if not rows:
            lost = "; its matches are lost, or of other images" if label in classes.left_out else ""
            known = [row.label for row in classes.rows]
            raise UserError(f"--row: {label!r} is not measured class by class{lost}; {suggestion(label, known)}")
    shown = leading_rows(rows, MOST_ROWS)
    places = order_of(classes, shown[0], by_ap=by_ap)
    columns = (
        Column("class", numeric=False),
        Column("id"),
        Column("row", numeric=False),
        Column("objects"),
        Column("images"),
        *(Column(metric) for metric in METRICS),
        *([Column(OVER, signed=True)] if _compares(classes, rows) else []),
    )
    lines: list[tuple[Cell | Value, ...]] = []
    for place in places:
        one = classes.classes[place]
        for row in rows:
            numbers = [ap_cell(classes, row, place), *(metric_cell(row, place, metric) for metric in METRICS[1:])]
            gain = [_gain(classes, row, place)] if _compares(classes, rows) else []
            lines.append((one.name, one.id, row.label, one.num_objects, one.num_images, *numbers, *gain))
    table = Table(
        title=f"{classes.title}: AP of each class" + _whose(classes, rows),
        columns=columns,
        rows=tuple(lines),
        notes=tuple(notes_on(classes, shown)),
    )
    return replace(table, compact=_compact(classes, shown, places, table))


def tables_of(
    tables: Sequence[tuple[str, Classes | None]], label: str | None = None, *, by_ap: bool = False
) -> list[Table]:
    """Show the classes of each experiment that is measured and has the row; see `classes_table`.

    Args:
        tables: name and classes of each experiment.
        label: of a row.
        by_ap: the classes of least AP first.

    Raises:
        UserError: none is measured, or none has such a row.
    """
    measured = [classes for _, classes in tables if classes is not None]
    if not measured:
        listed = ", ".join(name for name, _ in tables)
        raise UserError(f"{listed}: no matches of any row are known, which tell AP of each class; submit it first")
    having = [one for one in measured if label is None or label in {row.label for row in one.rows}]
    return [classes_table(one, label, by_ap=by_ap) for one in having or measured[:1]]


def leading_rows(rows: Sequence[RowOfClasses], most: int) -> list[RowOfClasses]:
    """Return the rows that are shown where there is room for so many: the reference and the best, in their order."""
    ranked = sorted(rows, key=lambda row: (not row.is_reference, -np.nan_to_num(row.ap, nan=-1.0)))
    chosen = {row.label for row in ranked[:most]}
    return [row for row in rows if row.label in chosen][:most]


def order_of(classes: Classes, row: RowOfClasses, *, by_ap: bool) -> list[int]:
    """Return the places of the classes in the order in which they are shown; those without objects last by AP."""
    places = list(range(len(classes.classes)))
    means = [row.by_class[place].mean("AP") for place in places]
    return sorted(places, key=lambda place: (means[place] is None, means[place] or 0.0)) if by_ap else places


def ap_cell(classes: Classes, row: RowOfClasses, place: int) -> Cell:
    """Show AP of a class with its interval; not applicable without an object."""
    found = classes.estimate(row, place)
    cell = metric_cell(row, place, "AP")
    if found is None:
        return cell
    return replace(cell, interval=(found.low, found.high), mark=_few(classes, place))


def metric_cell(row: RowOfClasses, place: int, metric: str) -> Cell:
    """Show one of METRICS of a class."""
    return Cell(row.by_class[place].mean(metric), absent=NOT_APPLICABLE)


def keyed(rows: Sequence[RowOfClasses]) -> list[str]:
    """Return what rows are called where there is no room for their labels: A, B, C."""
    return [chr(ord("A") + place) for place in range(len(rows))]


def key_notes(rows: Sequence[RowOfClasses]) -> list[str]:
    """Say which row each letter is."""
    return [
        f"{key}: {row.label}{', the reference' * row.is_reference}." for key, row in zip(keyed(rows), rows, strict=True)
    ]


def _compact(classes: Classes, shown: Sequence[RowOfClasses], places: Sequence[int], table: Table) -> Table:
    """Return a line for each class: of one row with intervals, of several AP alone, a letter for each row."""
    alone = shown[0] if len(shown) == 1 else None
    compares = _compares(classes, shown)
    names = [(alone and "AP") or key for key in keyed(shown)]
    columns = [Column("class", numeric=False), Column("objects"), Column("images"), *map(Column, names)]
    columns += [Column(OVER, signed=True)] if alone and compares else []
    lines = []
    for place in places:
        one = classes.classes[place]
        line: list[Cell | Value] = [shortened(one.name), one.num_objects, one.num_images]
        if alone:
            line += [ap_cell(classes, alone, place), *([_gain(classes, alone, place)] if compares else [])]
        else:
            line += [compared_cell(classes, row, place) for row in shown]
        lines.append(tuple(line))
    notes = [*([] if alone else key_notes(shown)), *notes_on(classes, shown, links=True)]
    return replace(table, columns=tuple(columns), rows=tuple(lines), notes=tuple(notes))


def compared_cell(classes: Classes, row: RowOfClasses, place: int) -> Cell:
    """Show AP of a class without its interval, marked where the interval of its difference excludes 0."""
    gain = classes.difference(row, place)
    mark = EXCLUDES_ZERO if gain is not None and gain.excludes_zero else ""
    return replace(metric_cell(row, place, "AP"), mark=mark)


def shortened(name: str, most: int = LONGEST_NAME) -> str:
    """Cut a name that takes more columns of a terminal."""
    if width(name) <= most:
        return name
    while width(name) > most - 1:
        name = name[:-1]
    return name.rstrip() + "…"


def _gain(classes: Classes, row: RowOfClasses, place: int) -> Cell:
    base = classes.reference_of(row)
    if base is None:
        return Cell(None, absent="reference" if row.is_reference else NOT_APPLICABLE)
    gain = classes.difference(row, place)
    if gain is None:
        return Cell(row.by_class[place].gap(base.by_class[place], "AP"), absent=NOT_APPLICABLE)
    return Cell(gain.value, interval=(gain.low, gain.high), mark=EXCLUDES_ZERO if gain.excludes_zero else "")


def _whose(classes: Classes, rows: Sequence[RowOfClasses]) -> str:
    """Name the one row that is shown, unless the title is its label."""
    return f", {rows[0].label}" if len(rows) == 1 and rows[0].label != classes.title else ""


def _compares(classes: Classes, rows: Sequence[RowOfClasses]) -> bool:
    return any(classes.reference_of(row) is not None for row in rows)


def _few(classes: Classes, place: int) -> str:
    return FEW if classes.classes[place].num_images < FEW_IMAGES else ""


def notes_on(classes: Classes, shown: Sequence[RowOfClasses], *, links: bool = False) -> list[str]:
    """Say what the numbers of these rows rest on; with `links`, also how others are printed."""
    held = [one for one in classes.classes if one.num_objects]
    compares = _compares(classes, shown)
    notes = ["objects, images: objects to find, crowds left out, and images with one."]
    if lacking := len(classes.classes) - len(held):
        notes.append(f"{NOT_APPLICABLE}: no object to find ({lacking} class{'es' * (lacking > 1)}).")
    if len(shown) == 1:
        known = [found for one in held if (found := classes.estimate(shown[0], one.place)) is not None]
        # Without the share of the seeds, which is of differences to the reference.
        notes += [interval_note([replace(one, variance_images=0.0) for one in known])] if known else []
        if any(one.num_images < FEW_IMAGES for one in held):
            notes.append(f"{FEW} On fewer than {FEW_IMAGES} images: too few to tell, the interval is too narrow.")
    bases = [(row, classes.reference_of(row)) for row in shown]
    notes += [f"Reference of {row.label}: {one.label}." for row, one in bases if one and not one.is_reference]
    gains = [classes.difference(row, one.place) for row in shown for one in held] if compares else []
    if any(gain is not None and gain.excludes_zero for gain in gains):
        whose = "The interval" if len(shown) == 1 else "The 95 % interval of the difference to the reference"
        notes.append(f"{EXCLUDES_ZERO} {whose} excludes 0.")
        notes.append("Of 20 classes that do not differ, one does so by chance.")
    elif any(gains):
        notes.append("No 95 % interval of a difference to the reference excludes 0.")
    if links and len(shown) > 1:
        notes.append("Intervals, class by class: --row LABEL.")
    if len(shown) > 1 and len(classes.rows) > len(shown):
        others = "; others by --row LABEL" if links else ""
        notes.append(f"{len(shown)} of {len(classes.rows)} rows: the reference and the best{others}.")
    if classes.left_out:
        notes.append(f"Not here, for want of matches or on other images: {', '.join(classes.left_out)}.")
    return notes
