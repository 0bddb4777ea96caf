"""How trainings and evaluations stand in MLflow: settings as params, places as tags, results as metrics; and back."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from model.config import (
    CALIBRATION,
    CENTERNESS,
    HEADS,
    METRICS,
    ConfidenceConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
)
from model.foreign import parse_json
from model.names import VAL
from model.settings import flat_differences, from_dict, short_names, to_dict
from orchestrator import names
from orchestrator.experiment.plan import Evaluation, Ledger, Record, TrainRun
from orchestrator.experiment.rows import Resources, Row
from orchestrator.names import Kind
from orchestrator.tracking.runs import Run, read_place, read_sizes, tagged

PARTS = ("classification.", "box.", "assignment.")
"""Parts of train.model whose settings are params under the name of their part, such as `box.loss`: a bare `loss` is the
confidence's, as in all that was recorded before there were others."""
METHODS = ("classification.loss", "box.loss", "assignment.kind")
"""Those of these settings whose values are words of the field, which need no name of a setting beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A param in which the rows of a table differ."""

    name: str
    is_number: bool
    """Whether each of its values is a number, as the axis of a curve needs."""


def read_record(run: Run) -> Record:
    """Read a run; one that lacks what belongs to it is not finished, whatever it says."""
    kind, tags, metrics, status = run.kind, run.tags, run.metrics, run.status
    note = tags.get(names.NOTE, "")
    section = f"{names.MISALIGNMENT}/"
    misalignment = {name: value for name, value in metrics.items() if name.startswith(section) and math.isfinite(value)}
    calibration: dict[str, float] = {}
    if kind == "evaluation":
        calibration = {name: metrics[name] for name in CALIBRATION if math.isfinite(metrics.get(name, math.nan))}
        metrics = {name.removeprefix(VAL): value for name, value in metrics.items() if name.startswith(VAL)}
    if status == "FINISHED" and kind == "training" and names.WEIGHTS_SHA256 not in tags:
        status, note = "KILLED", note or "its checkpoint is missing"
    if status == "FINISHED" and kind == "evaluation" and not metrics and names.NO_OBJECTS not in tags:
        status, note = "KILLED", "its metrics are missing"
    if status == "FINISHED" and (damage := damage_of(run)):
        status, note = "KILLED", damage
    if status == "KILLED" and tags.get(names.STOPPED_EARLY):
        status, note = "STOPPED", tags[names.STOPPED_EARLY]
    if status not in ("FINISHED", "FAILED", "KILLED", "STOPPED"):
        status = "RUNNING"
    return Record(
        status=status,  # type: ignore[arg-type]  # one of these five by now
        run_id=run.run_id,
        metrics=metrics,
        misalignment=misalignment,
        calibration=calibration,
        note=note,
        resources=_resources(tags),
        matches=tags.get(names.MATCHES_SHA256, ""),
        lab=tags.get(names.LAB_SHA256, ""),
        label=run.name,
        wanted_by=frozenset(tagged(tags, names.TABLE)),
        stop=tags.get(names.STOP, ""),
        files=run.files,
        data_fingerprint=tags.get(names.FINGERPRINT, ""),
        params=run.params,
    )


def damage_of(run: Run) -> str:
    """Say what of a run's record somebody has changed so that it cannot be trusted; empty where nothing is."""
    tags, metrics = run.tags, run.metrics
    if names.FILES in tags and read_sizes(tags[names.FILES]) is None:
        return f"its tag {names.FILES} is damaged ({_start(tags[names.FILES])}, expected bytes by path as JSON)"
    if run.kind not in ("training", "evaluation"):
        return ""
    if names.SEED in tags and run.seed is None:
        return f"its tag {names.SEED} is {_start(tags[names.SEED])}"
    for name in (names.WEIGHTS_SHA256, names.MATCHES_SHA256):
        if name in tags and not re.fullmatch("[0-9a-f]+", tags[name]):
            return f"its tag {name} is damaged ({_start(tags[name])}, expected a SHA-256)"
    if run.kind == "training":
        return ""
    if f"{names.DETECTIONS}/{names.MATCHES_FILE}" in run.files and names.MATCHES_SHA256 not in tags:
        return "the digest of its matches is missing"
    for metric in METRICS:
        value = metrics.get(f"{VAL}{metric}", 0.0)
        if not -0.001 < value < 100.001:  # nor is NaN
            return f"its metrics are damaged ({VAL}{metric} is {value:g}, expected 0 to 100)"
    return ""


def ledger_of(runs: Iterable[Run], known: dict[str, tuple[Run, Record]] | None = None) -> Ledger:
    """Return what the runs of a suite hold; of several with one key a finished one counts, else the newest.

    `known` keeps what was read of each run, by its id, for the next time.
    """
    runs, known = list(runs), {} if known is None else known

    def record(run: Run) -> Record:
        if run.run_id not in known or known[run.run_id][0] is not run:
            known[run.run_id] = run, read_record(run)
        return known[run.run_id][1]

    return Ledger(
        trainings={key: record(run) for key, run in by_key(runs, "training").items()},
        evaluations={key: record(run) for key, run in by_key(runs, "evaluation").items()},
    )


