"""Results tables: the rows of an experiment with the paper's numbers beside ours, and their misalignment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from model.names import LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE
from orchestrator import names
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import (
    STOPPED_EARLY,
    Ledger,
    row_keys,
    why_evaluation_is_missing,
    why_training_is_missing,
)
from orchestrator.experiment.prepare import require_one_version
from orchestrator.experiment.rows import Cited, Row, SeedRule
from orchestrator.experiment.seeds import looks, note_on_looks
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value

if TYPE_CHECKING:
    from orchestrator.report.intervals import Estimate, Resamples, SeedValues

PAPERS_DATA = "COCO val2017"
EXCLUDES_ZERO = "*"
"""Marks a difference whose 95 % interval excludes 0."""
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowResult:
    """The numbers of one row of a table, as far as it is measured."""

    row: Row
    by_seed: Mapping[int, Mapping[str, float]]
    """The numbers of each seed that the ledger holds: those of misalignment as `misalignment/ece`, and losses of
    the last updates as `train/loss_box`."""
    resampled: Mapping[int, "Resamples"]
    """[3, resamples] of each such seed whose matches are known."""
    state: str
    """Why it is not complete; empty for a row that is."""

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds; None where there is nothing to measure, or nothing measured."""
        values = self._values(metric)
        return fmean(values) if values else None

    def std(self, metric: str) -> float | None:
        """Return the sample standard deviation over seeds; None of less than two."""
        values = self._values(metric)
        return stdev(values) if len(values) > 1 else None

    def estimate(self, metric: str, level: float = 0.95) -> "Estimate | None":
        """Return the mean with its interval; None where it is not known."""
        from orchestrator.report.intervals import estimate

        values = self._seed_values(metric)
        return estimate(values, level) if values else None

    def difference(self, other: "RowResult", metric: str, level: float = 0.95) -> "Estimate | None":
        """Return how far it is above another row, with its interval; None where that is not known.

        Of rows with other seeds it is the difference on the seeds that both have.
        """
        from orchestrator.report.intervals import difference

        ours, theirs = self._seed_values(metric), other._seed_values(metric)
        return difference(ours, theirs, level) if ours and theirs else None

    def anytime_difference(self, other: "RowResult", metric: str, rule: SeedRule) -> "Estimate | None":
        """Return the difference with the interval that all looks so far have in common; see `looks` of seeds.

        Once a look excludes 0, so does this. Looks that have nothing in common leave the last one.
        """
        paired = [seed for seed in self.by_seed if seed in other.by_seed]
        found = None
        for look in looks(rule, len(paired)):
            ours, theirs = (row._of_seeds(paired[: look.num_seeds]) for row in (self, other))
            latest = ours.difference(theirs, metric, look.level)
            if latest is None:
                return None
            low, high = (latest.low, latest.high)
            if found is not None and max(low, found.low) <= min(high, found.high):
                low, high = max(low, found.low), min(high, found.high)
            found = replace(latest, low=low, high=high)
        return found

    def _of_seeds(self, seeds: Sequence[int]) -> "RowResult":
        return replace(
            self,
            by_seed={seed: self.by_seed[seed] for seed in seeds},
            resampled={seed: self.resampled[seed] for seed in seeds if seed in self.resampled},
        )

    def _values(self, metric: str) -> list[float]:
        return [numbers[metric] for numbers in self.by_seed.values() if metric in numbers]

    def _seed_values(self, metric: str) -> "SeedValues | None":
        if not self.resampled:
            return None
        from orchestrator.report.intervals import RESAMPLED, SeedValues

        if metric not in RESAMPLED:
            return None
        place = RESAMPLED.index(metric)
        return SeedValues(
            measured={seed: numbers[metric] for seed, numbers in self.by_seed.items() if metric in numbers},
            resampled={seed: numbers[place] for seed, numbers in self.resampled.items()},
        )


