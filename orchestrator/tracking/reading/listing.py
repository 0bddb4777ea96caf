"""Asks our MLflow servers for all runs of an experiment at once, and which files are there; see mlflow_server.

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
FILES_OF_RUNS = 1000
"""Runs whose files are asked for at once: on a busy machine more take longer than an answer is waited for."""
_unable: set[str] = set()
"""Questions that a server does not know, by address."""


def listed_runs(uri: str, experiment_id: str, since: int | None = None) -> list[Line] | None:
    """Return the runs of an experiment that are not deleted, newest first; None where the server cannot tell.

    Args:
        uri: of the server.
        experiment_id: MLflow's.
        since: milliseconds since 1970; leaves out what had ended before.
    """
    query = {"experiment_id": experiment_id} | ({} if since is None else {"since": str(since)})
    url = f"{uri.rstrip('/')}{names.LISTED_RUNS}"
    if url in _unable:
        return None
    lines: list[Line] = []
    shared: dict[str, str] = {}
    try:
        with (
            session(uri) as http,
            http.get(url, params=query, timeout=(CONNECT_SECONDS, READ_SECONDS), stream=True) as answer,
        ):
            if not _is_ours(url, answer, "application/x-ndjson"):
                return None
            for text in answer.iter_lines(chunk_size=1 << 16):
                line = json.loads(text)
                if not isinstance(line, list):
                    # The number of lines stands last: what was cut short is not taken for the whole.
                    return lines if line == len(lines) else None
                lines.append(_shared(line, shared))
    except (requests.RequestException, ValueError, TypeError, AttributeError):  # MLflow's API says what is wrong
        return None
    return None


def listed_files(
    uri: str, experiment_id: str, folders: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return, by run and folder, the sizes of the files in it, by path; what the server cannot tell is left out."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    run_ids = sorted(folders)  # as an object store has them, so that it is asked for each thousand of its names once
    for first in range(0, len(run_ids), FILES_OF_RUNS):
        some = {run_id: list(folders[run_id]) for run_id in run_ids[first : first + FILES_OF_RUNS]}
        found |= _sizes(uri, experiment_id, some)
    return found


def _sizes(uri: str, experiment_id: str, folders: Mapping[str, list[str]]) -> dict[str, dict[str, dict[str, int]]]:
    url = f"{uri.rstrip('/')}{names.LISTED_FILES}"
    if url in _unable:
        return {}
    question: dict[str, Any] = {"experiment_id": experiment_id, "folders": folders}
    try:
        with (
            session(uri) as http,
            http.post(url, json=question, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer,
        ):
            if not _is_ours(url, answer, "application/json"):
                return {}
            told = answer.json()
            return {
                run_id: told[run_id] for run_id, of_run in folders.items() if set(told.get(run_id, ())) == {*of_run}
            }
    except (requests.RequestException, ValueError, TypeError, AttributeError):
        return {}


def _is_ours(url: str, answer: requests.Response, media_type: str) -> bool:
    if answer.status_code == 404:
        _unable.add(url)
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
