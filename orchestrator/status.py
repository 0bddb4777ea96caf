"""What `rnc status` says: how far each training is, and how fast."""

import math

from orchestrator.plan import Ledger, Plan, TrainRun, why_training_is_missing
from orchestrator.table import Column, Table, Value


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
