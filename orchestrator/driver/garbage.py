"""Finds the checkpoints and caches that no table, alias or pin needs, for `rnc gc`, which only looks unless told."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.data.cache import own_folder
from orchestrator.driver.lock import holder_of
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.figures.table import Column, Table
from orchestrator.site import Site
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import check_files, delete
from orchestrator.tracking.ledger import ledger_of
from orchestrator.tracking.runs import FILES_TAG, Run, delete_tag, files_of, get_run, tags_of, write
from orchestrator.tracking.server import existing_tracking_server
from orchestrator.tracking.suite import TABLE_TAG, Tracking, by_key, open_suite, read_runs
from orchestrator.worker.task import epochs_done


def collect_garbage(experiments: Sequence[Experiment], site: Site, *, deletes: bool) -> list[Table]:
    """Say what of a suite takes space and why it stays or may go; free it if told so.

    Raises:
        UserError: somebody runs the suite just now.
    """
    uri = existing_tracking_server(site)
    if uri is None:
        return []
    suite = open_suite(uri, experiments[0].suite, create=False)
    items = find_garbage(suite, make_plan(experiments, Ledger()), site.storage / suite.suite, site.scored)
    if deletes:
        if holder := holder_of(suite, site):
            raise UserError(f"suite {suite.suite} is being run by {holder}; free space when it has ended")
        for item in items:
            if item.free is not None:
                item.free()
    return [garbage_table(items)]


PIN_TAG = "pin"
"""A tag of a training's run, set in MLflow's user interface with any value; its checkpoints stay."""
ROW_TAG = "row."
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


def find_garbage(suite: Tracking, plan: Plan, storage: Path, scored: Path | None = None) -> list[Item]:
    """Judge what a suite keeps: Ray's checkpoints, weights in MLflow, and the caches of this machine.

    Args:
        suite: the ledger.
        plan: of experiments of the suite; what other tables use stays, for want of their files.
        storage: the suite's folder of Ray's checkpoints.
        scored: the folder of scored shards.
    """
    everything = read_runs(suite)
    ledger, runs = ledger_of(everything), by_key(everything, "training")
    others = _tables(runs, by_key(everything, "evaluation").values(), {one.name for one in plan.experiments})
    aliases = _aliases(suite)
    pinned = {key for key, run in runs.items() if PIN_TAG in tags_of(run)}
    stopped = make_plan(plan.experiments, ledger).stopped_trainings
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
    checked = check_files(suite.uri, ledger, ledger.trainings)
    return [
        *_resume_states(storage, plan, checked, kept, pinned, stopped),
        *_weights(suite, plan, checked, kept),
        *_old_caches(),
        *_old_shards(scored),
    ]


def garbage_table(items: list[Item]) -> Table:
    """Show what may go first, and why everything else stays."""
    ordered = sorted(items, key=lambda item: item.free is None)
    going = sum(item.num_bytes for item in items if item.free)
    staying = sum(item.num_bytes for item in items if not item.free)
    return Table(
        title="What takes space",
        columns=(
            Column("what", numeric=False),
            Column("MB"),
            Column("verdict", numeric=False),
            Column("because", numeric=False),
        ),
        rows=tuple((i.what, i.num_bytes / 1e6, "free" if i.free else "keep", i.reason) for i in ordered),
        notes=(f"{going / 1e6:.1f} MB may go, {staying / 1e6:.1f} MB stay.",),
    )


def _tables(trainings: Mapping[str, Run], scored: Iterable[Run], given: set[str]) -> dict[str, set[str]]:
    """Return, by training, the tables that use it and are not among the given."""
    found: dict[str, set[str]] = {}
    marked = [(key, run, TABLE_TAG) for key, run in trainings.items()]
    marked += [(tags_of(run).get("train_key", ""), run, ROW_TAG) for run in scored]
    for key, run, prefix in marked:
        tables = {name.removeprefix(prefix) for name in tags_of(run) if name.startswith(prefix)} - given
        if tables:
            found.setdefault(key, set()).update(tables)
    return found


def _aliases(suite: Tracking) -> dict[str, str]:
    """Return, by run, the registered model and alias that stands on it."""
    found = {}
    models = rest.pages(suite.uri, "registered-models/search", {"max_results": 100}, "registered_models", by_get=True)
    for model in models:
        for alias in model.get("aliases", []):
            query = {"name": model["name"], "version": alias["version"]}
            version = rest.get(suite.uri, "model-versions/get", query)["model_version"]
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


def _weights(suite: Tracking, plan: Plan, checked: Ledger, kept: Mapping[str, str]) -> Iterator[Item]:
    for key, record in checked.trainings.items():
        held = {path: size for path, size in record.files.items() if path.startswith("checkpoint/")}
        if record.status != "FINISHED" or not held:
            continue
        label = plan.trainings[key].label if key in plan.trainings else record.label or key
        yield Item(
            what=f"MLflow, training {label!r}: weights",
            num_bytes=sum(held.values()),
            reason=kept.get(key, "no row of these files uses it, nor any other table, alias or pin"),
            free=None if key in kept else partial(_free_weights, suite, record.run_id),
        )


def _free_weights(suite: Tracking, run_id: str) -> None:
    delete_tag(suite.uri, run_id, "checkpoint_sha256")  # first, so that a run without its weights never counts
    rest_of_it = {
        path: size for path, size in files_of(get_run(suite.uri, run_id)).items() if "checkpoint/" not in path
    }
    write(suite.uri, run_id, tags={FILES_TAG: json.dumps(rest_of_it), "note": FREED})
    delete(suite.uri, run_id, "checkpoint")


def _old_caches() -> Iterator[Item]:
    folder = own_folder()
    oldest = time.time() - CACHE_DAYS * 86400
    for file in sorted(folder.glob("*.arrow")) if folder is not None else []:
        status = file.stat()
        if max(status.st_atime, status.st_mtime) < oldest:
            text = f"not read for {CACHE_DAYS} days, and made anew when it is asked for"
            yield Item(what=str(file), num_bytes=status.st_size, reason=text, free=file.unlink)


def _old_shards(scored: Path | None) -> Iterator[Item]:
    oldest = time.time() - CACHE_DAYS * 86400
    for folder in sorted(scored.iterdir()) if scored is not None and scored.is_dir() else []:
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
