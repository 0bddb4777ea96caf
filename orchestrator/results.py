"""What `rnc report` says: our numbers, the paper's beside them, and what is not there yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from orchestrator.experiment import Cited, Experiment, Row
from orchestrator.plan import (
    Ledger,
    row_keys,
    why_evaluation_is_missing,
    why_training_is_missing,
)
from orchestrator.table import NOT_APPLICABLE, Cell, Column, Table, Value


def results_table(experiment: Experiment, ledger: Ledger) -> Table:
    """Show our numbers, the paper's beside them where the experiment has them, and the best of each column in bold."""
    results = [_result(row, ledger) for row in experiment.rows]
    numbers = [row.paper for row in experiment.rows] + [line.paper for line in experiment.cited]
    in_paper = [metric for metric in experiment.columns if any(metric in one for one in numbers)]
    columns = [Column("row", numeric=False)]
    for metric in experiment.columns:
        columns.append(Column(metric))
        if metric in in_paper:
            columns += [Column(f"{metric}, paper"), Column(f"{metric}, Δ", signed=True)]
    best = {metric: _best(results, metric) for metric in experiment.columns}
    rows = [[result.row.label, *_numbers(result, experiment.columns, in_paper, best)] for result in results]
    if experiment.reference is not None and len(results) > 1:
        columns.append(Column(f"{experiment.columns[0]} over reference", signed=True))
        for row, gain in zip(rows, _gains(results, experiment), strict=True):
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
        notes=tuple(_notes(experiment, bool(in_paper))),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Result:
    row: Row
    is_scored: bool
    """Whether the ledger holds numbers of any seed."""
    means: Mapping[str, float]
    spreads: Mapping[str, float]
    state: str
    """Empty for a row that is complete."""

    def cell(self, metric: str, bold: bool) -> Cell:
        """Show a metric: `n/a` where the row was scored and its data set has nothing to measure it on."""
        absent = NOT_APPLICABLE if self.is_scored else Cell(None).absent
        return Cell(self.means.get(metric), spread=self.spreads.get(metric), bold=bold, absent=absent)


def _result(row: Row, ledger: Ledger) -> _Result:
    """Gather a row's numbers over the seeds that the ledger holds."""
    reasons: dict[int, str] = {}
    found: list[Mapping[str, float]] = []
    for seed, trained, scored in row_keys(row):
        reason = why_evaluation_is_missing(ledger, trained, scored)
        if reason is None:
            found.append(ledger.evaluations[scored].metrics)
        elif reason.startswith("waits"):
            reasons[seed] = why_training_is_missing(ledger, trained) or reason
        else:
            reasons[seed] = reason
    values = {metric: [metrics[metric] for metrics in found if metric in metrics] for metric in _names(found)}
    return _Result(
        row=row,
        is_scored=bool(found),
        means={metric: fmean(numbers) for metric, numbers in values.items()},
        spreads={metric: stdev(numbers) for metric, numbers in values.items() if len(numbers) > 1},
        state=_state(row, reasons),
    )


def _names(found: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(metric for metrics in found for metric in metrics))


def _state(row: Row, reasons: Mapping[int, str]) -> str:
    if not reasons:
        return ""
    why = "; ".join(f"{reason} (seed {seed})" if len(row.seeds) > 1 else reason for seed, reason in reasons.items())
    if len(set(reasons.values())) == 1 and len(reasons) == len(row.seeds):
        why = next(iter(reasons.values()))
    done = len(row.seeds) - len(reasons)
    return (
        f"{done} of {len(row.seeds)} seeds: {why}" if done else "not run" if why == "never run" else f"not run: {why}"
    )


def _numbers(
    result: _Result, metrics: Sequence[str], in_paper: Sequence[str], best: Mapping[str, float | None]
) -> list[Cell | Value]:
    cells: list[Cell | Value] = []
    for metric in metrics:
        ours, theirs = result.means.get(metric), result.row.paper.get(metric)
        is_best = ours is not None and round(ours, 1) == best[metric]
        cells.append(result.cell(metric, is_best))
        if metric in in_paper:
            cells += [theirs, None if ours is None or theirs is None else ours - theirs]
    return cells


def _quoted(line: Cited, metrics: Sequence[str], in_paper: Sequence[str], width: int) -> list[Value]:
    """Show a line that is only cited: the paper's numbers, and none of ours."""
    cells: list[Value] = [line.label]
    for metric in metrics:
        cells += [None, line.paper.get(metric), None] if metric in in_paper else [None]
    return cells + [None] * (width - len(cells))


def _best(results: Sequence[_Result], metric: str) -> float | None:
    """Return the best mean as shown, so that rows that look equal are bold together; None without a contest."""
    means = [round(result.means[metric], 1) for result in results if metric in result.means]
    return max(means) if len(means) > 1 else None


def _gains(results: Sequence[_Result], experiment: Experiment) -> list[float | None]:
    """Return how far each row is above the reference, in the first column's metric."""
    means = [result.means.get(experiment.columns[0]) for result in results]
    labels = [result.row.label for result in results]
    base = means[labels.index(experiment.reference or "")]
    return [
        None if base is None or mean is None or label == experiment.reference else mean - base
        for mean, label in zip(means, labels, strict=True)
    ]


def _notes(experiment: Experiment, compares: bool) -> list[str]:
    notes = []
    for seeds in dict.fromkeys(row.seeds for row in experiment.rows):
        listed = ", ".join(map(str, seeds))
        notes.append(f"One seed: {listed}." if len(seeds) == 1 else f"Mean ± std over {len(seeds)} seeds: {listed}.")
    ours = list(dict.fromkeys(_data(row) for row in experiment.rows))
    elsewhere = ours != ["COCO val2017"]
    if compares and elsewhere:
        notes.append(f"paper: COCO val2017, ours: {'; '.join(ours)}.")
    else:
        notes.append(f"Measured on {'; '.join(ours)}.")
    if experiment.reference is not None:
        notes.append(f"Reference: {experiment.reference}.")
    notes += [f"Cited, not run: {line.label}, {line.source}." for line in experiment.cited]
    return notes


def _data(row: Row) -> str:
    data = row.train.data
    is_coco = data.dataset == "coco" and row.split in ("train2017", "val2017", "test-dev2017")
    name = f"{'COCO' if is_coco else data.dataset} {row.split}"
    return name if data.num_val_images is None else f"{name}, first {data.num_val_images} images"
