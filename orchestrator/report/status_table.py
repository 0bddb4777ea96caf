"""The table of `rnc status`: how far each row is, and why not further."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from model.names import ETA_S, IMAGES_PER_S, LOSS, VAL
from orchestrator.experiment.plan import Ledger, Plan, Record, why_evaluation_is_missing, why_training_is_missing
from orchestrator.figures.table import Cell, Column, Table, Tone, Value
from orchestrator.worker.training_log import scoring_of

MANY_LINES = 100
"""Beyond so many lines a status counts them as well."""
MAX_CHARACTERS = 60
"""Of a reason; longer ones are cut to keep the table narrow."""


def status_table(plan: Plan, ledger: Ledger, storage: Path | None = None) -> Table:
    """Show one line for each row of each table, and for each of its seeds.

    The AP is the row's own, as its evaluation found it; the one of a training's last validation, under the inference
    settings of that training, stands beside the first of its rows alone.

    With `storage`, the suite's folder of trainings, long reasons are cut, and the logs that hold the rest are named.
    """
    rows: list[tuple[Cell | Value, ...]] = []
    notes, rules = [], []
    states: Counter[str] = Counter()
    told: set[str] = set()
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
                if run.key in told:
                    line = _without_validation(line)
                told.add(run.key)
                tone = _tone(ledger.trainings.get(run.key))
                rows.append((experiment.name, label, Cell(line[0], tone=tone), *line[1:]))
                states[_state(ledger.trainings.get(run.key), is_scored=line[-1] == "yes")] += 1
    if len(rows) > MANY_LINES:
        notes.insert(0, f"{len(rows)} lines: {', '.join(f'{n} {state}' for state, n in states.most_common())}.")
    return Table(
        title=f"Status of suite {plan.suite}",
        columns=(
            Column("table", numeric=False, narrow="heading"),
            Column("row", numeric=False),
            Column("training", numeric=False),
            Column("epoch"),
            Column("loss", digits=3),
            Column("val AP", narrow="left out"),
            Column("images/s", narrow="left out"),
            Column("ETA"),
            Column("AP"),
            Column("scored", numeric=False),
        ),
        rows=tuple(rows),
        # Rows that share a training name the same log.
        notes=tuple(dict.fromkeys(notes)),
        rules_before=tuple(rules),
    )


def _state(record: Record | None, *, is_scored: bool) -> str:
    """Say in a word where a row stands, to be counted."""
    if record is None:
        return "waiting"
    words = {"FINISHED": "measured" if is_scored else "to be scored", "KILLED": "interrupted"}
    return words.get(record.status, record.status.lower())


def _line(plan: Plan, train_key: str, evaluation_key: str, ledger: Ledger) -> tuple[Value, ...]:
    record = ledger.trainings.get(train_key)
    metrics = record.metrics if record else {}
    reason = why_training_is_missing(ledger, train_key)
    not_scored = why_evaluation_is_missing(ledger, train_key, evaluation_key)
    running = record is not None and record.status == "RUNNING"
    scored = ledger.evaluations.get(evaluation_key)
    return (
        "finished" if reason is None else f"waiting ({reason})" if record is None else reason,
        f"{round(metrics.get('train/epoch', 0.0), 1):g}/{plan.trainings[train_key].config.schedule.epochs}",
        metrics.get(LOSS),
        metrics.get(f"{VAL}AP"),
        metrics.get(IMAGES_PER_S) if running else None,
        _remaining(metrics.get(ETA_S)) if running else None,
        scored.metrics.get("AP") if scored is not None and not_scored is None else None,
        "no" if not_scored == "waits for its training" else not_scored or "yes",
    )


VALIDATION = 3
"""The place of a training's own AP in what `_line` returns."""


def _without_validation(line: tuple[Value, ...]) -> tuple[Value, ...]:
    return (*line[:VALIDATION], None, *line[VALIDATION + 1 :])


def _tone(record: Record | None) -> Tone:
    tones: dict[str, Tone] = {"FINISHED": "good", "FAILED": "bad", "KILLED": "warn"}
    return "" if record is None else tones.get(record.status, "")


def _cut(value: Value) -> Value:
    is_long = isinstance(value, str) and len(value) > MAX_CHARACTERS
    return f"{str(value)[: MAX_CHARACTERS - 1].rstrip()}…" if is_long else value


def _logs(folder: Path, ledger: Ledger, train_key: str) -> Iterator[Path]:
    """The files in which a failed training left why; a worker's says more than its trial's."""
    record = ledger.trainings.get(train_key)
    if record is not None and record.status == "FAILED":
        yield from sorted(folder.glob("error-*.log")) or sorted(folder.glob("error.log"))


def _remaining(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min" if minutes else "< 1 min"