def by_key(runs: Iterable[Run], kind: Kind) -> dict[str, Run]:
    """Return, of runs that come newest first, the one that counts for each key: a finished one, else the newest."""
    found: dict[str, Run] = {}
    for run in runs:
        # A key names a training's folder as well; whoever may write to MLflow may have written a path.
        if run.kind != kind or not run.key or "/" in run.key or run.key == "..":
            continue
        if run.key not in found or (is_finished(run) and not is_finished(found[run.key])):
            found[run.key] = run
    return found


def is_finished(run: Run) -> bool:
    """Say whether a run is finished, with all that belongs to it."""
    return read_record(run).status == "FINISHED"


def resources_tags(resources: Resources) -> dict[str, str]:
    """Return the tags by which a throughput is divided to get that of one worker or GPU."""
    return {names.NUM_WORKERS: str(resources.num_workers), names.GPUS_PER_WORKER: f"{resources.gpus_per_worker:g}"}


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
    # A table that varies the fusion enters "none" as the exponent that "product" lacks.
    told = {f.name: _value(params[f.name]) for f in fields(InferenceConfig) if params.get(f.name, "none") != "none"}
    return from_dict(InferenceConfig, exponents | told)


def run_name(rows: Mapping[str, str], params: Mapping[str, str], seed: str) -> str:
    """Name an evaluation so that it is right in every table: by its one label, as `row_name`, else by what it is.

    Args:
        rows: place and label, such as `03 RetinaNet`, by table.
        params: of the evaluation.
        seed: of its training.
    """
    labels = {read_place(place)[1] for place in rows.values()}
    if len(labels) == 1:
        return row_name(next(iter(labels)), params, seed)
    return f"{', '.join((*_detector(params), *_ranking(params)))}, seed {seed}"


def row_name(label: str, params: Mapping[str, str], seed: str = "") -> str:
    """Name a run by its row, and by its losses and its assignment where these are not the paper's: "QFL, atss, seed 0".

    Rows of several tables may have one label. What the label says itself is left out, and all of it where the name
    would be longer than MLflow takes.

    Args:
        label: of the row.
        params: of the run.
        seed: empty where it goes without saying.
    """
    end = f", seed {seed}" if seed else ""
    said = {_plain(word) for word in re.split(r"[^\w-]+", label)}
    told = [value for path, value in _unusual_parts(params) if path in METHODS and _plain(value) not in said]
    called = ", ".join((label, *told)) + end
    return called if len(called) <= names.MOST_RUN_NAME else label + end


def name_of_training(train_run: TrainRun) -> str:
    """Name a training by the row that it begins for, as its evaluations; with its seed where its row has several."""
    seed = str(train_run.config.seed)
    label = train_run.label.removesuffix(f", seed {seed}")
    return row_name(label, training_params(train_run.config), "" if label == train_run.label else seed)


def training_name(params: Mapping[str, str], seed: str) -> str:
    """Name a training by what it is, as in "RetinaNet-Conf, l1, resnet50, seed 0"."""
    return f"{', '.join(_detector(params))}, seed {seed}"


def varied_params(rows: Sequence[Row], *, of_trainings: bool = False) -> list[dict[str, str]]:
    """Return each row's value of every setting in which the rows differ: defaults too, and "none" without a meaning.

    `of_trainings` leaves out how checkpoints are scored.
    """
    params = [training_params(row.train) | ({} if of_trainings else inference_params(row.inference)) for row in rows]
    settings = dict.fromkeys(name for own in params for name in own)
    filled = [
        {name: own.get(name, _usual(row, name)) for name in settings} for row, own in zip(rows, params, strict=True)
    ]
    varied = [name for name in settings if len({values[name] for values in filled}) > 1]
    return [{name: values[name] for name in varied} for values in filled]


def varied_settings(rows: Sequence[Row], *, of_trainings: bool = False) -> list[Setting]:
    """Return the params in which rows, or their trainings alone, differ."""
    filled = varied_params(rows, of_trainings=of_trainings)
    return [Setting(name=name, is_number=_are_numbers(values[name] for values in filled)) for name in filled[0]]


def shown_metrics(
    metrics: Mapping[str, float | None], paper: Mapping[str, float], *, is_on_papers_data: bool = True
) -> dict[str, float]:
    """Return what MLflow's user interface, which rounds nothing, shows of an evaluation: two digits after the point.

    The difference to the paper's number is formed where both were measured on the same data alone.
    """
    shown: dict[str, float] = {}
    for name, value in metrics.items():
        if value is not None and math.isfinite(value):
            shown[name] = round(value, 2)
            if name in paper and is_on_papers_data:
                shown |= dict(zip(beside_paper(name), (paper[name], round(value - paper[name], 2)), strict=True))
            elif name in paper:
                shown[papers_own(name)] = paper[name]
    return shown


def measured_where_the_paper_did(params: Mapping[str, str], split: str) -> bool:
    """Say whether an evaluation with these params was measured on all of COCO val2017, as the paper's numbers were."""
    is_whole = params.get("num_val_images", "none") == "none"
    return params.get("dataset", "coco") == "coco" and split == "val2017" and is_whole


