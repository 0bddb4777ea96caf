"""Experiments and runs of MLflow over its REST API: find, begin, write and end them by id.

There is no active run and no current experiment: with mlflow's global state, workers of Ray log nothing, or to another
run (ray #36257, #45456, #30649).
"""

import getpass
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.foreign import parse_json
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.site import COMMIT
from orchestrator.tracking import rest
from orchestrator.tracking.edits.experiments import find_experiment
from orchestrator.tracking.reading import listing
from orchestrator.tracking.recorder import Metric, Target

if TYPE_CHECKING:
    from model.data.split import CocoData

MOST_AT_ONCE = 100
"""Params, and tags, that MLflow takes in one call; of metrics it takes 1,000."""
CLOCKS_APART = 3_600_000
"""Milliseconds that the clocks of two machines may differ by."""
PAGE = 250
"""Runs in one answer of MLflow's API, which takes 3 ms for each: on a busy server 1,000 take longer than is waited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run of MLflow, as it was when it was read."""

    run_id: str
    name: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    experiment_id: str = ""
    start_time: int = 0
    """Milliseconds since 1970, like all times here."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The latest value of each."""
    last_metric_time: int = 0
    """When it received the newest of these; 0 where it has none."""

    @property
    def kind(self) -> str:
        """Return names.Kind, or "" for a run that is none of ours, or whose tags contradict its kind."""
        kind = self.tags.get(names.KIND, "")
        # An evaluation has the key of its training as well, and would pass for it if its kind were edited.
        is_other = kind == "training" and {names.EVALUATION_KEY, names.SPLIT} <= self.tags.keys()
        return "" if is_other else kind

    @property
    def key(self) -> str:
        """Return what tells it apart among those of its kind; "" where nothing does."""
        return self.tags.get(names.KEY.get(self.kind, ""), "")

    @property
    def train_key(self) -> str:
        """Return the training that it is, or that it scores."""
        return self.tags.get(names.TRAIN_KEY, "")

    @property
    def rows(self) -> dict[str, str]:
        """Return the place and label, such as `03 RetinaNet`, of an evaluation or of a search's training, by table."""
        return tagged(self.tags, names.ROW)

    @property
    def seed(self) -> int | None:
        """Return the seed of a training, or of the one that is scored; None where no tag says it."""
        return whole_number(self.tags.get(names.SEED, ""))

    @property
    def files(self) -> dict[str, int]:
        """Return what its artifacts should be, bytes by path, as far as that was noted in a form that can be read."""
        return read_sizes(self.tags.get(names.FILES, "{}")) or {}

    @property
    def begun(self) -> int | None:
        """Return when it last began; None where no tag says it, or one names a time that is still to come."""
        begun = whole_number(self.tags.get(names.BEGUN, ""))
        return None if begun is None or begun > now() + CLOCKS_APART else begun

    @property
    def last_sign_of_life(self) -> int:
        """Return when it last began or received a metric."""
        return max(self.start_time if self.begun is None else self.begun, self.last_metric_time)


def read_run(told: Mapping[str, Any]) -> Run:
    """Read a run as the API writes it: `info`, and `data` with its latest metrics, params and tags."""
    info, data = told["info"], told["data"]
    metrics = data.get("metrics", [])
    return Run(
        run_id=str(info["run_id"]),
        name=str(info.get("run_name", "")),
        status=str(info["status"]),
        experiment_id=str(info.get("experiment_id", "")),
        start_time=int(info.get("start_time", 0)),
        # A value that is NULL in the database is left out of the answer.
        tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", [])},
        params={param["key"]: param.get("value", "") for param in data.get("params", [])},
        metrics={metric["key"]: float(metric.get("value", "nan")) for metric in metrics},
        last_metric_time=max((int(metric.get("timestamp", 0)) for metric in metrics), default=0),
    )