def measure(
    experiment: Experiment, ledger: Ledger, resampled: "Mapping[str, Resamples] | None" = None
) -> tuple[RowResult, ...]:
    """Gather the rows of a table; `resampled` by evaluation key.

    Raises:
        UserError: rows, or seeds of a row, rest on two versions of the same data.
    """
    require_one_version(experiment, ledger)
    return tuple(measure_row(row, ledger, resampled or {}) for row in experiment.rows)


def measure_row(row: Row, ledger: Ledger, resampled: "Mapping[str, Resamples]") -> RowResult:
    """Gather one row; `resampled` by evaluation key."""
    reasons: dict[int, str] = {}
    found: dict[int, Mapping[str, float]] = {}
    known: dict[int, Resamples] = {}
    for seed, trained, scored in row_keys(row):
        reason = why_evaluation_is_missing(ledger, trained, scored)
        if reason is None:
            record = ledger.evaluations[scored]
            found[seed] = {**record.metrics, **record.misalignment, **_losses(ledger, trained)}
            known |= {seed: resampled[scored]} if scored in resampled else {}
        elif reason.startswith("waits"):
            # Why the training is missing says more than that it is.
            reasons[seed] = why_training_is_missing(ledger, trained) or reason
        else:
            reasons[seed] = reason
    return RowResult(row=row, by_seed=found, resampled=known, state=_state(row, reasons))


def anytime_differences(experiment: Experiment, results: Sequence[RowResult]) -> dict[str, "Estimate"]:
    """Return how far each row is above the reference, by label, where seeds are added until that is decided.

    Rows that are not complete, such as one that failed, and those without intervals are left out.
    """
    rule, metric = experiment.seed_rule, experiment.columns[0]
    (base,) = [result for result in results if result.row.label == experiment.reference]
    if rule is None or base.state:
        return {}
    others = [result for result in results if result is not base and not result.state]
    found = {result.row.label: result.anytime_difference(base, metric, rule) for result in others}
    return {label: gain for label, gain in found.items() if gain is not None}


def results_table(experiment: Experiment, results: Sequence[RowResult], *, is_resampled: bool = False) -> Table:
    """Show our numbers, the paper's beside them where the experiment has them, and the best of each column in bold.

    Args:
        experiment: one table.
        results: its rows, measured; with resamples, the difference to the reference row has its 95 % interval.
        is_resampled: whether resamples were asked for, so that it is worth saying where they lack.
    """
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
        notes=(*_notes(experiment, bool(in_paper)), *_notes_on_gains(experiment, results, gains, is_resampled)),
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
    measured_on = "; ".join(dict.fromkeys(data_of(row) for row in experiment.rows))
    notes = [f"Measured on {measured_on}.", *MISALIGNMENT_NOTES]
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


def data_of(row: Row) -> str:
    """Name what a row is measured on."""
    data = row.train.data
    is_coco = data.dataset == "coco" and row.split in ("train2017", "val2017", "test-dev2017")
    name = f"{'COCO' if is_coco else data.dataset} {row.split}"
    is_cut = row.split == data.val_split and data.num_val_images is not None
    return f"{name}, first {data.num_val_images} images" if is_cut else name


def has_several_heads(experiment: Experiment) -> bool:
    """Say whether the rows of a table differ in where the confidence branch sits, or in whether there is one."""
    branches = [row.train.model.confidence for row in experiment.rows]
    return len({branch and branch.tower for branch in branches}) > 1


def is_measured(row: RowResult) -> bool:
    """Say whether MLflow holds what the scores of a row say of placement, for a seed at least."""
    return any(name.startswith(f"{names.MISALIGNMENT}/") for numbers in row.by_seed.values() for name in numbers)


