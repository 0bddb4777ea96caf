"""Files of MLflow runs: upload, download, list, delete, check; by mlflow itself, whose import takes seconds."""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from requests.utils import get_netrc_auth

from model.data.cache import file_sha256
from model.foreign import parse_json
from model.names import WEIGHTS
from orchestrator import names
from orchestrator.addresses import without_secrets
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.tracking import rest
from orchestrator.tracking.reading import listing
from orchestrator.tracking.rest import DiskFull, Refused, ServerAway, full_disk, one_line, way_out
from orchestrator.tracking.runs import Run, Tracking, get_run, write

if TYPE_CHECKING:
    from mlflow import MlflowClient

Progress = Callable[[int, int], None]
"""Is given how many bytes, or images, are done and how many there are in all; of a download from another thread."""

NOT_FOR_GOOD = (404, 408, 429)
"""Statuses below 500 that may be others later; a run that a server has lost is followed by another one."""


class Missing(UserError):
    """The server knows of no such file, or has lost it."""


def upload(uri: str, run_id: str, files: Sequence[Path], folder: str | None = None) -> None:
    """Store files with a run, in a folder of its artifacts.

    Raises:
        ServerAway: the server does not take one; it may later.
        Refused: it never will.
    """
    for file in files:
        with _answers(f"MLflow at {uri} does not take {file} for run {run_id}", uri):
            _repository(uri, run_id).log_artifact(str(file), folder)


def delete(uri: str, run_id: str, path: str) -> None:
    """Remove a file or a folder of a run's artifacts for good.

    Raises:
        ServerAway: the server does not remove it.
        Refused: it never will.
    """
    with _answers(f"MLflow at {uri} does not remove {path} of run {run_id}"):
        _repository(uri, run_id).delete_artifacts(path)


def list_files(uri: str, run_id: str, folder: str | None = None) -> list[str]:
    """Return the paths of the files in one folder of a run's artifacts.

    Raises:
        ServerAway: the server does not tell; it may later.
        Refused: it never will.
    """
    with _answers(f"MLflow at {uri} does not list the files of run {run_id}"):
        return [file.path for file in _repository(uri, run_id).list_artifacts(folder) if not file.is_dir]


def upload_texts(uri: str, run_id: str, files: Mapping[str, str]) -> None:
    """Store texts as files of a run, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        upload(uri, run_id, [Path(folder) / name for name in files])


def download(
    uri: str, run_id: str, path: str, into: Path | None = None, *, progress: Progress = lambda done, total: None
) -> Path:
    """Fetch one file of a run, such as `detections/detections.parquet`.

    Args:
        uri: of the server.
        run_id: whose artifact it is.
        path: inside the artifacts of the run.
        into: the folder in which it will lie under its own name; None takes a new temporary one, for the caller to
            remove.
        progress: see Progress.

    Raises:
        Missing: the run has no such file.
        ServerAway: the server does not answer.
        Refused: it does not give the file to this user, say.
        UserError: it sends less than the whole.
    """
    failures = _failures()
    parent, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    folder = Path(tempfile.mkdtemp()) if into is None else into
    try:
        # Of its folder, so that it comes to lie under its own name.
        repository = _repository(uri, run_id, "" if parent == "." else parent)
        # Listed first, to tell a missing file from an absent server, and one that was cut short from a whole one.
        sizes = {file.path: int(file.file_size or 0) for file in repository.list_artifacts() if not file.is_dir}
        if name not in sizes:
            raise Missing(f"MLflow at {uri} has no file {path} of run {run_id}: it was deleted, or never stored")
        with _watched(folder / name, sizes[name], progress):
            file = Path(repository.download_artifacts(name, str(folder)))
    except failures as error:
        raise _failed(f"MLflow at {uri} does not give {path} of run {run_id}", error) from error
    if file.stat().st_size != sizes[name]:
        raise UserError(f"MLflow at {uri} sent {file.stat().st_size} of {sizes[name]} bytes of {path}; try again")
    return file


def _repository(uri: str, run_id: str, folder: str = "") -> Any:
    """Return where the files of a run lie, or those of a folder of it; for a file, mlflow's client asks nine times."""
    client_of(uri)  # which prepares the environment
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.uri import append_to_uri_path

    place = append_to_uri_path(_root(uri, run_id), folder)  # type: ignore[no-untyped-call]
    return get_artifact_repository(place, tracking_uri=uri)


