"""Runs of MLflow over its REST API: find, begin, write and end them by id, without any state in between."""

import getpass
import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.site import COMMIT
from orchestrator.tracking import rest
from orchestrator.tracking.recorder import Metric, Target

if TYPE_CHECKING:
    from model.data.coco import CocoData

PAGE = 1000
FILES_TAG = "files"
"""Holds what a run's artifacts should be: bytes by path."""
Run = dict[str, Any]
"""A run as the API writes it: `info`, and `data` with its latest metrics, params and tags."""


def get_run(uri: str, run_id: str) -> Run:
    """Read one run."""
    run: Run = rest.get(uri, "runs/get", {"run_id": run_id})["run"]
    return run


def search_runs(uri: str, experiment_id: str, where: str) -> Iterator[Run]:
    """Yield the runs of an experiment that fit a filter, newest first."""
    query = {"experiment_ids": [experiment_id], "filter": where, "max_results": PAGE}
    yield from rest.pages(uri, "runs/search", {**query, "order_by": ["attributes.start_time DESC"]}, "runs")


def create_run(uri: str, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Create a running run with its tags, in one call, and return its id."""
    tags = {**tags, "mlflow.user": _user(), "mlflow.source.name": "rnc", "mlflow.source.type": "LOCAL"}
    run = {"experiment_id": experiment_id, "run_name": name, "start_time": now(), "tags": pairs(tags)}
    run_id: str = rest.post(uri, "runs/create", run)["run"]["info"]["run_id"]
    return run_id


def set_status(uri: str, run_id: str, status: str) -> None:
    """Set a run running, or end it."""
    end = {} if status == "RUNNING" else {"end_time": now()}
    rest.post(uri, "runs/update", {"run_id": run_id, "status": status, **end})


def rename(uri: str, run_id: str, name: str) -> None:
    """Give a run another name."""
    rest.post(uri, "runs/update", {"run_id": run_id, "run_name": name})


def write(
    uri: str,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write metrics (at step 0), params and tags in one call, or in none if there are none."""
    points = [{"key": k, "value": number(v), "step": 0, "timestamp": now()} for k, v in (metrics or {}).items()]
    content = {"metrics": points, "params": pairs(params or {}), "tags": pairs(tags or {})}
    if any(content.values()):
        rest.post(uri, "runs/log-batch", {"run_id": run_id, **content})


def delete_tag(uri: str, run_id: str, key: str) -> None:
    """Remove a tag of a run, if it has it."""
    if key in tags_of(get_run(uri, run_id)):
        rest.post(uri, "runs/delete-tag", {"run_id": run_id, "key": key})


def history(uri: str, run_id: str, metric: str) -> Iterator[dict[str, Any]]:
    """Yield every point of one metric."""
    query = {"run_id": run_id, "metric_key": metric, "max_results": 25000}
    yield from rest.pages(uri, "metrics/get-history", query, "metrics", by_get=True)


def metrics_target(uri: str, run_id: str) -> Target:
    """Return what delivers points to a run; a point that it has already, time and all, changes nothing."""

    def send(metrics: list[Metric]) -> None:
        points = [{"key": m.name, "value": number(m.value), "step": m.step, "timestamp": m.timestamp} for m in metrics]
        rest.post(uri, "runs/log-batch", {"run_id": run_id, "metrics": points})

    def known() -> set[tuple[str, int]]:
        names = metrics_of(get_run(uri, run_id))
        return {(name, int(point.get("step", 0))) for name in names for point in history(uri, run_id, name)}

    return Target(run_id=run_id, send=send, known=known)


def tags_of(run: Run) -> dict[str, str]:
    """Return the tags of a run."""
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def params_of(run: Run) -> dict[str, str]:
    """Return the params of a run."""
    return {param["key"]: param["value"] for param in run["data"].get("params", [])}


def metrics_of(run: Run) -> dict[str, float]:
    """Return the latest value of each metric of a run."""
    return {metric["key"]: float(metric["value"]) for metric in run["data"].get("metrics", [])}


def files_of(run: Run) -> dict[str, int]:
    """Return what a run's artifacts should be, bytes by path, as far as that was noted."""
    files: dict[str, int] = json.loads(tags_of(run).get(FILES_TAG, "{}"))
    return files


def last_sign_of_life(run: Run) -> int:
    """Return when a run last began or received a metric, in milliseconds since 1970."""
    begun = tags_of(run).get("begun", run["info"].get("start_time", 0))
    return max(int(begun), *(int(metric["timestamp"]) for metric in run["data"].get("metrics", [])), 0)


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Write a mapping as the API does."""
    return [{"key": key, "value": value} for key, value in values.items()]


def number(value: float) -> float | str:
    """Write a number as the API does: JSON has no infinity, nor NaN."""
    return value if math.isfinite(value) else json.dumps(value)


def now() -> int:
    """Return the milliseconds since 1970."""
    return int(time.time() * 1000)


@cache
def git_commit() -> str | None:
    """Return the commit of the source tree, marked if files differ from it; None if there is neither.

    Where sources were sent without their repository, RNC_GIT_COMMIT says it.
    """
    if sent := os.environ.get(COMMIT):
        return sent
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit} with changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


Context = Literal["training", "validation", "evaluation"]
DIGEST_LENGTH = 36  # what MLflow keeps of a digest


def log_input(uri: str, run_id: str, dataset: str, data: "CocoData", context: Context) -> None:
    """Say which split a run has read; saying so twice changes nothing.

    Args:
        uri: of the server.
        run_id: of the run.
        dataset: the name of the whole, as in "shapes".
        data: the split as it was read.
        context: what it was read for.
    """
    entry = {
        "name": f"{dataset} {data.split}",
        "digest": data.fingerprint[:DIGEST_LENGTH],
        "source_type": "local",
        "source": json.dumps({"uri": str(data.root / data.split)}),
        "profile": json.dumps(
            {
                "num_images": len(data),
                "num_boxes": len(data.annotation_ids),
                "num_categories": len(data.category_ids),
                "categories": ", ".join(data.category_names),
                "fingerprint": data.fingerprint,
            }
        ),
    }
    tagged = {"dataset": entry, "tags": pairs({"mlflow.data.context": context})}
    rest.post(uri, "runs/log-inputs", {"run_id": run_id, "datasets": [tagged]})


SILENT_SECONDS = 3600.0
"""A run of another host that has received nothing for so long is taken for dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A run whose status is RUNNING."""

    key: str
    """Its train key or evaluation key."""
    run_id: str
    driver: str
    """The process that answers for it, as `this_process` named it."""
    last_sign_of_life: float
    """Seconds since 1970."""


def looks_alive(running: Running) -> bool:
    """Say whether a run's driver still exists: by its process on this host, by signs of life from another host."""
    here = exists_here(running.driver)
    return time.time() - running.last_sign_of_life < SILENT_SECONDS if here is None else here


def exists_here(driver: str) -> bool | None:
    """Say whether a process that `this_process` named still exists; None if it is one of another host."""
    host, _, process = driver.partition(" ")
    if host != socket.gethostname():
        return None
    pid = process.partition(" ")[0]
    return pid.isdigit() and process == _process(int(pid))


def this_process() -> str:
    """Name this process by host, id and start, so that a later process with the same id is told apart."""
    return f"{socket.gethostname()} {_process(os.getpid())}"


def _process(pid: int) -> str | None:
    """Return the process id with the process's start in ticks since the machine's, or None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return f"{pid} ?" if _exists(pid) and not Path("/proc/self/stat").exists() else None
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else f"{pid} {rest[18]}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
