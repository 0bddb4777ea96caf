"""Finds the checkpoints and caches that no table, alias or pin needs, for `rnc gc`, which only looks unless told."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.data.cache import own_folder
from orchestrator import names
from orchestrator.driver.lock import holder_of
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Plan
from orchestrator.figures.table import Column, Table
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import check_files, delete
from orchestrator.tracking.records import by_key
from orchestrator.tracking.runs import Run, Tracking, delete_tag, get_run, tagged, write
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import epochs_done

FREED = "its weights were freed by rnc gc"
CACHE_DAYS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Something that takes space."""

    what: str
    num_bytes: int
    reason: str
    """Why it may go, or has to stay."""
    free: Callable[[], object] | None
    """None for what stays."""


def collect_garbage(suite: Suite, *, deletes: bool) -> list[Table]:
    """Say what of a suite takes space and why it stays or may go; free it if told so.

    Raises:
        UserError: somebody runs the suite just now.
    """
    if suite.tracking is None:
        return []
    items = find_garbage(suite)
    if deletes:
        if holder := holder_of(suite):
            raise UserError(f"suite {suite.name} is being run by {holder}; free space when it has ended")
        for item in items:
            if item.free is not None:
                item.free()
        suite.refresh()
    return [garbage_table(items, is_freed=deletes)]


def find_garbage(suite: Suite) -> list[Item]:
    """Judge what a suite keeps: Ray's checkpoints, weights in MLflow, and the caches of this machine.

    What tables outside of these files use stays: without their files nothing tells whether they still want it.
    """
    plan, ledger, tracking = suite.wanted, suite.ledger, suite.connection
    runs, scored = by_key(suite.mlflow_runs, "training"), by_key(suite.mlflow_runs, "evaluation")
    others = _tables([*runs.values(), *scored.values()], {one.name for one in suite.experiments})
    aliases = _aliases(tracking)
    pinned = {key for key, run in runs.items() if names.PIN in run.tags}
    stopped = suite.make_plan().stopped_trainings
    kept: dict[str, str] = {}
    for key, record in ledger.trainings.items():
        if record.status == "RUNNING":
            kept[key] = "it says RUNNING; if its process is gone, rnc repair closes it"
        elif key in pinned:
            kept[key] = "its run is pinned"
        elif record.run_id in aliases:
            kept[key] = f"the model registry names it: {aliases[record.run_id]}"
        elif key in plan.trainings and key not in stopped:
            kept[key] = f"row {plan.trainings[key].label!r} needs it"
        elif key in others:
            kept[key] = f"{', '.join(sorted(others[key]))} uses it; name that file as well"
    checked = check_files(tracking, ledger, ledger.trainings)
    return [
        *_resume_states(suite.storage, plan, checked, kept, pinned, stopped),
        *_weights(tracking, plan, checked, kept),
        *_old_caches(),
        *_old_shards(suite.site.scored),
    ]


def garbage_table(items: list[Item], *, is_freed: bool = False) -> Table:
    """Show what may go first, or what is gone, and why everything else stays."""
    ordered = sorted(items, key=lambda item: item.free is None)
    going = sum(item.num_bytes for item in items if item.free)
    staying = sum(item.num_bytes for item in items if not item.free)
    freed = "freed" if is_freed else "free"
    verb, way = ("were freed", "") if is_freed else ("may go", "; --delete frees them" if going else "")
    note = f"{going / 1e6:.1f} MB {verb}, {staying / 1e6:.1f} MB stay{way}."
    return Table(
        title="What took space" if is_freed else "What takes space",
        columns=(
            Column("what", numeric=False),
            Column("MB"),
            Column("verdict", numeric=False),
            Column("because", numeric=False),
        ),
        rows=tuple((i.what, i.num_bytes / 1e6, freed if i.free else "keep", i.reason) for i in ordered),
        notes=(note,),
    )


def _tables(runs: Iterable[Run], given: set[str]) -> dict[str, set[str]]:
    """Return, by training, the tables that want it or show an evaluation of it, and are not among the given."""
    found: dict[str, set[str]] = {}
    for run in runs:
        tables = {*(tagged(run.tags, names.TABLE) if run.kind == "training" else run.rows)} - given
        if tables:
            found.setdefault(run.train_key, set()).update(tables)
    return found


