"""What MLflow holds of a suite, read from its database without this project's own reader, and compared."""

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNREPEATED = ("perf/", "system/")
"""Begin the names of metrics of speed and of the machine, which no two runs have alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run."""

    status: str
    tags: dict[str, str]
    """Those that say what came out."""
    params: dict[str, str]
    points: Counter[tuple[str, int, float]]
    """Name, step and value of each point but those of UNREPEATED, as often as MLflow holds it."""
    doubled: tuple[str, ...]
    """Metrics that have two points of one step."""
    weights: str = ""
    """The sha256 of the file of its weights."""


Record = dict[tuple[str, str], list[RunRecord]]
"""The runs of a suite by kind and key, of which each should have one."""


def read_record(home: Path) -> Record:
    """Read all runs of a home's MLflow."""
    found: Record = defaultdict(list)
    with closing(sqlite3.connect(f"file:{home}/mlflow/mlflow.db?mode=ro", uri=True)) as database:
        for run_id, status in database.execute("select run_uuid, status from runs where lifecycle_stage = 'active'"):
            tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)))
            kind = tags.get("kind", "")
            key = tags.get({"training": "train_key", "evaluation": "evaluation_key"}.get(kind, "table"), "")
            found[kind, key].append(_run(database, home, run_id, status, tags))
    return dict(found)


def differences(reference: Record, record: Record) -> Iterator[str]:
    """Say what is not as in the reference."""
    for kind, key in sorted(reference.keys() | record.keys()):
        name, wanted, held = f"{kind} {key}", reference.get((kind, key), []), record.get((kind, key), [])
        if len(held) != 1 or len(wanted) != 1:
            yield f"{name}: {len(held)} runs, {len(wanted)} in the reference"
            continue
        (one,), (other,) = wanted, held
        if other.doubled:
            yield f"{name}: doubled points of {', '.join(other.doubled)}"
        for what in ("status", "tags", "params", "weights"):
            if getattr(one, what) != getattr(other, what):
                yield f"{name}: {what} {getattr(other, what)}, {getattr(one, what)} in the reference"
        if one.points != other.points:
            lacks, more = one.points - other.points, other.points - one.points
            yield f"{name}: {lacks.total()} points are missing ({_few(lacks)}), {more.total()} differ ({_few(more)})"


def _run(database: sqlite3.Connection, home: Path, run_id: str, status: str, tags: dict[str, str]) -> RunRecord:
    rows = list(database.execute("select key, step, value, is_nan from metrics where run_uuid = ?", (run_id,)))
    steps = Counter((name, step) for name, step, *_ in rows if not name.startswith("system/"))
    points = Counter(
        (name, step, float("inf") if is_nan else value)  # NaN is not equal to itself
        for name, step, value, is_nan in rows
        if not name.startswith(UNREPEATED)
    )
    results = ("checkpoint_sha256", "matches_sha256", "data_fingerprint")
    weights = "".join(map(_digest, home.glob(f"mlflow/artifacts/*/{run_id}/artifacts/checkpoint/model.safetensors")))
    return RunRecord(
        status=status,
        tags={name: tags[name] for name in results if name in tags},
        params=dict(database.execute("select key, value from params where run_uuid = ?", (run_id,))),
        points=points,
        doubled=tuple(sorted({name for (name, _), count in steps.items() if count > 1})),
        weights=weights,
    )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _few(points: Counter[Any]) -> str:
    return ", ".join(f"{name} at {step}" for name, step, _ in list(points)[:3]) or "none"
