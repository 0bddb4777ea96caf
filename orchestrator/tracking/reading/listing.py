"""Asks our own MLflow server for all runs of an experiment at once, and which files are there; see mlflow_lists.

Other servers do not know these questions; those who ask go on with MLflow's API then, which costs more.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from orchestrator import names
from orchestrator.tracking.rest import CONNECT_SECONDS, READ_SECONDS, session

Line = tuple[str, str | None, str, int, int, dict[str, str], dict[str, str], dict[str, float], int]
"""Of a run: its id, name, status, start and end in milliseconds since 1970, tags, params, latest metrics, and when the
newest of these arrived."""
_unable: set[str] = set()
"""Servers that do not know the questions."""


def listed_runs(uri: str, experiment_id: str, since: int | None = None) -> list[Line] | None:
    """Return the runs of an experiment that are not deleted, newest first; None where the server cannot tell.

    Args:
        uri: of the server.
        experiment_id: MLflow's.
        since: milliseconds since 1970; leaves out what had ended before.
    """
    query = {"experiment_id": experiment_id} | ({} if since is None else {"since": str(since)})
    if uri in _unable:
        return None
    lines: list[Line] = []
    shared: dict[str, str] = {}
    try:
        with (
            session(uri) as http,
            http.get(
                f"{uri.rstrip('/')}{names.LISTED_RUNS}",
                params=query,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                stream=True,
            ) as answer,
        ):
            if not _is_ours(uri, answer, "application/x-ndjson"):
                return None
            for text in answer.iter_lines(chunk_size=1 << 16):
                line = json.loads(text)
                if not isinstance(line, list):
                    # The number of lines stands last: what was cut short is not taken for the whole.
                    return lines if line == len(lines) else None
                lines.append(_shared(line, shared))
    except (requests.RequestException, ValueError):  # MLflow's API says what is wrong
        return None
    return None


def listed_files(uri: str, folders: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, int]]]:
    """Return, by run and folder, the sizes of the files in it, by path; what the server cannot tell is left out."""
    if uri in _unable or not folders:
        return {}
    try:
        with (
            session(uri) as http,
            http.post(
                f"{uri.rstrip('/')}{names.LISTED_FILES}",
                json={run_id: list(of_run) for run_id, of_run in folders.items()},
                timeout=(CONNECT_SECONDS, READ_SECONDS),
            ) as answer,
        ):
            if not _is_ours(uri, answer, "application/json"):
                return {}
            found: dict[str, dict[str, dict[str, int]]] = answer.json()
            return found
    except (requests.RequestException, ValueError):
        return {}


def _is_ours(uri: str, answer: requests.Response, media_type: str) -> bool:
    if answer.status_code == 404:
        _unable.add(uri)
    return answer.status_code == 200 and answer.headers.get("content-type", "").startswith(media_type)


def _shared(line: list[Any], shared: dict[str, str]) -> Line:
    """Keep one copy of texts that thousands of runs have: names, and most values of tags and params."""
    run_id, name, status, start, end, tags, params, metrics, newest = line
    keep = shared.setdefault
    return (
        run_id,
        name,
        sys.intern(status),
        start,
        end,
        {sys.intern(key): keep(value, value) for key, value in tags.items()},
        {sys.intern(key): keep(value, value) for key, value in params.items()},
        {sys.intern(key): float(value) for key, value in metrics.items()},
        newest,
    )
