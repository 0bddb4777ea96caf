"""What `rnc report` says: our numbers, the paper's beside them, and what is not there yet."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.experiment.load import Cited, Experiment
from orchestrator.experiment.plan import Ledger
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value
from orchestrator.report.measured import PAPERS_DATA, Measured, data_of, measure

if TYPE_CHECKING:
    from orchestrator.report.bootstrap import Resamples

SURE = "*"
"""Marks a difference whose 95 % interval excludes 0."""


def results_table(experiment: Experiment, ledger: Ledger, resampled: "Mapping[str, Resamples] | None" = None) -> Table:
    """Show our numbers, the paper's beside them where the experiment has them, and the best of each column in bold.

    Args:
        experiment: one table.
        ledger: what is measured.
        resampled: by evaluation key; with it, the difference to the reference row has its 95 % interval.
    """
    results = measure(experiment, ledger, resampled)
    numbers = [row.paper for row in experiment.rows] + [line.paper for line in experiment.cited]
    in_paper = [metric for metric in experiment.columns if any(metric in one for one in numbers)]
    columns = [Column("row", numeric=False)]
    for metric in experiment.columns:
        columns.append(Column(metric))
        if metric in in_paper:
            columns.append(Column(f"{metric}, paper", under=metric, detail="paper"))
            columns.append(Column(f"{metric}, Δ", signed=True, under=metric, detail="difference"))
    best = {metric: _best(results, metric) for metric in experiment.columns}
    rows = [[result.row.label, *_numbers(result, experiment.columns, in_paper, best)] for result in results]
    gains: list[Cell] = []
    if experiment.reference is not None and len(results) > 1:
        columns.append(Column(f"{experiment.columns[0]} over reference", signed=True))
        gains = _gains(results, experiment)
        for row, gain in zip(rows, gains, strict=True):
            row.append(gain)
    if any(result.state for result in results):
        columns.append(Column("state", numeric=False))
        for row, result in zip(rows, results, strict=True):
            row.append(result.state)
    quoted = [_quoted(line, experiment.columns, in_paper, len(columns)) for line in experiment.cited]
    return Table(
        title=experiment.title,
        caption=experiment.question,
        columns=tuple(columns),
        rows=(*map(tuple, rows), *map(tuple, quoted)),
        rules_before=(len(rows),) if quoted else (),
        notes=(*_notes(experiment, bool(in_paper)), *_notes_on_gains(results, gains, resampled is not None)),
    )


def _numbers(
    result: Measured, metrics: Sequence[str], in_paper: Sequence[str], best: Mapping[str, float | None]
) -> list[Cell | Value]:
    cells: list[Cell | Value] = []
    for metric in metrics:
        ours, theirs = result.mean(metric), result.row.paper.get(metric)
        is_best = ours is not None and round(ours, 1) == best[metric]
        # A row that was scored lacks a number only where its data set has nothing to measure it on.
        absent = NOT_APPLICABLE if result.by_seed else Cell(None).absent
        cells.append(Cell(ours, spread=result.std(metric), bold=is_best, absent=absent))
        if metric in in_paper:
            cells += [theirs, None if ours is None or theirs is None else ours - theirs]
    return cells


def _quoted(line: Cited, metrics: Sequence[str], in_paper: Sequence[str], width: int) -> list[Value]:
    """Show a line that is only cited: the paper's numbers, and none of ours."""
    cells: list[Value] = [line.label]
    for metric in metrics:
        cells += [None, line.paper.get(metric), None] if metric in in_paper else [None]
    return cells + [None] * (width - len(cells))


def _best(results: Sequence[Measured], metric: str) -> float | None:
    """Return the best mean as shown, so that rows that look equal are bold together; None without a contest."""
    means = [round(mean, 1) for mean in (result.mean(metric) for result in results) if mean is not None]
    return max(means) if len(means) > 1 else None


def _gains(results: Sequence[Measured], experiment: Experiment) -> list[Cell]:
    """Return how far each row is above the reference, in the first column's metric."""
    metric = experiment.columns[0]
    (base,) = [result for result in results if result.row.label == experiment.reference]
    return [Cell(None) if result is base else _gain(result, base, metric) for result in results]


def _gain(result: Measured, base: Measured, metric: str) -> Cell:
    mean, reference = result.mean(metric), base.mean(metric)
    if mean is None or reference is None:
        return Cell(None)
    gain = result.difference(base, metric)
    if gain is None:
        return Cell(mean - reference)
    return Cell(mean - reference, interval=(gain.low, gain.high), mark=SURE if gain.excludes_zero else "")


def _notes_on_gains(results: Sequence[Measured], gains: Sequence[Cell], is_resampled: bool) -> list[str]:
    notes = []
    if any(gain.interval for gain in gains):
        from orchestrator.report.intervals import NUM_RESAMPLES

        notes.append(f"[95 % interval] by {NUM_RESAMPLES} paired resamples of the images, and by seeds where several.")
        notes += [f"{SURE} The interval excludes 0."] if any(gain.mark for gain in gains) else []
    old = [result.row.label for result in results if len(result.resampled) < len(result.by_seed)]
    if gains and is_resampled and old:
        notes.append(f"No interval, for want of matches: {', '.join(old)}.")
    return notes


def _notes(experiment: Experiment, compares: bool) -> list[str]:
    notes = []
    for seeds in dict.fromkeys(row.seeds for row in experiment.rows):
        listed = ", ".join(map(str, seeds))
        notes.append(f"One seed: {listed}." if len(seeds) == 1 else f"Mean ± std over {len(seeds)} seeds: {listed}.")
    ours = list(dict.fromkeys(data_of(row) for row in experiment.rows))
    elsewhere = ours != [PAPERS_DATA]
    if compares and elsewhere:
        notes.append(f"paper: {PAPERS_DATA}, ours: {'; '.join(ours)}.")
    else:
        notes.append(f"Measured on {'; '.join(ours)}.")
    if experiment.reference is not None:
        notes.append(f"Reference: {experiment.reference}.")
    notes += [f"Cited, not run: {line.label}, {line.source}." for line in experiment.cited]
    return notes
