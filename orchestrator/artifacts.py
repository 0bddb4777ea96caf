"""Files of MLflow runs, sent by mlflow itself, whose import takes seconds; the only module that imports it."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import UserError


def upload(uri: str, run_id: str, files: Sequence[Path], folder: str | None = None) -> None:
    """Store files with a run, in a folder of its artifacts.

    Raises:
        UserError: the server does not take one.
    """
    _tame_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    for file in files:
        try:
            client.log_artifact(run_id, str(file), folder)
        except (OSError, MlflowException) as error:
            raise UserError(f"MLflow at {uri} does not take {file} for run {run_id}: {error}") from error


def upload_texts(uri: str, run_id: str, files: Mapping[str, str]) -> None:
    """Store texts as files of a run, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        upload(uri, run_id, [Path(folder) / name for name in files])


def _tame_mlflow() -> None:
    """Give up on an absent server in seconds instead of four minutes, and reach our own one past any proxy."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "127.0.0.1" not in direct:
        os.environ["no_proxy"] = f"{direct},127.0.0.1,localhost".lstrip(",")
