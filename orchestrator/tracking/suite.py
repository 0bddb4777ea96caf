"""One suite on one MLflow server: its experiment, with its tags, and its runs."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from model.config import InferenceConfig, TrainConfig
from model.settings import flat_differences, from_dict, short_names, to_dict
from orchestrator.errors import UserError
from orchestrator.experiment.load import Resources, Row
from orchestrator.experiment.plan import Evaluation, Record
from orchestrator.tracking import rest
from orchestrator.tracking.runs import Run, files_of, metrics_of, pairs, search_runs, tags_of

Kind = Literal["training", "evaluation", "table"]
FINGERPRINT_TAG = "data_fingerprint"
MISALIGNMENT = "misalignment/"
"""Begins the names of what model.evaluation.misalignment measures, and of the files that it is measured from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A param in which the rows of a table differ."""

    name: str
    is_number: bool
    """Whether each of its values is a number, as the axis of a curve needs."""


STOP_TAG = "stop"
"""Of a training's run: what whoever runs it was asked to end it as."""
STOPPED_TAG = "stopped_early"
"""Of a training's run: why a search decided against it."""
LAB_FOLDER, LAB_FILE = "lab", "lab.json"
"""Where a training's run keeps the file that `orchestrator.figures.lab` shows."""
LAB_TAG = "lab_sha256"
"""Of a training's run: the sha256 of the file that `orchestrator.figures.lab` shows."""
TABLE_TAG = "table."
"""Begins the tags of a training's run that name the tables that want it."""


def read_record(run: Run, kind: Kind) -> Record:
    """Read a run; one that lacks what belongs to it is not finished, whatever it says."""
    tags, metrics, status = tags_of(run), metrics_of(run), run["info"]["status"]
    note = tags.get("note", "")
    misalignment = {name: value for name, value in metrics.items() if name.startswith(MISALIGNMENT)}
    if kind == "evaluation":
        metrics = {name.removeprefix("val/"): value for name, value in metrics.items() if name.startswith("val/")}
    if status == "FINISHED" and kind == "training" and "checkpoint_sha256" not in tags:
        status, note = "KILLED", note or "its checkpoint is missing"
    if status == "FINISHED" and kind == "evaluation" and not metrics:
        status, note = "KILLED", "its metrics are missing"
    if status == "KILLED" and tags.get(STOPPED_TAG):
        status, note = "STOPPED", tags[STOPPED_TAG]
    if status not in ("FINISHED", "FAILED", "KILLED", "STOPPED"):
        status = "RUNNING"
    return Record(
        status=status,
        run_id=run["info"]["run_id"],
        metrics=metrics,
        misalignment=misalignment,
        note=note,
        resources=_resources(tags),
        matches=tags.get("matches_sha256", ""),
        lab=tags.get(LAB_TAG, ""),
        label=run["info"].get("run_name", ""),
        wanted_by=frozenset(name.removeprefix(TABLE_TAG) for name in tags if name.startswith(TABLE_TAG)),
        stop=tags.get(STOP_TAG, ""),
        files=files_of(run),
        data_fingerprint=tags.get(FINGERPRINT_TAG, ""),
    )


def resources_tags(resources: Resources) -> dict[str, str]:
    """Return what a throughput has to be divided by."""
    return {"num_workers": str(resources.num_workers), "gpus_per_worker": f"{resources.gpus_per_worker:g}"}


def training_params(config: TrainConfig) -> dict[str, str]:
    """Return where the confidence branch sits, and the other settings that differ from the defaults."""
    head = config.model.confidence.tower if config.model.confidence else "none"
    said = ("model.confidence", "model.confidence.tower", "seed")
    others = {path: value for path, value in flat_differences(config).items() if path not in said}
    return {"head": head} | _params(others)


def inference_params(inference: InferenceConfig) -> dict[str, str]:
    """Return the confidence exponent, if it has a meaning, and the settings that differ from the defaults."""
    exponent = {} if inference.fusion == "product" else {"confidence_exponent": inference.confidence_exponent}
    return _params(exponent | flat_differences(inference))


def read_inference(params: Mapping[str, str]) -> InferenceConfig:
    """Read back what `inference_params` wrote, from among all params of an evaluation."""
    exponents = {"confidence_exponent": InferenceConfig().confidence_exponent}  # not told with fusion "product"
    told = {f.name: _value(params[f.name]) for f in fields(InferenceConfig) if f.name in params}
    return from_dict(InferenceConfig, exponents | told)


def varied_params(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return each row's value of every setting in which the rows differ: defaults too, and "none" without a meaning."""
    params = [training_params(row.train) | inference_params(row.inference) for row in rows]
    names = dict.fromkeys(name for own in params for name in own)
    filled = [{name: own.get(name, _usual(row, name)) for name in names} for row, own in zip(rows, params, strict=True)]
    varied = [name for name in names if len({values[name] for values in filled}) > 1]
    return [{name: values[name] for name in varied} for values in filled]


def varied_settings(rows: Sequence[Row]) -> list[Setting]:
    """Return the params in which rows differ."""
    filled = varied_params(rows)
    return [Setting(name=name, is_number=_are_numbers(values[name] for values in filled)) for name in filled[0]]


def shown_metrics(metrics: Mapping[str, float | None], paper: Mapping[str, float]) -> dict[str, float]:
    """Return what MLflow's user interface, which rounds nothing, shows of an evaluation: two digits after the point."""
    shown: dict[str, float] = {}
    for name, value in metrics.items():
        if value is not None and math.isfinite(value):
            shown[name] = round(value, 2)
            if name in paper:
                shown |= dict(zip(beside_paper(name), (paper[name], round(value - paper[name], 2)), strict=True))
    return shown


def misalignment_metrics(statistics: Mapping[str, float | None]) -> dict[str, float]:
    """Return statistics of misalignment as metrics; four digits after the point suit shares and correlations alike."""
    return {f"{MISALIGNMENT}{name}": round(value, 4) for name, value in statistics.items() if value is not None}


def beside_paper(metric: str) -> tuple[str, str]:
    """Return the names under which the paper's number and our difference to it stand beside a metric."""
    return f"{metric} paper", f"{metric} Δ"


def place_tags(evaluation: Evaluation) -> dict[str, str]:
    """Tag each table with the row's place and label, which sort in the table's order, and add the paper's numbers."""
    tags = {f"paper.{name}": f"{value:g}" for name, value in evaluation.paper.items()}
    for place in reversed(evaluation.places):  # of two places in one table the first counts
        tags[f"row.{place.table}"] = f"{place.place:02d} {place.label}"
    return tags


def _usual(row: Row, name: str) -> str:
    """Return the value of a setting that a row has no param for."""
    settings = dict(_leaves(to_dict(row.train))) | dict(_leaves(to_dict(row.inference)))
    found = [value for path, value in settings.items() if f".{path}".endswith(f".{name}")]
    return _text(found[0]) if len(found) == 1 and name != "confidence_exponent" else "none"


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _are_numbers(values: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name settings by their last part, unless two share it; MLflow's user interface cuts long names."""
    names = short_names(settings)
    return {names[path]: _text(value) for path, value in settings.items()}


def _resources(tags: Mapping[str, str]) -> Resources | None:
    try:
        return Resources(num_workers=int(tags["num_workers"]), gpus_per_worker=float(tags["gpus_per_worker"]))
    except (KeyError, ValueError):
        return None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    """Write a value; a whole number has no point, as in what differs from the defaults."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


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
