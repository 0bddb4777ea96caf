"""What our own MLflow server answers beside MLflow's API: all runs of an experiment at once, and which files are there.

MLflow builds an object of its ORM for each tag and metric of a run, and writes the answer twice: 10,000 runs cost the
server half a minute. Here the rows of its tables become lines of JSON, in one second.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.server import handlers
from mlflow.store.tracking.dbmodels.models import SqlParam, SqlRun, SqlTag
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator import names

RUNS_AT_ONCE = 500
"""So many are read by one question to the database, so that neither memory nor a lock of SQLite is held for long."""
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""How Python's JSON writes what somebody has put into the database."""
ARTIFACTS = "mlflow-artifacts:/"
"""Begins the addresses of files that this server keeps itself."""


async def list_runs(request: Request) -> Response:
    """Answer with a line for each run of an experiment that is not deleted, newest first, and at last their number.

    With `since`, in milliseconds since 1970, only those that run, or that began or ended since then.
    """
    query = request.query_params
    try:
        experiment_id, since = int(query["experiment_id"]), int(query["since"]) if "since" in query else None
    except (KeyError, ValueError):
        return PlainTextResponse("experiment_id and since are whole numbers\n", 400)
    return StreamingResponse(_lines(_engine(), experiment_id, since), media_type="application/x-ndjson")


async def list_files(request: Request) -> Response:
    """Answer, by run and folder, with the sizes of the files in it, by path.

    Runs whose files this server does not keep itself are left out. The question is a mapping of lists of folders by
    run.
    """
    try:
        asked = await request.json()
    except (ValueError, RecursionError):
        asked = None
    if not _are_folders(asked):
        return PlainTextResponse("expected lists of folders by run\n", 400)
    return JSONResponse(await run_in_threadpool(_sizes, _engine(), asked))


ROUTES = (
    Route(names.LISTED_RUNS, list_runs, methods=["GET"]),
    Route(names.LISTED_FILES, list_files, methods=["POST"]),
)


def _are_folders(asked: object) -> bool:
    """Whether this is a mapping of lists of folders by run."""
    if not isinstance(asked, dict) or not all(isinstance(folders, list) for folders in asked.values()):
        return False
    return all(isinstance(one, str) and "\0" not in one for folders in asked.values() for one in folders)


def _engine() -> sqlalchemy.Engine:
    """Return that of the server's database."""
    store: Any = handlers._get_tracking_store()
    engine: sqlalchemy.Engine = store.engine
    return engine


def _lines(engine: sqlalchemy.Engine, experiment_id: int, since: int | None) -> Iterator[bytes]:
    run = SqlRun.__table__.c
    columns = (run.run_uuid, run.name, run.status, run.start_time, run.end_time)
    chosen = sqlalchemy.select(*columns).where(
        run.experiment_id == experiment_id, run.lifecycle_stage == LifecycleStage.ACTIVE
    )
    if since is not None:
        goes_on = [RunStatus.to_string(status) for status in (RunStatus.RUNNING, RunStatus.SCHEDULED)]
        chosen = chosen.where(run.status.in_(goes_on) | (run.end_time >= since) | (run.start_time >= since))
    with engine.connect() as connection:
        # In MLflow's own order.
        runs = connection.execute(chosen.order_by(run.start_time.desc(), run.run_uuid)).all()
    for first in range(0, len(runs), RUNS_AT_ONCE):
        some = runs[first : first + RUNS_AT_ONCE]
        run_ids = [one.run_uuid for one in some]
        # A connection for each part: a reader that is slow, or gone, holds none.
        with engine.connect() as connection:
            tags, params = (_values(connection, table, run_ids) for table in (SqlTag, SqlParam))
            metrics = _metrics(connection, run_ids)
        lines = []
        for one in some:
            latest, newest = metrics.get(one.run_uuid, ([], 0))
            about = [one.run_uuid, one.name, one.status or "", one.start_time or 0, one.end_time or 0]
            told = f"{tags.get(one.run_uuid, '{}')},{params.get(one.run_uuid, '{}')},{{{','.join(latest)}}},{newest}"
            lines.append(f"{json.dumps(about, separators=(',', ':'))[:-1]},{told}]\n")
        yield "".join(lines).encode()  # together, as each piece goes to another thread and back
    yield json.dumps(len(runs)).encode() + b"\n"