def _aliases(tracking: Tracking) -> dict[str, str]:
    """Return, by run, the registered model and alias that stands on it."""
    found = {}
    models = rest.pages(
        tracking.uri, "registered-models/search", {"max_results": 100}, "registered_models", by_get=True
    )
    for model in models:
        for alias in model.get("aliases", []):
            query = {"name": model["name"], "version": alias["version"]}
            version = rest.get(tracking.uri, "model-versions/get", query)["model_version"]
            if run_id := version.get("run_id"):
                found[run_id] = f"{model['name']}@{alias['alias']}"
    return found


def _resume_states(
    storage: Path,
    plan: Plan,
    checked: Ledger,
    kept: Mapping[str, str],
    pinned: set[str],
    stopped: Mapping[str, str],
) -> Iterator[Item]:
    # Not `_tune`, the folder of Ray Tune itself, nor hidden ones.
    for folder in sorted(storage.glob("[!_.]*")) if storage.is_dir() else []:
        parts = [path for path in folder.iterdir() if path.is_dir() or path.name.startswith("checkpoint_manager")]
        if not parts:
            continue
        key, record = folder.name, checked.trainings.get(folder.name)
        is_over = record is not None and record.status == "FINISHED" and bool(record.files) and key not in pinned
        reason = "it is finished, and its weights stand in MLflow" if is_over else kept.get(key, "")
        if not reason and key in stopped:
            is_over, reason = True, stopped[key]
        if not reason and key in plan.trainings:
            reason = f"row {plan.trainings[key].label!r} goes on from epoch {epochs_done(folder)}"
        yield Item(
            what=f"{folder}: checkpoints to resume from",
            num_bytes=sum(_size(part) for part in parts),
            reason=reason or "no row of these files needs it, nor any other table",
            free=partial(_remove, parts) if is_over or not reason else None,
        )


def _weights(tracking: Tracking, plan: Plan, checked: Ledger, kept: Mapping[str, str]) -> Iterator[Item]:
    for key, record in checked.trainings.items():
        held = {path: size for path, size in record.files.items() if path.startswith(f"{names.CHECKPOINT}/")}
        if record.status != "FINISHED" or not held:
            continue
        label = plan.trainings[key].label if key in plan.trainings else record.label or key
        yield Item(
            what=f"MLflow, training {label!r}: weights",
            num_bytes=sum(held.values()),
            reason=kept.get(key, "no row of these files uses it, nor any other table, alias or pin"),
            free=None if key in kept else partial(_free_weights, tracking, record.run_id),
        )


def _free_weights(tracking: Tracking, run_id: str) -> None:
    delete_tag(tracking.uri, run_id, names.WEIGHTS_SHA256)  # first, so that a run without its weights never counts
    rest_of_it = {
        path: size
        for path, size in get_run(tracking.uri, run_id).files.items()
        if not path.startswith(f"{names.CHECKPOINT}/")
    }
    write(tracking.uri, run_id, tags={names.FILES: json.dumps(rest_of_it), names.NOTE: FREED})
    delete(tracking.uri, run_id, names.CHECKPOINT)


def _old_caches() -> Iterator[Item]:
    folder = own_folder()
    oldest = time.time() - CACHE_DAYS * 86400
    for file in sorted(folder.glob("*.arrow")) if folder is not None else []:
        status = file.stat()
        # Where a file system is mounted without access times, only the other one says something.
        if max(status.st_atime, status.st_mtime) < oldest:
            text = f"not read for {CACHE_DAYS} days, and made anew when it is asked for"
            yield Item(what=str(file), num_bytes=status.st_size, reason=text, free=file.unlink)


def _old_shards(scored: Path) -> Iterator[Item]:
    oldest = time.time() - CACHE_DAYS * 86400
    for folder in sorted(scored.iterdir()) if scored.is_dir() else []:
        if folder.stat().st_mtime < oldest:
            text = f"nothing was scored there for {CACHE_DAYS} days, and it is scored anew when it is asked for"
            yield Item(
                what=f"{folder}: scored images", num_bytes=_size(folder), reason=text, free=partial(_remove, [folder])
            )


def _remove(parts: list[Path]) -> None:
    for part in parts:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
