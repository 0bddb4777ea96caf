"""Figures of a results table, and its rows as a matrix where they are trainings by values of one setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from model.settings import to_dict
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import RUNNING, STOPPED_EARLY, train_key
from orchestrator.figures.drawing import Drawing, Point, small_multiples, to_svg
from orchestrator.figures.page import captioned
from orchestrator.figures.plots import Measurement, curve_plot, dot_plot
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Group, Table, Value, show
from orchestrator.report.results.rows import RowResult, with_references
from orchestrator.report.results.table import PAPER, paper_beside


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Rows that differ in their training and in one number of the scoring, and in nothing else."""

    setting: str
    """The number that varies, as labels or settings call it."""
    heads: tuple[tuple[str, tuple[tuple[float, int], ...]], ...]
    """The label of each training, and the (value, place among the rows) of each of its rows, by value."""


def figures(experiment: Experiment, rows: Sequence[RowResult]) -> str:
    """Draw what a table shows, as SVG; empty where nothing is measured, and the paper gives no curve."""
    grid = row_grid(rows)
    curves = setting_curves(experiment, rows)
    if grid is None or not curves:
        dots = "".join(map(to_svg, row_dots(experiment, rows)))
        # A page that is wide enough has the intervals in the table.
        return captioned(dots, "", "below-forest") if dots and _has_forest(experiment, rows) else dots
    said = f"Each metric against {grid.setting}, a line for each training."
    if any(row.row.paper for row in rows):
        called = paper_beside(experiment).called
        apart = "" if called == PAPER else ", on an axis of its own: levels of different data do not compare"
        said += f" In grey and dashed: the paper, on COCO 2017{apart}."
    return captioned(small_multiples(curves), said)


def drawings(experiment: Experiment, rows: Sequence[RowResult]) -> list[Drawing]:
    """Return what is drawn of a table, for a file of its own."""
    return setting_curves(experiment, rows) or row_dots(experiment, rows)


def row_dots(experiment: Experiment, rows: Sequence[RowResult]) -> list[Drawing]:
    """Draw the first column's metric of each row, its 95 % interval, and a line through the reference row."""
    metric = experiment.columns[0]
    measurements = []
    for row in rows:
        known = row.estimate(metric)
        interval = (known.low, known.high) if known else None
        # The table beside says the rest, such as after which epoch it was stopped, or why it failed.
        absent = next((said for said in (STOPPED_EARLY, RUNNING) if row.state.startswith(said)), "not run")
        if row.by_seed:
            absent = NOT_APPLICABLE
        measured = Measurement(label=row.row.label, value=row.mean(metric), interval=interval, absent=absent)
        measurements.append(measured)
    if all(one.value is None for one in measurements):
        return []
    return [dot_plot(metric, measurements, experiment.reference, experiment.title)]


def setting_curves(experiment: Experiment, rows: Sequence[RowResult]) -> list[Drawing]:
    """Draw each metric against the one numeric setting of the scoring that varies, a line for each training.

    The paper's lines stand beside ours, or below them on an axis of their own where ours are of other data.
    """
    grid = row_grid(rows)
    if grid is None:
        return []
    called = paper_beside(experiment).called
    drawn = []
    for metric in experiment.columns:
        ours: dict[str, list[Point]] = {}
        papers: dict[str, list[Point]] = {}
        for label, held in grid.heads:
            means = [(x, rows[place].mean(metric)) for x, place in held]
            numbers = [(x, rows[place].row.paper.get(metric)) for x, place in held]
            ours[label] = [(x, mean) for x, mean in means if mean is not None]
            papers[f"{label}: {called}"] = [(x, number) for x, number in numbers if number is not None]
        if any(ours.values()) or any(papers.values()):
            plot = curve_plot(metric, grid.setting, ours, experiment.title, papers=papers, is_apart=called != PAPER)
            drawn.append(plot)
    return drawn


def row_grid(rows: Sequence[RowResult]) -> Grid | None:
    """Return the rows as trainings by values of the one setting of the scoring that varies; None if they are none.

    The setting is a number, and some training has three values of it, each of them once.
    """
    settings = [to_dict(row.row.inference) for row in rows]
    varied = [name for name in (settings[0] if settings else ()) if len({one[name] for one in settings}) > 1]
    if len(varied) != 1:
        return None
    values = [one[varied[0]] for one in settings]
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        return None
    trainings: dict[str, list[tuple[float, int]]] = {}
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        trainings.setdefault(train_key(row.row.train), []).append((float(value), place))
    held = [tuple(sorted(of_one)) for of_one in trainings.values()]
    if max(map(len, held)) < 3 or any(len(dict(of_one)) < len(of_one) for of_one in held):
        return None
    labels = [_common_label([rows[place].row.label for _, place in of_one]) for of_one in held]
    setting = varied[0].replace("_", " ")
    # Of "IoU-aware Net, alpha" the last word is what these labels call the setting; of "rate 0.01, at" it is none.
    word, *others = {label.rpartition(", ")[2] if ", " in label else "" for label in labels}
    if not others and word.isalpha() and len(word) > 2:
        setting, labels = word, [label.rpartition(", ")[0] for label in labels]
    return Grid(setting=setting, heads=tuple(zip(labels, held, strict=True)))


