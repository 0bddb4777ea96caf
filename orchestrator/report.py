"""What the tables of a plan, of its progress and of its results say."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from orchestrator.experiment import Experiment, Resources, Row
from orchestrator.plan import (
    Ledger,
    Plan,
    TrainRun,
    row_keys,
    settings_that_differ,
    why_evaluation_is_missing,
    why_training_is_missing,
)
from orchestrator.table import NOT_APPLICABLE, Cell, Column, Table, Value


def plan_table(plan: Plan) -> Table:
    """Show one line for each training: what stands on it, and what of it is missing."""
    counts = plan_json(plan)
    missing = counts["missing"]
    return Table(
        title=f"Plan of suite {plan.suite}",
        columns=(
            Column("training", numeric=False),
            Column("key", numeric=False),
            Column("epochs"),
            Column("on", numeric=False),
            Column("evaluations"),
            Column("missing"),
            Column("why", numeric=False),
        ),
        rows=tuple(_plan_row(plan, run) for run in plan.trainings.values()),
        notes=(
            f"{_count(counts['rows'], 'row')} of {_count(len(plan.experiments), 'table')}:"
            f" {_count(counts['trainings'], 'training')}, {_count(counts['evaluations'], 'evaluation')}.",
            f"Missing: {_count(missing['trainings'], 'training')}, {_count(missing['evaluations'], 'evaluation')}."
            if any(missing.values())
            else "Nothing is missing.",
        ),
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for a program: counts, and a list of what is behind each."""
    return {
        "suite": plan.suite,
        "experiments": [experiment.name for experiment in plan.experiments],
        "rows": sum(len(experiment.rows) for experiment in plan.experiments),
        "trainings": len(plan.trainings),
        "evaluations": len(plan.evaluations),
        "missing": {"trainings": len(plan.missing_trainings), "evaluations": len(plan.missing_evaluations)},
        "training_list": [
            {
                "key": run.key,
                "label": run.label,
                "settings": settings_that_differ(run.config),
                "missing": plan.missing_trainings.get(run.key),
            }
            for run in plan.trainings.values()
        ],
        "evaluation_list": [
            {
                "key": evaluation.key,
                "train_key": evaluation.train_key,
                "split": evaluation.split,
                "settings": settings_that_differ(evaluation.inference),
                "places": [place._asdict() for place in evaluation.places],
                "missing": plan.missing_evaluations.get(evaluation.key),
            }
            for evaluation in plan.evaluations.values()
        ],
    }


def plans_json(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return several suites' plans for a program: the sums of their counts, and each plan."""
    suites = [plan_json(plan) for plan in plans]
    return {
        **{count: sum(suite[count] for suite in suites) for count in ("rows", "trainings", "evaluations")},
        "missing": {kind: sum(suite["missing"][kind] for suite in suites) for kind in ("trainings", "evaluations")},
        "suites": suites,
    }


def status_table(plan: Plan, ledger: Ledger) -> Table:
    """Show one line for each training: how far it is, and how fast."""
    return Table(
        title=f"Status of suite {plan.suite}",
        columns=(
            Column("training", numeric=False),
            Column("state", numeric=False),
            Column("epoch"),
            Column("loss", digits=3),
            Column("AP"),
            Column("images/s"),
            Column("ETA"),
            Column("scored"),
        ),
        rows=tuple(_status_row(plan, run, ledger) for run in plan.trainings.values()),
    )


def results_table(experiment: Experiment, ledger: Ledger) -> Table:
    """Show our numbers, the paper's beside them where the experiment has them, and the best of each column in bold."""
    results = [_result(row, ledger) for row in experiment.rows]
    in_paper = [metric for metric in experiment.columns if any(metric in row.paper for row in experiment.rows)]
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
    return Table(
        title=experiment.title,
        caption=experiment.question,
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
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
    return notes


def _data(row: Row) -> str:
    data = row.train.data
    is_coco = data.dataset == "coco" and row.split in ("train2017", "val2017", "test-dev2017")
    name = f"{'COCO' if is_coco else data.dataset} {row.split}"
    return name if data.num_val_images is None else f"{name}, first {data.num_val_images} images"


def _plan_row(plan: Plan, run: TrainRun) -> tuple[Value, ...]:
    evaluations = plan.evaluations_on(run.key)
    missing = [plan.missing_evaluations[e.key] for e in evaluations if e.key in plan.missing_evaluations]
    why = [f"training {plan.missing_trainings[run.key]}"] if run.key in plan.missing_trainings else []
    waiting = Counter(reason for reason in missing if not (why and reason == "waits for its training"))
    why += [f"{_count(number, 'evaluation')} {reason}" for reason, number in waiting.items()]
    return (
        run.label,
        run.key,
        run.config.schedule.epochs,
        _where(run.resources),
        len(evaluations),
        len(missing),
        "; ".join(why) or "complete",
    )


def _where(resources: Resources) -> str:
    if resources.gpus_per_worker == 0.0:
        return f"{_count(resources.num_workers, 'CPU worker')}"
    return f"{_count(resources.num_workers, 'worker')}, {resources.gpus_per_worker:g} GPU each"


def _status_row(plan: Plan, run: TrainRun, ledger: Ledger) -> tuple[Value, ...]:
    record = ledger.trainings.get(run.key)
    metrics = record.metrics if record else {}
    scored = plan.evaluations_on(run.key)
    done = sum(evaluation.key not in plan.missing_evaluations for evaluation in scored)
    reason = why_training_is_missing(ledger, run.key)
    running = record is not None and record.status == "RUNNING"
    return (
        run.label,
        "finished" if reason is None else f"waiting ({reason})" if record is None else reason,
        f"{round(metrics.get('train/epoch', 0.0), 1):g}/{run.config.schedule.epochs}",
        metrics.get("train/loss"),
        metrics.get("val/AP"),
        metrics.get("perf/images_per_s"),
        _duration(metrics.get("perf/eta_s")) if running else None,
        f"{done}/{len(scored)}",
    )


def _duration(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else "< 1 min"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
