"""What `rnc status` says: how far the training of each row is and how fast, and whether the row is scored."""

import math
from collections.abc import Iterator
from pathlib import Path

from orchestrator.experiment.plan import Ledger, Plan, why_evaluation_is_missing, why_training_is_missing
from orchestrator.figures.table import Column, Table, Value
from orchestrator.worker.training_log import scoring_of

MAX_CHARACTERS = 60
"""Of a reason, where it is cut to keep the table narrow."""


def status_table(plan: Plan, ledger: Ledger, storage: Path | None = None) -> Table:
    """Show one line for each row of each table, and for each of its seeds.

    With `storage`, the suite's folder of trainings, long reasons are cut, and the logs that hold the rest are named.
    """
    rows: list[tuple[Value, ...]] = []
    notes, rules = [], []
    for experiment in plan.experiments:
        rules.append(len(rows))
        for row in experiment.rows:
            for evaluation in plan.evaluations_of(experiment.name, row.label):
                run = plan.trainings[evaluation.train_key]
                label = f"{row.label}, seed {run.config.seed}" if len(row.seeds) > 1 else row.label
                line = _line(plan, evaluation.train_key, evaluation.key, ledger)
                if storage is not None:
                    scored = "" if line[-1] == "yes" else scoring_of(storage / run.key)
                    line = tuple(_cut(value) for value in (*line[:-1], scored or line[-1]))
                    notes += [f"{label}: {log}" for log in _logs(storage / run.key, ledger, run.key)]
                rows.append((experiment.name, label, *line))
    return Table(
        title=f"Status of suite {plan.suite}",
        columns=(
            Column("table", numeric=False),
            Column("row", numeric=False),
            Column("training", numeric=False),
            Column("epoch"),
            Column("loss", digits=3),
            Column("AP"),
            Column("images/s"),
            Column("ETA"),
            Column("scored", numeric=False),
        ),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(notes)),
        rules_before=tuple(rules),
    )


def _line(plan: Plan, train_key: str, evaluation_key: str, ledger: Ledger) -> tuple[Value, ...]:
    record = ledger.trainings.get(train_key)
    metrics = record.metrics if record else {}
    reason = why_training_is_missing(ledger, train_key)
    not_scored = why_evaluation_is_missing(ledger, train_key, evaluation_key)
    running = record is not None and record.status == "RUNNING"
    return (
        "finished" if reason is None else f"waiting ({reason})" if record is None else reason,
        f"{round(metrics.get('train/epoch', 0.0), 1):g}/{plan.trainings[train_key].config.schedule.epochs}",
        metrics.get("train/loss"),
        metrics.get("val/AP"),
        metrics.get("perf/images_per_s") if running else None,
        _duration(metrics.get("perf/eta_s")) if running else None,
        "no" if not_scored == "waits for its training" else not_scored or "yes",
    )


def _cut(value: Value) -> Value:
    is_long = isinstance(value, str) and len(value) > MAX_CHARACTERS
    return f"{str(value)[: MAX_CHARACTERS - 1].rstrip()}…" if is_long else value


def _logs(folder: Path, ledger: Ledger, train_key: str) -> Iterator[Path]:
    """The files in which a failed training left why; a worker's says more than its trial's."""
    record = ledger.trainings.get(train_key)
    if record is not None and record.status == "FAILED":
        yield from sorted(folder.glob("error-*.log")) or sorted(folder.glob("error.log"))


def _duration(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else "< 1 min"
