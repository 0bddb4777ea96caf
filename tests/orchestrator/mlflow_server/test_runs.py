"""Which runs our own server lists, beside what MLflow's API says of them."""

import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import requests

from orchestrator import names
from orchestrator.tracking.reading import listing
from orchestrator.tracking.runs import (
    Tracking,
    create_run,
    open_tracking,
    read_changes,
    read_runs,
    search_runs,
    set_status,
    write,
)


@pytest.fixture
def suite(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


@pytest.fixture
def filled(suite: Tracking) -> list[str]:
    """Four runs, newest last: one of odd texts and numbers, an empty one, one that ended, and one that is deleted."""
    experiment = str(suite.experiment_id)
    odd = create_run(suite.uri, experiment, 'λ = 0.1, "so" \\ \n', {names.KIND: "training", names.TRAIN_KEY: "a"})
    metrics = {"third": 1 / 3, "tiny": 5e-324, "none": math.nan, "large": math.inf, "val/AP": 12.0}
    write(
        suite.uri,
        odd,
        metrics=metrics,
        params={"head": "box ≥ 1", "long": "x" * 6000},
        tags={"pin": "", "note": "\x1b"},
    )
    empty = create_run(suite.uri, experiment, "empty", {})
    ended = create_run(suite.uri, experiment, "ended", {})
    set_status(suite.uri, ended, "FINISHED")
    gone = create_run(suite.uri, experiment, "gone", {})
    requests.post(f"{suite.uri}/api/2.0/mlflow/runs/delete", json={"run_id": gone}, timeout=60).raise_for_status()
    return [odd, empty, ended, gone]


def test_all_runs_are_listed_as_mlflow_itself_tells_them(suite: Tracking, filled: list[str]) -> None:
    listed, told = read_runs(suite), list(search_runs(suite.uri, str(suite.experiment_id)))
    assert [run.run_id for run in listed] == [run.run_id for run in told] and len(told) == 3
    assert repr(listed[-1]) != "" and filled[-1] not in {run.run_id for run in listed}
    for own, theirs in zip(listed, told, strict=True):
        assert own.metrics.keys() == theirs.metrics.keys()
        assert all(_same(own.metrics[name], value) for name, value in theirs.metrics.items())
        for part in ("name", "status", "experiment_id", "start_time", "tags", "params", "last_metric_time"):
            assert getattr(own, part) == getattr(theirs, part), part


def test_the_list_is_what_is_asked_and_not_the_api(suite: Tracking, filled: list[str]) -> None:
    lines = listing.listed_runs(suite.uri, str(suite.experiment_id))
    assert lines is not None and len(lines) == 3


def test_changes_are_the_runs_that_go_on_and_those_that_ended_later(
    suite: Tracking, filled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, empty, ended, _ = filled
    hour = 3_600_000
    end = max(line[4] for line in listing.listed_runs(suite.uri, str(suite.experiment_id)) or [])
    later, earlier = read_changes(suite, end + hour), read_changes(suite, end - hour)
    assert {run.run_id for run in later} == {odd, empty}
    assert {run.run_id for run in earlier} == {odd, empty, ended}
    monkeypatch.setattr(listing, "listed_runs", lambda *_: None)  # a server that is not ours
    assert [run.run_id for run in read_changes(suite, end + hour)] == [run.run_id for run in later]
    assert [run.run_id for run in read_changes(suite, end - hour)] == [run.run_id for run in earlier]


def test_the_guard_of_host_names_stands_before_the_lists(suite: Tracking, filled: list[str]) -> None:
    url, query = f"{suite.uri}{names.LISTED_RUNS}", {"experiment_id": str(suite.experiment_id)}
    assert requests.get(url, params=query, timeout=60).status_code == 200
    elsewhere = {"Host": "elsewhere.example"}
    assert requests.get(url, params=query, headers=elsewhere, timeout=60).status_code == 403


@pytest.mark.parametrize("query", [{}, {"experiment_id": "x"}, {"experiment_id": "1", "since": "now"}])
def test_a_question_that_makes_no_sense_is_refused(suite: Tracking, query: dict[str, str]) -> None:
    assert requests.get(f"{suite.uri}{names.LISTED_RUNS}", params=query, timeout=60).status_code == 400


@pytest.fixture
def other_server() -> Iterator[tuple[str, dict[str, object]]]:
    """A server that answers everything as it is told: with a status, a type and a text."""
    told: dict[str, object] = {"status": 404, "type": "text/html", "text": "no"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Before the answer: who has it may look at once.
            told["asked"] = int(str(told.get("asked", 0))) + 1
            self.send_response(int(str(told["status"])))
            self.send_header("Content-Type", str(told["type"]))
            self.end_headers()
            self.wfile.write(str(told["text"]).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))  # else closing the connection resets it
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()
    server.server_close()


def test_a_server_that_knows_no_lists_is_asked_once_for_each(other_server: tuple[str, dict[str, object]]) -> None:
    uri, told = other_server
    assert listing.listed_runs(uri, "1") is None and listing.listed_runs(uri, "1") is None
    first = told.pop("asked")
    assert listing.listed_files(uri, "1", {"a": ["b"]}) == {} and listing.listed_files(uri, "1", {"a": ["b"]}) == {}
    assert (first, told["asked"]) == (1, 1)


LINE = ["id", "name", "FINISHED", 1, 2, {"kind": "training"}, {}, {"loss": math.nan}, 3]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LINE) + "\n",  # cut before the number
        json.dumps(LINE) + "\n2\n",  # a line is missing
        json.dumps(LINE)[:-20],
        json.dumps([*LINE[:5], "no tags", *LINE[6:]]) + "\n1\n",
        json.dumps(LINE[:-1]) + "\n1\n",
        "",
    ],
)
def test_a_list_that_was_cut_short_is_not_taken_for_the_whole(
    other_server: tuple[str, dict[str, object]], text: str
) -> None:
    uri, told = other_server
    told |= {"status": 200, "type": "application/x-ndjson", "text": json.dumps(LINE) + "\n1\n"}
    whole = listing.listed_runs(uri, "1")
    assert whole is not None and whole[0][:5] == ("id", "name", "FINISHED", 1, 2)
    told["text"] = text
    assert listing.listed_runs(uri, "1") is None


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