def whole_number(text: str) -> int | None:
    """Read a tag that holds a count or a time, not negative; None for what somebody else wrote there."""
    # A time has 13 digits; Python's own limit is 4,300, and a database's is 19.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def read_sizes(text: str) -> dict[str, int] | None:
    """Read a tag of bytes by path, as JSON; None for what is no such thing."""
    try:
        sizes = parse_json(text)
    except ValueError:
        return None
    is_sound = isinstance(sizes, dict) and all(type(size) is int and size >= 0 for size in sizes.values())
    return sizes if is_sound else None


def read_place(text: str) -> tuple[int | None, str]:
    """Read place and label of a row, such as `03 RetinaNet`; the place is None where the text begins with none."""
    place, space, label = text.partition(" ")
    number = whole_number(place)
    return (None, text) if number is None or not space or not label else (number, label)


def _listed(experiment_id: str, line: listing.Line) -> Run:
    run_id, name, status, start, _, tags, params, metrics, newest = line
    return Run(
        run_id=run_id,
        name=name or tags.get(names.RUN_NAME, ""),
        status=status,
        experiment_id=experiment_id,
        start_time=start,
        tags=tags,
        params=params,
        metrics=metrics,
        last_metric_time=newest,
    )


def tagged(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the tags whose names begin alike, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """One suite on one server."""

    uri: str
    suite: str
    experiment_id: str | None
    """MLflow's experiment of the suite; None where there is none, which holds nothing and takes nothing."""


def open_tracking(uri: str, suite: str, *, create: bool = True) -> Tracking:
    """Find the suite's experiment on the server, or make it; without `create`, a missing one is an empty view."""
    name = names.experiment_name(suite)
    experiment = find_experiment(uri, suite)
    if experiment is None and create:
        tags = pairs({names.SUITE: suite, "mlflow.experimentKind": "custom_model_development"})
        try:
            rest.post(uri, "experiments/create", {"name": name, "tags": tags})
        except rest.Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # another process may have been quicker
                raise
        experiment = find_experiment(uri, suite)
        if experiment is None:
            raise UserError(
                f"MLflow at {uri}: experiment {name} is in the way of suite {suite}: by its tag {names.SUITE} it is "
                "another's; rename it back in MLflow, or give the tables another suite (suite: NAME)"
            )
    if experiment is not None and experiment.is_deleted:
        raise UserError(
            f"MLflow at {uri}: experiment {experiment.name}, id {experiment.id}, of suite {suite} is deleted; restore "
            f"it (`mlflow experiments restore -x {experiment.id}` with MLFLOW_TRACKING_URI={uri}), purge it with "
            "`mlflow gc`, or give the tables another suite (suite: NAME)"
        )
    return Tracking(uri=uri, suite=suite, experiment_id=experiment.id if experiment else None)


def experiment_id(tracking: Tracking) -> str:
    """Return MLflow's experiment of the suite.

    Raises:
        UserError: there is none yet.
    """
    if tracking.experiment_id is None:
        raise UserError(f"MLflow at {tracking.uri} holds nothing of suite {tracking.suite} yet; `rnc submit` fills it")
    return tracking.experiment_id


def experiment_tags(tracking: Tracking) -> dict[str, str]:
    """Read the tags of the suite's experiment."""
    answer = rest.get(tracking.uri, "experiments/get", {"experiment_id": experiment_id(tracking)})
    return {tag["key"]: str(tag.get("value", "")) for tag in answer["experiment"].get("tags", [])}


def tag_experiment(tracking: Tracking, name: str, value: str) -> None:
    """Write a tag of the suite's experiment."""
    tag = {"experiment_id": experiment_id(tracking), "key": name, "value": value}
    try:
        rest.post(tracking.uri, "experiments/set-experiment-tag", tag)
    except rest.Refused as error:
        # MLflow looks for a tag before it inserts it, so that of two processes at once one is refused.
        if "unique" not in str(error).lower():
            raise
        rest.post(tracking.uri, "experiments/set-experiment-tag", tag)  # another process has just made it


def untag_experiment(tracking: Tracking, name: str) -> None:
    """Remove a tag of the suite's experiment."""
    tag = {"experiment_id": experiment_id(tracking), "key": name}
    rest.post(tracking.uri, "experiments/delete-experiment-tag", tag)


def read_runs(tracking: Tracking, where: str = "") -> list[Run]:
    """Read the runs of the suite of every kind, newest first."""
    if tracking.experiment_id is None:
        return []
    if not where and (listed := listing.listed_runs(tracking.uri, tracking.experiment_id)) is not None:
        return [_listed(tracking.experiment_id, line) for line in listed]
    return list(search_runs(tracking.uri, tracking.experiment_id, where))


def read_changes(tracking: Tracking, since: int) -> list[Run]:
    """Read the runs that go on, or that began or ended since then, in milliseconds since 1970; newest first."""
    if tracking.experiment_id is None:
        return []
    if (listed := listing.listed_runs(tracking.uri, tracking.experiment_id, since)) is not None:
        return [_listed(tracking.experiment_id, line) for line in listed]
    # MLflow's filters know no "or". What ends between two questions is found by the later one.
    filters = ("status = 'RUNNING'", "status = 'SCHEDULED'", f"end_time >= {since}", f"start_time >= {since}")
    found = {
        run.run_id: run
        for where in filters
        for run in search_runs(tracking.uri, tracking.experiment_id, f"attributes.{where}")
    }
    return sorted(found.values(), key=lambda run: (-run.start_time, run.run_id))


def get_run(uri: str, run_id: str) -> Run:
    """Read one run."""
    return read_run(rest.get(uri, "runs/get", {"run_id": run_id})["run"])


def search_runs(uri: str, experiment_id: str, where: str = "") -> Iterator[Run]:
    """Yield the runs of an experiment that fit a filter, newest first."""
    query = {"experiment_ids": [experiment_id], "filter": where, "max_results": PAGE}
    found = rest.pages(uri, "runs/search", {**query, "order_by": ["attributes.start_time DESC"]}, "runs")
    yield from (read_run(told) for told in found)


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
    """Write metrics (at step 0), params and tags in one call, or in none if there are none; in several if many."""
    points = [{"key": k, "value": number(v), "step": 0, "timestamp": now()} for k, v in (metrics or {}).items()]
    content: dict[str, list[Any]] = {"metrics": points, "params": pairs(params or {}), "tags": pairs(tags or {})}
    while any(content.values()):
        batch = {name: values[:MOST_AT_ONCE] for name, values in content.items()}
        rest.post(uri, "runs/log-batch", {"run_id": run_id, **batch})
        content = {name: values[MOST_AT_ONCE:] for name, values in content.items()}


def delete_tag(uri: str, run_id: str, key: str) -> None:
    """Remove a tag of a run, if it has it."""
    if key in get_run(uri, run_id).tags:
        rest.post(uri, "runs/delete-tag", {"run_id": run_id, "key": key})


def history(uri: str, run_id: str, metric: str) -> Iterator[dict[str, Any]]:
    """Yield every point of one metric."""
    # The most that MLflow gives in one answer.
    query = {"run_id": run_id, "metric_key": metric, "max_results": 25000}
    yield from rest.pages(uri, "metrics/get-history", query, "metrics", by_get=True)


def metrics_target(uri: str, run_id: str) -> Target:
    """Return what delivers points to a run; a point that it has already, time and all, changes nothing."""

    def send(metrics: list[Metric]) -> None:
        points = [{"key": m.name, "value": number(m.value), "step": m.step, "timestamp": m.timestamp} for m in metrics]
        rest.post(uri, "runs/log-batch", {"run_id": run_id, "metrics": points})

    def known() -> set[tuple[str, int]]:
        # The run has the latest point of each metric only; their steps are in the histories.
        held = get_run(uri, run_id).metrics
        return {(name, int(point.get("step", 0))) for name in held for point in history(uri, run_id, name)}

    return Target(run_id=run_id, send=send, known=known)


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
        "source": json.dumps({"uri": str(data.folder)}),
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
