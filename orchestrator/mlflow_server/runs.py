"""All runs of an experiment at once.

MLflow builds an object of its ORM for each tag and metric of a run, and writes the answer twice: 10,000 runs cost the
server half a minute. Here the rows of its tables become lines of JSON, in one second. This is a view of MLflow's own
Flask application, so that its guards stand before it: of host names, and of users where it has some.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import sqlalchemy
from flask import Response, request
from mlflow.entities import LifecycleStage, RunStatus
from mlflow.server import handlers
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag

RUNS_AT_ONCE = 500
"""So many are read by one question to the database, so that neither memory nor a lock of SQLite is held for long."""
NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""How Python's JSON writes what somebody has put into the database."""


def list_runs() -> Response:
    """Answer with a line for each run of an experiment that is not deleted, newest first, and at last their number.

    With `since`, in milliseconds since 1970, only those that run, or that began or ended since then.
    """
    query = request.args
    try:
        experiment_id, since = int(query["experiment_id"]), int(query["since"]) if "since" in query else None
    except (KeyError, ValueError):
        return refusal("experiment_id and since are whole numbers")
    return Response(_lines(engine(), experiment_id, since), mimetype="application/x-ndjson")


def refusal(reason: str) -> Response:
    """Answer a question that makes no sense."""
    return Response(f"{reason}\n", 400, mimetype="text/plain")


def engine() -> sqlalchemy.Engine:
    """Return that of the server's database."""
    store: Any = handlers._get_tracking_store()
    found: sqlalchemy.Engine = store.engine
    return found


def _lines(database: sqlalchemy.Engine, experiment_id: int, since: int | None) -> Iterator[bytes]:
    run = SqlRun.__table__.c
    columns = (run.run_uuid, run.name, run.status, run.start_time, run.end_time)
    chosen = sqlalchemy.select(*columns).where(
        run.experiment_id == experiment_id, run.lifecycle_stage == LifecycleStage.ACTIVE
    )
    if since is not None:
        goes_on = [RunStatus.to_string(status) for status in (RunStatus.RUNNING, RunStatus.SCHEDULED)]
        chosen = chosen.where(run.status.in_(goes_on) | (run.end_time >= since) | (run.start_time >= since))
    with database.connect() as connection:
        # In MLflow's own order.
        runs = connection.execute(chosen.order_by(run.start_time.desc(), run.run_uuid)).all()
    for first in range(0, len(runs), RUNS_AT_ONCE):
        some = runs[first : first + RUNS_AT_ONCE]
        run_ids = [one.run_uuid for one in some]
        # A connection for each part: a reader that is slow, or gone, holds none.
        with database.connect() as connection:
            tags, params = (_values(connection, table, run_ids) for table in (SqlTag, SqlParam))
            metrics = _metrics(connection, run_ids)
        lines = []
        for one in some:
            latest, newest = metrics.get(one.run_uuid, ("{}", 0))
            about = [one.run_uuid, one.name, one.status or "", one.start_time or 0, one.end_time or 0]
            told = f"{tags.get(one.run_uuid, '{}')},{params.get(one.run_uuid, '{}')},{latest},{newest}"
            lines.append(f"{json.dumps(about, separators=(',', ':'))[:-1]},{told}]\n")
        yield "".join(lines).encode()  # together, as each piece goes to another thread and back
    yield json.dumps(len(runs)).encode() + b"\n"


def _values(connection: sqlalchemy.Connection, table: Any, run_ids: Sequence[str]) -> dict[str, str]:
    """Return tags or params of each run as JSON."""
    # Written by the database: 280,000 values as Python objects cost as much as all the rest.
    column = table.__table__.c
    # A NULL that somebody has put there is no text.
    of_run = _object(connection, column.key, sqlalchemy.func.coalesce(column.value, ""))
    asked = sqlalchemy.select(column.run_uuid, of_run).where(column.run_uuid.in_(run_ids)).group_by(column.run_uuid)
    return {run_id: told for run_id, told in connection.execute(asked)}


def _object(connection: sqlalchemy.Connection, key: Any, value: Any) -> Any:
    """Return the aggregate of a group's rows as one object of JSON, as text."""
    function = {"sqlite": "json_group_object", "postgresql": "json_object_agg"}[connection.dialect.name]
    # As text, since PostgreSQL's client would make Python objects of JSON.
    return sqlalchemy.cast(getattr(sqlalchemy.func, function)(key, value), sqlalchemy.Text)


def _metrics(connection: sqlalchemy.Connection, run_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return the latest value of each metric of each run as JSON, and when the newest arrived."""
    if connection.dialect.name == "sqlite":
        return _metrics_by_hand(connection, run_ids)
    column = SqlLatestMetric.__table__.c
    # PostgreSQL's JSON has all 17 digits of a number, and what is not finite in quotes.
    is_none = column.is_nan | column.value.is_(None)
    value = sqlalchemy.case((is_none, sqlalchemy.cast("NaN", sqlalchemy.Double)), else_=column.value)
    newest = sqlalchemy.func.coalesce(sqlalchemy.func.max(column.timestamp), 0)
    asked = sqlalchemy.select(column.run_uuid, _object(connection, column.key, value), newest)
    rows = connection.execute(asked.where(column.run_uuid.in_(run_ids)).group_by(column.run_uuid))
    return {run_id: (told, latest) for run_id, told, latest in rows}


def _metrics_by_hand(connection: sqlalchemy.Connection, run_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Write the JSON here: that of SQLite has 15 of the 17 digits that make a number."""
    # Of the driver itself: of 330,000 rows SQLAlchemy's objects take as long again as reading them.
    driver: Any = connection.connection.driver_connection
    marks = ",".join("?" * len(run_ids))
    asked = "SELECT run_uuid, key, value, timestamp, is_nan FROM latest_metrics"
    rows = driver.execute(f"{asked} WHERE run_uuid IN ({marks}) ORDER BY run_uuid", list(run_ids)).fetchall()
    quoted: dict[str, str] = {}
    found: dict[str, tuple[str, int]] = {}
    for run_id, values in groupby(rows, itemgetter(0)):
        told, newest = [], 0
        for _, key, value, timestamp, is_nan in values:
            name = quoted.get(key) or quoted.setdefault(key, json.dumps(key))
            number = "NaN" if is_nan or value is None else repr(float(value))
            told.append(f"{name}:{NOT_FINITE.get(number, number)}")
            newest = max(newest, timestamp or 0)
        found[run_id] = f"{{{','.join(told)}}}", newest
    return found