def interval_note(estimates: Sequence["Estimate"]) -> str:
    """Say what the intervals of a table rest on, and what would narrow them."""
    from orchestrator.report.intervals import NUM_RESAMPLES

    crossed = [one for one in estimates if one.num_seeds > 1]
    note = f"[95 % interval] by {NUM_RESAMPLES} paired resamples of the images"
    note += ", crossed with the seeds (Obuchowski and Rockette 1995)." if crossed else "."
    if len(crossed) < len(estimates):
        note += f" How far another seed would move it is not in it{', where there is but one' if crossed else ''}."
    known = [one for one in crossed if one.dominant]
    seeds, images = sum(one.variance_seeds for one in known), sum(one.variance_images for one in known)
    if known:
        share = round(100 * seeds / (seeds + images))
        parts = (f"Seeds make {share} %", "images", 100 - share, "seeds")
        if share < 50:
            parts = (f"Images make {100 - share} %", "seeds", share, "images")
        note += (
            f" {parts[0]} of the variance of these differences, {parts[1]} {parts[2]} %: more {parts[3]} narrow them."
        )
    return note


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


def _losses(ledger: Ledger, train_key: str) -> dict[str, float]:
    metrics = ledger.trainings[train_key].metrics if train_key in ledger.trainings else {}
    return {name: metrics[name] for name in (LOSS_CLASS, LOSS_BOX, LOSS_CONFIDENCE) if name in metrics}


def _state(row: Row, reasons: Mapping[int, str]) -> str:
    if not reasons:
        return ""
    why = "; ".join(f"{reason} (seed {seed})" if len(row.seeds) > 1 else reason for seed, reason in reasons.items())
    if len(set(reasons.values())) == 1 and len(reasons) == len(row.seeds):
        why = next(iter(reasons.values()))
    if done := len(row.seeds) - len(reasons):
        return f"{done} of {len(row.seeds)} seeds: {why}"
    if why.startswith(STOPPED_EARLY):
        return why
    return "not run" if why == "never run" else f"not run: {why}"


def _numbers(
    result: RowResult, metrics: Sequence[str], in_paper: Sequence[str], best: Mapping[str, float | None]
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


def _best(results: Sequence[RowResult], metric: str) -> float | None:
    """Return the best mean as shown, so that rows that look equal are bold together; None without a contest."""
    means = [round(mean, 1) for mean in (result.mean(metric) for result in results) if mean is not None]
    return max(means) if len(means) > 1 else None


def _gains(results: Sequence[RowResult], experiment: Experiment) -> list[Cell]:
    """Return how far each row is above the reference, in the first column's metric."""
    (base,) = [result for result in results if result.row.label == experiment.reference]
    return [Cell(None) if result is base else _gain(result, base, experiment) for result in results]


def _gain(result: RowResult, base: RowResult, experiment: Experiment) -> Cell:
    metric, rule = experiment.columns[0], experiment.seed_rule
    mean, reference = result.mean(metric), base.mean(metric)
    if mean is None or reference is None:
        return Cell(None)
    gain = result.anytime_difference(base, metric, rule) if rule else result.difference(base, metric)
    if gain is None:
        return Cell(mean - reference)
    return Cell(gain.value, interval=(gain.low, gain.high), mark=EXCLUDES_ZERO if gain.excludes_zero else "")


def _notes_on_gains(
    experiment: Experiment, results: Sequence[RowResult], gains: Sequence[Cell], is_resampled: bool
) -> list[str]:
    notes = []
    if any(gain.interval for gain in gains):
        base = next(result for result in results if result.row.label == experiment.reference)
        found = [result.difference(base, experiment.columns[0]) for result in results if result is not base]
        notes.append(interval_note([one for one in found if one is not None]))
        notes += [f"{EXCLUDES_ZERO} The interval excludes 0."] if any(gain.mark for gain in gains) else []
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
    notes += [note_on_looks(experiment)] if experiment.seed_rule else []
    notes += [f"Cited, not run: {line.label}, {line.source}." for line in experiment.cited]
    return notes


def _cells(row: RowResult) -> list[Cell]:
    absent = NOT_APPLICABLE if is_measured(row) else Cell(None).absent
    columns = [f"{names.MISALIGNMENT}/{name}" for name in MISALIGNMENT_COLUMNS]
    return [Cell(row.mean(name), spread=row.std(name), absent=absent) for name in columns]
