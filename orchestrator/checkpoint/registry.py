"""The registered model of a suite: its best detector, as MLflow loads and serves it.

Best is the highest AP among the finished evaluations on the split that the suite's tables are scored on. A version is
made when another evaluation becomes best, and never for the rest, since each carries a copy of the weights.
"""

import base64
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import model
from model.config import DataConfig
from orchestrator import names
from orchestrator.addresses import without_secrets
from orchestrator.checkpoint.find import FinishedEvaluation, Query, best_version, finished, select
from orchestrator.checkpoint.pull import Provenance, fetch, training_of
from orchestrator.errors import Say, UserError
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import client_of, tame_mlflow
from orchestrator.tracking.edits.experiments import quoted
from orchestrator.tracking.suite import Suite

REQUIREMENTS = ("mlflow", "numpy", "pillow", "pyarrow", "safetensors", "torch", "torchvision")
"""What `model.load` imports; the code itself travels with the model."""


def register_best(suite: Suite, say: Say) -> None:
    """Register the suite's best evaluation under the alias `best`, unless it has it; a failure stops nothing."""
    tracking = suite.tracking
    if tracking is None:
        return
    try:
        best = best_of(list(finished(suite.mlflow_runs, suite.name)))
        if best is None:
            return
        name, key = names.model_name(suite.name), best.run.key
        held = best_version(tracking.uri, suite.name)
        if held is not None and held.get(names.EVALUATION_KEY) == key:
            return
        # Each version holds a copy of the weights: one that was best before is not made again.
        number = _version_of(tracking.uri, name, key) or _register(tracking.uri, name, best)
        alias = {"name": name, "alias": names.BEST, "version": number}
        rest.post(tracking.uri, "registered-models/alias", alias)
        label, ap = best.label(), best.metrics["AP"]
        say(f"registered model {name} version {number}, alias {names.BEST}: {label}, AP {ap:.1f}")
    except UserError as error:
        say(f"the best checkpoint was not registered, the next submit tries again: {error}")


def best_of(evaluations: Sequence[FinishedEvaluation]) -> FinishedEvaluation | None:
    """Return the evaluation of highest AP on the split that most are scored on, of those that none is trained on."""
    measured = [one for one in evaluations if "AP" in one.metrics and not _is_trained_on(one)]
    splits = Counter(one.tags.get(names.SPLIT) for one in measured)
    # Numbers of two splits do not compare; of two that are scored as often, the first seen counts.
    usual = max(splits, key=splits.__getitem__, default=None)
    compared = [one for one in measured if one.tags.get(names.SPLIT) == usual]
    return select(compared, Query()) if compared else None


def _is_trained_on(one: FinishedEvaluation) -> bool:
    return one.tags.get(names.SPLIT) == one.run.params.get("train_split", DataConfig().train_split)


def _register(uri: str, name: str, best: FinishedEvaluation) -> str:
    """Make a version of the registered model, and return its number."""
    client = client_of(uri)
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    run_id = str(training_of(uri, best).run_id)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, saved = Path(scratch) / "checkpoint", Path(scratch) / "model"
        card = fetch(uri, best, best.label(), checkpoint)
        try:
            _ensure(uri, name, card)
            # By the client, as `log_model` would log to the server and run that the process points at.
            logged = client.create_logged_model(
                best.run.experiment_id, name=name, source_run_id=run_id, tags=_tags(card), model_type="detector"
            )
            described = Model(artifact_path=logged.artifact_location, run_id=run_id, model_id=logged.model_id)
            _save_model(saved, checkpoint, described)
            client.log_model_artifacts(logged.model_id, str(saved))
            client.finalize_logged_model(logged.model_id, "READY")
            made = client.create_model_version(
                name, f"models:/{logged.model_id}", run_id=run_id, tags=_tags(card), model_id=logged.model_id
            )
        except (OSError, MlflowException) as error:
            raise UserError(f"MLflow at {uri} does not take model {name}: {without_secrets(str(error))}") from error
    return str(made.version)


def _save_model(folder: Path, checkpoint: Path, described: Any) -> None:
    """Write a checkpoint as an MLflow model, code and requirements included."""
    tame_mlflow()
    import mlflow.pyfunc

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # As a Python function: mlflow.pytorch exports with torch.export, which refuses a detector's lists of outputs.
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(Path(__file__).with_name("served_model.py")),  # as source: nothing has to be unpickled
        artifacts={"checkpoint": str(checkpoint)},
        code_paths=[str(Path(model.__file__).parent)],
        # Without "+cpu" or "+cu130", which only the index of torch itself has.
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        signature=_signature(),
        input_example=(_example(), {"score": 0.3}),
        mlflow_model=described,
    )


def _ensure(uri: str, name: str, card: Provenance) -> None:
    """Make the registered model, unless it is there."""
    try:
        text = f"The best detector of suite {card.suite}. Input: JPEG or PNG as base64 text, one a row."
        rest.post(uri, "registered-models/create", {"name": name, "description": text})
    except rest.Refused as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version_of(uri: str, name: str, key: str) -> str | None:
    """Return the number of the version that this evaluation has already, from an earlier time as best."""
    query = {"filter": f"name = {quoted(name)}", "max_results": 1000}
    for one in rest.pages(uri, "model-versions/search", query, "model_versions", by_get=True):
        tags = {tag["key"]: tag["value"] for tag in one.get("tags", [])}
        if tags.get(names.EVALUATION_KEY) == key and one.get("status") == "READY":
            return str(one["version"])
    return None


def _tags(card: Provenance) -> dict[str, str]:
    return {
        "row": card.row,
        "AP": f"{card.metrics['AP']:.2f}",
        "split": card.split,
        names.TRAIN_KEY: card.train_key,
        names.EVALUATION_KEY: card.evaluation_key,
        "weights_sha256": card.weights_sha256,
    }


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, DataType

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(Array(DataType.double)), "boxes"),
        ColSpec(Array(DataType.string), "labels"),
        ColSpec(Array(DataType.long), "category_ids"),
        ColSpec(Array(DataType.double), "scores"),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema(outputs),
        params=ParamSchema([ParamSpec("score", DataType.double, 0.0)]),
    )


def _example() -> Any:
    import pandas as pd  # type: ignore[import-untyped]
    from PIL import Image

    drawn = io.BytesIO()
    Image.new("RGB", (64, 48), (120, 140, 160)).save(drawn, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(drawn.getvalue()).decode()]})
