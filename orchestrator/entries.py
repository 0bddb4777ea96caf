"""How trainings and evaluations look as tags and params of MLflow runs, and how runs read back as records."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from model.config import InferenceConfig, TrainConfig
from orchestrator.experiment import Row
from orchestrator.plan import Evaluation, Record, settings_that_differ
from orchestrator.runs import Run, metrics_of, tags_of

Kind = Literal["training", "evaluation", "table"]


def read_record(run: Run, kind: Kind) -> Record:
    """Read a run; one that lacks what belongs to it is not finished, whatever it says."""
    tags, metrics, status = tags_of(run), metrics_of(run), run["info"]["status"]
    note = tags.get("note", "")
    if kind == "evaluation":
        metrics = {name.removeprefix("val/"): value for name, value in metrics.items() if name.startswith("val/")}
    if status == "FINISHED" and kind == "training" and "checkpoint_sha256" not in tags:
        status, note = "KILLED", "its checkpoint is missing"
    if status == "FINISHED" and kind == "evaluation" and not metrics:
        status, note = "KILLED", "its metrics are missing"
    if status not in ("FINISHED", "FAILED", "KILLED"):
        status = "RUNNING"
    matches = tags.get("matches_sha256", "")
    return Record(status=status, run_id=run["info"]["run_id"], metrics=metrics, note=note, matches=matches)


def training_params(config: TrainConfig) -> dict[str, str]:
    """Return where the confidence branch sits, and the other settings that differ from the defaults."""
    head = config.model.confidence.tower if config.model.confidence else "none"
    said = ("model.confidence", "model.confidence.tower", "seed")
    others = {path: value for path, value in settings_that_differ(config).items() if path not in said}
    return {"head": head} | _params(others)


def inference_params(inference: InferenceConfig) -> dict[str, str]:
    """Return the confidence exponent, if it has a meaning, and the settings that differ from the defaults."""
    exponent = {} if inference.fusion == "product" else {"confidence_exponent": inference.confidence_exponent}
    return _params(exponent | settings_that_differ(inference))


def varied_params(rows: Sequence[Row]) -> dict[str, bool]:
    """Return the params in which rows differ, and of each whether every row has it."""
    params = [training_params(row.train) | inference_params(row.inference) for row in rows]
    names = dict.fromkeys(name for row in params for name in row)
    return {name: all(name in row for row in params) for name in names if len({row.get(name) for row in params}) > 1}


def place_tags(evaluation: Evaluation) -> dict[str, str]:
    """Tag each table with the row's place and label, which sort in the table's order, and add the paper's numbers."""
    tags = {f"paper.{name}": f"{value:g}" for name, value in evaluation.paper.items()}
    for place in reversed(evaluation.places):  # of two places in one table the first counts
        tags[f"row.{place.table}"] = f"{place.place:02d} {place.label}"
    return tags


def _params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name settings by their last part, unless two share it; MLflow's user interface cuts long names."""
    short = {path: path.rpartition(".")[2] for path in settings}
    uses = Counter(short.values())
    return {short[path] if uses[short[path]] == 1 else path: _text(value) for path, value in settings.items()}


def _text(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