def misalignment_metrics(statistics: Mapping[str, float | None]) -> dict[str, float]:
    """Return statistics of misalignment as metrics; four digits after the point suit shares and correlations alike."""
    # What stands before the / makes a section of charts of its own in MLflow's user interface.
    return {f"{names.MISALIGNMENT}/{name}": round(value, 4) for name, value in statistics.items() if value is not None}


def calibration_metrics(calibration: Mapping[str, float | None]) -> dict[str, float]:
    """Return how far scores are off as metrics, under their plain names, to four digits after the point."""
    return {name: round(value, 4) for name, value in calibration.items() if value is not None}


def beside_paper(metric: str) -> tuple[str, str]:
    """Return the names under which the paper's number and our difference to it stand beside a metric."""
    return f"{metric} paper", f"{metric} Δ"


def papers_own(metric: str) -> str:
    """Return the name of the paper's number where ours was measured on other data, so that nobody compares the two."""
    return f"paper on COCO 2017: {metric}"


def place_tags(evaluation: Evaluation) -> dict[str, str]:
    """Tag each table with the row's place and label, which sort in the table's order, and add the paper's numbers."""
    tags = {f"{names.PAPER}{name}": f"{value:g}" for name, value in evaluation.paper.items()}
    for place in reversed(evaluation.places):  # of two places in one table the first counts
        tags[f"{names.ROW}{place.table}"] = place_and_label(
            place.place, place.label, evaluation.table_sizes.get(place.table, 0)
        )
    return tags


def place_and_label(place: int, label: str, num_rows: int) -> str:
    """Return what calls a row in MLflow, which sorts texts: its place from 0, and its label.

    A place has two digits; in a table of more than a hundred rows as many as its last one.
    """
    return f"{place:0{max(2, len(str(num_rows - 1)))}d} {label}"


def _detector(params: Mapping[str, str]) -> Iterator[str]:
    """Yield what tells a training of the paper's tables: its head, what its confidence learns, and its backbone."""
    head = params.get("head", "none")
    is_centerness = params.get("target") == "centerness"
    yield CENTERNESS if is_centerness else HEADS.get(None if head == "none" else head, head)
    for field in fields(ConfidenceConfig):
        value = params.get(field.name, "none")
        # A table may have entered defaults, and "none" where there is no confidence.
        if field.name not in ("tower", "target") and value not in ("none", _text(field.default)):
            yield value if field.name == "loss" else f"{field.name} {value}"
    for path, value in _unusual_parts(params):
        yield value if path in METHODS else f"{path} {value}"
    yield params.get("backbone", ModelConfig().backbone)


def _unusual_parts(params: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the settings of PARTS that are not the defaults, by the names of their params."""
    for path, default in _usual_parts().items():
        if (value := params.get(path, "none")) not in ("none", default):
            yield path, value


def _plain(word: str) -> str:
    """Write "Task-aligned" and task_aligned alike."""
    return re.sub("[-_]", "", word).lower()


@cache  # thousands of runs are named at once
def _usual_parts() -> Mapping[str, str]:
    """The settings of PARTS by the names of their params, with the values that nobody is told of."""
    return {path: _text(value) for path, value in _leaves(to_dict(ModelConfig())) if path.startswith(PARTS)}


def _ranking(params: Mapping[str, str]) -> Iterator[str]:
    """Yield by what score an evaluation ranks boxes, and what else of its post-processing is not the paper's."""
    try:
        inference = read_inference(params)
    except (TypeError, ValueError):  # edited in the database: MLflow itself changes no param
        yield "unknown score"
        return
    if inference.fusion == "product":
        yield "product"
    elif params.get("head", "none") != "none":
        yield f"alpha {inference.confidence_exponent:g}"
    for name, value in flat_differences(inference).items():
        if name not in ("fusion", "confidence_exponent"):
            yield f"{name} {_text(value)}"


def _usual(row: Row, name: str) -> str:
    """Return the value of a setting that a row has no param for."""
    settings = dict(_leaves(to_dict(row.train))) | dict(_leaves(to_dict(row.inference)))
    found = [
        value
        for path, value in settings.items()
        if f".{path}".endswith(f".{name}") and (name.startswith(PARTS) or _of_part(path) is None)
    ]
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
    short = short_names(path for path in settings if _of_part(path) is None)
    return {_of_part(path) or short[path]: _text(value) for path, value in settings.items()}


def _of_part(path: str) -> str | None:
    """Return the name of a setting of PARTS; None of any other."""
    name = path.removeprefix("model.")
    return name if name != path and name.startswith(PARTS) else None


def _resources(tags: Mapping[str, str]) -> Resources | None:
    try:
        return Resources(num_workers=int(tags[names.NUM_WORKERS]), gpus_per_worker=float(tags[names.GPUS_PER_WORKER]))
    except (KeyError, ValueError):
        return None


def _start(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}...")


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    """Write a value; a whole number has no point, as in what differs from the defaults."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