def _values(connection: sqlalchemy.Connection, table: Any, run_ids: Sequence[str]) -> dict[str, str]:
    """Return tags or params of each run as JSON."""
    # Written by SQLite: 280,000 values as Python objects cost as much as all the rest.
    column = table.__table__.c
    # A NULL that somebody has put there is no text.
    of_run = sqlalchemy.func.json_group_object(column.key, sqlalchemy.func.coalesce(column.value, ""))
    asked = sqlalchemy.select(column.run_uuid, of_run).where(column.run_uuid.in_(run_ids)).group_by(column.run_uuid)
    return {run_id: told for run_id, told in connection.execute(asked)}


def _metrics(connection: sqlalchemy.Connection, run_ids: Sequence[str]) -> dict[str, tuple[list[str], int]]:
    """Return the latest value of each metric of each run as JSON, and when the newest arrived."""
    # Of the driver itself: of 330,000 rows SQLAlchemy's objects take as long again as reading them.
    driver: Any = connection.connection.driver_connection
    marks = ",".join("?" * len(run_ids))
    asked = "SELECT run_uuid, key, value, timestamp, is_nan FROM latest_metrics"
    rows = driver.execute(f"{asked} WHERE run_uuid IN ({marks}) ORDER BY run_uuid", list(run_ids)).fetchall()
    quoted: dict[str, str] = {}
    found: dict[str, tuple[list[str], int]] = {}
    for run_id, values in groupby(rows, itemgetter(0)):
        told, newest = [], 0
        for _, key, value, timestamp, is_nan in values:
            name = quoted.get(key) or quoted.setdefault(key, json.dumps(key))
            # Not by SQLite, whose JSON has 15 of the 17 digits that make a number.
            number = "NaN" if is_nan or value is None else repr(float(value))
            told.append(f"{name}:{NOT_FINITE.get(number, number)}")
            newest = max(newest, timestamp or 0)
        found[run_id] = told, newest
    return found


def _sizes(engine: sqlalchemy.Engine, asked: Mapping[str, Iterable[str]]) -> dict[str, dict[str, dict[str, int]]]:
    kept = os.environ.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", "")
    if not os.path.isabs(kept):  # an object store, say
        return {}
    root, run = Path(kept).resolve(), SqlRun.__table__.c
    found: dict[str, dict[str, dict[str, int]]] = {}
    run_ids = list(asked)
    with engine.connect() as connection:
        for first in range(0, len(run_ids), RUNS_AT_ONCE):
            chosen = run.run_uuid.in_(run_ids[first : first + RUNS_AT_ONCE])
            for run_id, uri in connection.execute(sqlalchemy.select(run.run_uuid, run.artifact_uri).where(chosen)):
                if (uri or "").startswith(ARTIFACTS) and not uri.startswith(f"{ARTIFACTS}/"):
                    own = root / uri.removeprefix(ARTIFACTS)
                    found[run_id] = {folder: _sizes_in(root, own, folder) for folder in asked[run_id]}
    return found


def _sizes_in(root: Path, own: Path, folder: str) -> dict[str, int]:
    inside = (own / folder).resolve()
    # Neither a run's address nor a folder's name leads out of what this server keeps.
    if not inside.is_relative_to(own.resolve()) or not own.resolve().is_relative_to(root):
        return {}
    sizes: dict[str, int] = {}
    with suppress(OSError), os.scandir(inside) as entries:
        for entry in entries:
            if entry.is_file():
                sizes[f"{folder}/{entry.name}" if folder else entry.name] = entry.stat().st_size
    return sizes
