"""Which files the runs of an experiment have, all at once.

MLflow's API is asked for each folder of each run, and asks the object store anew each time. Here a folder of this
machine is read, or S3 is asked for a thousand names at once. A view of MLflow's own Flask application, as `runs`.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy
from flask import Response, request
from mlflow.store.tracking.dbmodels.models import SqlRun

from orchestrator.mlflow_server.runs import RUNS_AT_ONCE, engine, refusal

ARTIFACTS = "mlflow-artifacts:/"
"""Begins the addresses of files that this server keeps itself."""

Folders = Mapping[str, Sequence[str]]
"""Folders that are asked for, by run; "" is that of the run itself."""
Sizes = dict[str, dict[str, int]]
"""Of the files in a run's folders, in bytes: by folder, then by path within the run."""


def list_files() -> Response:
    """Answer, by run and folder, with the sizes of the files in it, by path.

    The question is an object of `experiment_id`, and `folders`: lists of folders by run. Runs of other experiments are
    left out, and those whose files this server keeps neither in a folder nor on S3.
    """
    try:
        asked = json.loads(request.get_data())
        experiment_id, folders = int(asked["experiment_id"]), asked["folders"]
    except (ValueError, RecursionError, KeyError, TypeError):
        experiment_id, folders = 0, None
    if not _are_folders(folders):
        return refusal("expected experiment_id, and in folders lists of folders by run")
    places = dict(_places(engine(), experiment_id, list(folders)))
    kept = os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", "")
    found: dict[str, Sizes] = {}
    if os.path.isabs(kept):
        root = Path(kept).resolve()
        found = {run_id: _sizes_in(root, place, folders[run_id]) for run_id, place in places.items()}
    elif kept.startswith("s3://"):
        found = _sizes_on_s3(_s3(), kept, places, folders)
    return Response(json.dumps(found), mimetype="application/json")


def _are_folders(asked: object) -> bool:
    """Whether this is a mapping of lists of folders by run."""
    if not isinstance(asked, dict) or not all(isinstance(folders, list) for folders in asked.values()):
        return False
    return all(isinstance(one, str) and "\0" not in one for folders in asked.values() for one in folders)


def _places(database: sqlalchemy.Engine, experiment_id: int, run_ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield runs, and where below the server's destination their files lie."""
    run = SqlRun.__table__.c
    asked = sqlalchemy.select(run.run_uuid, run.artifact_uri).where(run.experiment_id == experiment_id)
    with database.connect() as connection:
        for first in range(0, len(run_ids), RUNS_AT_ONCE):
            chosen = run.run_uuid.in_(run_ids[first : first + RUNS_AT_ONCE])
            for run_id, uri in connection.execute(asked.where(chosen)):
                if (uri or "").startswith(ARTIFACTS) and not uri.startswith(f"{ARTIFACTS}/"):
                    yield run_id, uri.removeprefix(ARTIFACTS)


def _sizes_in(root: Path, place: str, folders: Sequence[str]) -> Sizes:
    own = (root / place).resolve()
    return {folder: _sizes_of(root, own, folder) for folder in folders}


def _sizes_of(root: Path, own: Path, folder: str) -> dict[str, int]:
    inside = (own / folder).resolve()
    # Neither a run's address nor a folder's name leads out of what this server keeps.
    if not inside.is_relative_to(own) or not own.is_relative_to(root):
        return {}
    sizes: dict[str, int] = {}
    with suppress(OSError), os.scandir(inside) as entries:
        for entry in entries:
            if entry.is_file():
                sizes[f"{folder}/{entry.name}" if folder else entry.name] = entry.stat().st_size
    return sizes


def _s3() -> Any:
    import boto3  # which only a server on S3 has

    return boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None)


def _sizes_on_s3(client: Any, kept: str, places: Mapping[str, str], folders: Folders) -> dict[str, Sizes]:
    bucket, root = urlsplit(kept).netloc, urlsplit(kept).path.strip("/")
    runs = {f"{root}/{place}/".lstrip("/"): run_id for run_id, place in places.items()}
    found = {run_id: {folder: dict[str, int]() for folder in folders[run_id]} for run_id in places}
    prefixes = sorted(runs)
    for key, size in _objects(client, bucket, prefixes):
        prefix = prefixes[max(bisect_right(prefixes, key) - 1, 0)]
        path = key.removeprefix(prefix)
        of_folder = found[runs[prefix]].get(path.rpartition("/")[0])
        if key.startswith(prefix) and of_folder is not None:
            of_folder[path] = size
    return found


def _objects(client: Any, bucket: str, prefixes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield the objects under sorted prefixes, and some between them: a question tells of many runs, but skips gaps."""
    place, last = 0, ""
    while place < len(prefixes):
        page = client.list_objects_v2(Bucket=bucket, StartAfter=max(last, prefixes[place]))
        listed = page.get("Contents", [])
        yield from ((one["Key"], one["Size"]) for one in listed)
        if not listed or not page["IsTruncated"]:
            return
        last = listed[-1]["Key"]
        while place < len(prefixes) and prefixes[place] < last and not last.startswith(prefixes[place]):
            place += 1