@lru_cache(maxsize=10_000)
def _root(uri: str, run_id: str) -> str:
    """Ask where the files of a run lie, which is said when it is created and never changes."""
    root: str = client_of(uri).get_run(run_id).info.artifact_uri
    return root


@contextmanager
def _watched(file: Path, total: int, progress: Progress, seconds: float = 0.2) -> Iterator[None]:
    """Tell how a file grows; mlflow itself counts files, of which there is one."""
    arrived = threading.Event()

    def watch() -> None:
        while not arrived.wait(seconds):
            with suppress(OSError):  # not begun yet
                progress(min(file.stat().st_size, total), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        arrived.set()
        watcher.join()
    progress(total, total)


@contextmanager
def _answers(what_not: str, uri: str = "") -> Iterator[None]:
    """Turn an error of mlflow into one that says what does not work, or of a server that its disk is full."""
    failures = _failures()
    try:
        yield
    except failures as error:
        if uri and (full := full_disk(uri, str(error))):
            raise DiskFull(full) from error
        raise _failed(what_not, error) from error


def _failed(what_not: str, error: Exception) -> UserError:
    """Return what an error of mlflow means: a refusal that asking again does not change, or a server that is away."""
    told = f"{what_not}: {without_secrets(str(error))}"
    if isinstance(error, ImportError):
        # The server names a place like s3://, and leaves it to its clients to reach that.
        return Refused(
            f"{told}; install the library of that store here and on every node, or start the server with "
            "--serve-artifacts, and --artifacts-destination instead of --default-artifact-root, as deploy/ does. A "
            "suite keeps its old place, so give the tables another one then (suite: NAME)"
        )
    response = getattr(error, "response", None)  # of files; what mlflow asks of the API has a code for the status
    status = response.status_code if response is not None else getattr(error, "get_http_status_code", lambda: 0)()
    if not 400 <= status < 500 or status in NOT_FOR_GOOD:
        return ServerAway(told)
    help_ = way_out(status, response.request if response is not None else None)
    return Refused(f"{one_line(told)}{f'; {help_}' if help_ else ''}", str(getattr(error, "error_code", "")))


def _failures() -> tuple[type[Exception], ...]:
    """Return what mlflow raises where a server does not do what it is asked."""
    tame_mlflow()  # before mlflow is imported, which reports on its use otherwise
    from mlflow.exceptions import MlflowException

    return OSError, MlflowException, ImportError


def client_of(uri: str) -> "MlflowClient":
    """Return MLflow's client of a server, for its files as well."""
    tame_mlflow()
    if rest.is_named_key() and get_netrc_auth(uri):
        # mlflow sends a token as a header, which requests replaces by what ~/.netrc has for the host.
        os.environ["NETRC"] = os.devnull
    import mlflow

    if mlflow.__version__.startswith(("3.5.", "3.6.")):
        mlflow.set_tracking_uri(uri)  # until 3.7 files go where this points, whatever server a client names
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def tame_mlflow() -> None:
    """Set, where they are not set, mlflow's variables for short retries, files by way of the server, and no proxy."""
    # With mlflow's defaults each call to an absent server blocks for 247 s; with these it is 2.7 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow on S3 hands out signed addresses of S3; where only the server reaches S3, downloads hang for minutes.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if "127.0.0.1" not in direct:
        os.environ["no_proxy"] = f"{direct},127.0.0.1,localhost".lstrip(",")


def store(uri: str, run_id: str, files: Sequence[Path], folder: str, *, needed: bool = True) -> None:
    """Store files in a folder of a run's artifacts, and note their sizes and digests with the run.

    Of files without which a run is complete, not `needed`, the digests alone.
    """
    upload(uri, run_id, files, folder)
    run = get_run(uri, run_id)
    tags = {
        names.FILES_SHA256: json.dumps(digests(run) | {f"{folder}/{file.name}": file_sha256(file) for file in files})
    }
    if needed:
        sizes = {f"{folder}/{file.name}": file.stat().st_size for file in files}
        tags[names.FILES] = json.dumps(run.files | sizes)
    write(uri, run_id, tags=tags)


def digests(run: Run) -> dict[str, str]:
    """Return the sha256 of a run's artifacts by path, as far as they were recorded."""
    known = {
        f"{names.CHECKPOINT}/{WEIGHTS}": run.tags.get(names.WEIGHTS_SHA256),
        f"{names.DETECTIONS}/{names.MATCHES_FILE}": run.tags.get(names.MATCHES_SHA256),
        f"{names.LAB}/{names.LAB_FILE}": run.tags.get(names.LAB_SHA256),
    }
    return _noted_digests(run) | {path: digest for path, digest in known.items() if digest}


def _noted_digests(run: Run) -> dict[str, str]:
    try:
        noted = parse_json(run.tags.get(names.FILES_SHA256, "{}"))
    except ValueError:  # somebody has edited it
        return {}
    return {path: one for path, one in noted.items() if isinstance(one, str)} if isinstance(noted, dict) else {}


def check_files(tracking: Tracking, ledger: Ledger, keys: Iterable[str]) -> Ledger:
    """Look whether the finished runs of these keys still hold their files; those that do not are no longer finished.

    Nothing is written. Our own servers look at all in one question; another one is asked for each folder, several at
    once: 50 take about 0.2 seconds.
    """
    wanted = set(keys)
    records = {**ledger.trainings, **ledger.evaluations}
    finished = {key: record for key, record in records.items() if key in wanted and record.status == "FINISHED"}
    lost = _lost(tracking, finished.values())

    def seen(of_kind: Mapping[str, Record]) -> dict[str, Record]:
        return {
            key: replace(record, status="KILLED", note=_note(lost[record.run_id])) if record.run_id in lost else record
            for key, record in of_kind.items()
        }

    return Ledger(trainings=seen(ledger.trainings), evaluations=seen(ledger.evaluations)) if lost else ledger


def _lost(tracking: Tracking, records: Iterable[Record]) -> dict[str, list[str]]:
    """Return, by run, the folders that lack a file or hold one of another size."""
    records = list(records)
    folders = [(r, folder) for r in records for folder in dict.fromkeys(path.rpartition("/")[0] for path in r.files)]
    asked: dict[str, list[str]] = {}
    for record, folder in folders:
        asked.setdefault(record.run_id, []).append(folder)
    listed = listing.listed_files(tracking.uri, tracking.experiment_id or "", asked)
    unknown = [(record, folder) for record, folder in folders if record.run_id not in listed]
    queries = [{"run_id": record.run_id, "path": folder} for record, folder in unknown]
    answers = rest.get_many(tracking.uri, "artifacts/list", queries) if queries else []
    for (record, folder), answer in zip(unknown, answers, strict=True):
        sizes = {file["path"]: int(file.get("file_size", 0)) for file in answer.get("files", [])}
        listed.setdefault(record.run_id, {})[folder] = sizes
    lost: dict[str, list[str]] = {}
    for record, folder in folders:
        there = listed[record.run_id][folder]
        noted = {path: size for path, size in record.files.items() if path.rpartition("/")[0] == folder}
        if not noted.items() <= there.items():
            lost.setdefault(record.run_id, []).append(folder)
    return lost


def _note(folders: Sequence[str]) -> str:
    are = "are" if len(folders) > 1 or folders[0].endswith("s") else "is"
    return f"its {' and '.join(folders)} {are} missing"