def with_matrix(experiment: Experiment, rows: Sequence[RowResult], table: Table) -> Table:
    """Let people see trainings by values as a matrix: values across, and a line for each training, metric by metric.

    Args:
        experiment: of the table.
        rows: as measured.
        table: of these rows; programs still read it row by row.
    """
    grid = row_grid(rows)
    if grid is None or len(grid.heads) < 2 or experiment.cited:
        return table
    paper = paper_beside(experiment)
    values = _texts(sorted({value for _, held in grid.heads for value, _ in held}))
    columns = [Column("training", numeric=False, heading=grid.setting)]
    for shown in values.values():
        columns.append(Column(shown))
        columns += [replace(column, heading="") for column in paper.columns(shown, always=True)]
    over = f"{experiment.columns[0]} over reference"
    names = [column.name for column in table.columns]
    lines: list[tuple[Cell | Value, ...]] = []
    groups = []
    shows = paper.called if table.groups and table.groups[0].shows else ""
    for metric in [*experiment.columns, over]:
        if metric not in names:
            continue
        # Where rows have references of their own, the notes name them.
        is_one = metric == over and not any(row.row.reference for row in rows)
        heading = f"{experiment.columns[0]} over {experiment.reference}" if is_one else metric
        groups.append(Group(len(lines), heading, shows))
        for label, held in grid.heads:
            lines.append((label, *_cells_of(table, metric, dict(held), values, columns)))
    notes = list(table.notes)
    if shows:
        notes.insert(0, table.groups[0].heading + ".")
    notes += _left_out(rows, is_begun=not shows)
    arranged = replace(table, columns=tuple(columns), rows=tuple(lines), groups=tuple(groups), notes=tuple(notes))
    return replace(table, compact=replace(arranged, rules_before=(), folds=True))


def _texts(values: Sequence[float]) -> dict[float, str]:
    """Return the texts of different numbers, of six digits or as many as tell them apart; 17 are one float's alone."""
    by_digits = ({value: f"{value:.{digits}g}" for value in values} for digits in range(6, 18))
    return next(texts for texts in by_digits if len(set(texts.values())) == len(values))


def _cells_of(
    table: Table, metric: str, held: dict[float, int], values: Mapping[float, str], columns: Sequence[Column]
) -> list[Cell]:
    """Return what a line of the matrix shows of a metric: for each value its cell, and those of its details."""
    places = {column.name: place for place, column in enumerate(table.columns)}
    cells, found = table.cells(), []
    for value, shown in values.items():
        for column in columns[1:]:
            if shown not in (column.name, column.under):
                continue
            place = places.get(column.name.replace(shown, metric, 1))
            if place is None or value not in held:
                found.append(Cell(None, absent="" if column.under else Cell(None).absent))
                continue
            cell = cells[held[value]][place]
            if table.columns[place].signed and not column.signed and cell.value is not None:
                # The columns of a matrix hold levels; the interval is in the table of rows.
                cell = Cell(show(replace(cell, interval=None), table.columns[place]))
            found.append(replace(cell, absent="ref.") if cell.absent == "reference" else cell)
    return found


def _left_out(rows: Sequence[RowResult], *, is_begun: bool) -> list[str]:
    """Say what a matrix has no column for: intervals, and why rows are missing."""
    states: dict[str, list[str]] = {}
    for row in rows:
        states.setdefault(row.state, []).append(row.row.label)
    notes = [f"{', '.join(labels)}: {state}." for state, labels in states.items() if state and is_begun]
    return [*notes, f"The {len(rows)} rows one by one, with their intervals: rnc report FILE --rows."]


def _has_forest(experiment: Experiment, rows: Sequence[RowResult]) -> bool:
    pairs = with_references(experiment, rows)
    return any(row.difference(base, experiment.columns[0]) for row, base in pairs if base is not None)


def _common_label(labels: Sequence[str]) -> str:
    """The words with which all labels begin."""
    words = [label.split() for label in labels]
    common = [first for first, *others in zip(*words, strict=False) if all(other == first for other in others)]
    return " ".join(common).rstrip(",;:") or labels[0]
