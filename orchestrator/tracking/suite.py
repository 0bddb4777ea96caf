"""One suite on one MLflow server: its experiment, with its tags, and its runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UserError
from orchestrator.tracking import rest
from orchestrator.tracking.entries import Kind, read_record
from orchestrator.tracking.runs import Run, pairs, search_runs, tags_of

KEY_TAG: Mapping[Kind, str] = {"training": "train_key", "evaluation": "evaluation_key", "table": "table"}
"""The tag that tells the runs of a kind apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """One suite on one server."""

    uri: str
    suite: str
    experiment_id: str | None
    """MLflow's experiment of the suite; None where there is none, which holds nothing and takes nothing."""


def open_suite(uri: str, suite: str, *, create: bool = True) -> Tracking:
    """Find the suite's experiment on the server, or make it; without `create`, a missing one is an empty view."""
    name = f"retinanet-conf/{suite}"
    experiment = _experiment_by_name(uri, name)
    if experiment is None and create:
        tags = pairs({"suite": suite, "mlflow.experimentKind": "custom_model_development"})
        try:
            rest.post(uri, "experiments/create", {"name": name, "tags": tags})
        except rest.Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # another process may have been quicker
                raise
        experiment = _experiment_by_name(uri, name)
    if experiment is not None and experiment.get("lifecycle_stage") == "deleted":
        raise UserError(f"MLflow at {uri}: experiment {name} is deleted; restore it, or purge it with `mlflow gc`")
    return Tracking(uri=uri, suite=suite, experiment_id=experiment["experiment_id"] if experiment else None)


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
    return {tag["key"]: str(tag["value"]) for tag in answer["experiment"].get("tags", [])}


def tag_experiment(tracking: Tracking, name: str, value: str) -> None:
    """Write a tag of the suite's experiment."""
    tag = {"experiment_id": experiment_id(tracking), "key": name, "value": value}
    try:
        rest.post(tracking.uri, "experiments/set-experiment-tag", tag)
    except rest.Refused as error:
        if "unique" not in str(error).lower():
            raise
        rest.post(tracking.uri, "experiments/set-experiment-tag", tag)  # another process has just made it


def untag_experiment(tracking: Tracking, name: str) -> None:
    """Remove a tag of the suite's experiment."""
    tag = {"experiment_id": experiment_id(tracking), "key": name}
    rest.post(tracking.uri, "experiments/delete-experiment-tag", tag)


def read_runs(tracking: Tracking, where: str = "") -> list[Run]:
    """Read the runs of the suite of every kind, newest first, in one question: each costs as much as reading all."""
    if tracking.experiment_id is None:
        return []
    return list(search_runs(tracking.uri, tracking.experiment_id, where))


def by_key(runs: Iterable[Run], kind: Kind) -> dict[str, Run]:
    """Return, of runs that come newest first, the one that counts for each key: a finished one, else the newest."""
    found: dict[str, Run] = {}
    for run in runs:
        tags = tags_of(run)
        if tags.get("kind") != kind:
            continue
        name = tags.get(KEY_TAG[kind], "")
        if name not in found or (is_finished(run, kind) and not is_finished(found[name], kind)):
            found[name] = run
    return found


def is_finished(run: Run, kind: Kind) -> bool:
    """Say whether a run is finished, with all that belongs to it."""
    return read_record(run, kind).status == "FINISHED"


def _experiment_by_name(uri: str, name: str) -> dict[str, Any] | None:
    try:
        experiment: dict[str, Any] = rest.get(uri, "experiments/get-by-name", {"experiment_name": name})["experiment"]
    except rest.Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return experiment
