"""The misalignment table: how well the scores of each row rank boxes by their placement, and what NMS throws away."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator import names
from orchestrator.experiment.load import Experiment
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value
from orchestrator.report.results.rows import RowResult, measured_on

MISALIGNMENT_COLUMNS = {
    "rank_correlation": Column("rank corr.", digits=3),
    "rank_correlation_well_placed": Column("on IoU ≥ 0.5", digits=3),
    "ece": Column("ECE"),
    "oracle_AP": Column("oracle AP"),
    "oracle_nms_AP": Column("oracle NMS AP"),
    "dropped_better": Column("better dropped", digits=2),
    "objects_lost": Column("objects lost, %"),
}
"""By the names of model.evaluation.misalignment."""
HIGHEST, LOWEST = ("rank_correlation", "rank_correlation_well_placed"), ("ece", "dropped_better", "objects_lost")
"""The statistics of which the highest, or the lowest, is the best; an oracle's AP is a limit, and no merit of a row."""
MISALIGNMENT_NOTES = (
    "rank corr.: Spearman's, of fused score and IoU over detections, and over those with an IoU of at least 0.5.",
    "ECE: expected calibration error of the fused score as an estimate of the IoU, ten bins, 0 to 100.",
    "oracle AP: these detections, ranked by their true IoU; oracle NMS AP: NMS itself ranks by it.",
    "better dropped: boxes per image with an IoU of at least 0.5 that NMS dropped for one that lies worse; objects "
    "lost: the share of objects for which there was such a box.",
)


def misalignment_table(experiment: Experiment, rows: Sequence[RowResult]) -> Table:
    """Show the statistics of each row of an experiment as far as MLflow holds them, the best of each in bold."""
    columns = [Column("row", numeric=False), Column("AP"), *MISALIGNMENT_COLUMNS.values()]
    lines: list[tuple[Cell | Value, ...]]
    lines = [(row.row.label, Cell(row.mean("AP"), spread=row.std("AP")), *_cells(row)) for row in rows]
    states = [row.state for row in rows]
    if any(states):
        columns.append(Column("state", numeric=False))
        lines = [(*line, state) for line, state in zip(lines, states, strict=True)]
    notes = [
        f"Measured on {'; '.join(measured_on(rows))}.",
        *MISALIGNMENT_NOTES,
        "In bold: the best as measured; no interval is asked.",
    ]
    old = [row.row.label for row in rows if row.by_seed and not is_measured(row)]
    if old:
        notes.append(
            f"Scored before this was measured: {', '.join(old)}. To measure them, delete their evaluations in MLflow "
            "and submit again; nothing is trained for it."
        )
    return Table(
        title=f"Misalignment: {experiment.title}",
        caption="How well do scores rank boxes by their placement, and what does NMS throw away?",
        columns=tuple(columns),
        rows=tuple(embolden(lines)),
        notes=tuple(notes),
    )


def has_several_heads(experiment: Experiment) -> bool:
    """Say whether the rows of a table differ in where the confidence branch sits, or in whether there is one."""
    branches = [row.train.model.confidence for row in experiment.rows]
    return len({branch and branch.tower for branch in branches}) > 1


def is_measured(row: RowResult) -> bool:
    """Say whether MLflow holds what the scores of a row say of placement, for a seed at least."""
    return any(name.startswith(f"{names.MISALIGNMENT}/") for numbers in row.by_seed.values() for name in numbers)


def statistics_cells(statistics: Mapping[str, float | None]) -> list[Cell]:
    """Return the cells under MISALIGNMENT_COLUMNS of one evaluation."""
    return [Cell(statistics.get(name), absent=NOT_APPLICABLE) for name in MISALIGNMENT_COLUMNS]


def embolden(lines: Sequence[tuple[Cell | Value, ...]]) -> list[tuple[Cell | Value, ...]]:
    """Set the best number of each statistic in bold; a line is label, AP, and the cells of each of them."""
    changed = [list(line) for line in lines]
    for place, (name, column) in enumerate(MISALIGNMENT_COLUMNS.items(), start=2):
        cells = [cell for line in lines if isinstance(cell := line[place], Cell)]
        # As shown, so that rows that look equal are bold together.
        values = [round(cell.value, column.digits) for cell in cells if isinstance(cell.value, float)]
        if len(values) < 2 or name not in HIGHEST + LOWEST:
            continue
        best = max(values) if name in HIGHEST else min(values)
        for line, cell in zip(changed, cells, strict=True):
            if isinstance(cell.value, float) and round(cell.value, column.digits) == best:
                line[place] = replace(cell, bold=True)
    return [tuple(line) for line in changed]


def _cells(row: RowResult) -> list[Cell]:
    absent = NOT_APPLICABLE if is_measured(row) else Cell(None).absent
    columns = [f"{names.MISALIGNMENT}/{name}" for name in MISALIGNMENT_COLUMNS]
    return [Cell(row.mean(name), spread=row.std(name), absent=absent) for name in columns]
