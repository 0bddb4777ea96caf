"""Which files our own server lists: those of the runs that were asked for, in a folder or on S3, and no others."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import pytest
import requests

from orchestrator import names
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.mlflow_server import files
from orchestrator.tracking.artifacts import check_files, upload_texts
from orchestrator.tracking.reading import listing
from orchestrator.tracking.runs import Tracking, create_run, open_tracking


@pytest.fixture
def suite(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


@pytest.fixture
def pair(suite: Tracking) -> tuple[str, str]:
    """Two runs with a file each."""
    whole, cut = (create_run(suite.uri, str(suite.experiment_id), name, {}) for name in ("whole", "cut"))
    for run_id in (whole, cut):
        upload_texts(suite.uri, run_id, {"card.json": "{}"})
    return whole, cut


def test_files_are_looked_at_without_a_question_for_each(suite: Tracking, pair: tuple[str, str]) -> None:
    whole, cut = pair
    asked = {whole: ["", "nothing"], cut: ["", "../../.."]}
    assert listing.listed_files(suite.uri, str(suite.experiment_id), asked) == {
        whole: {"": {"card.json": 2}, "nothing": {}},
        cut: {"": {"card.json": 2}, "../../..": {}},  # nothing outside of the run is told
    }
    ledger = Ledger(
        trainings={
            "a": Record(status="FINISHED", run_id=whole, files={"card.json": 2}),
            "b": Record(status="FINISHED", run_id=cut, files={"card.json": 3}),
        }
    )
    checked = check_files(suite, ledger, ["a", "b"]).trainings
    assert (checked["a"].status, checked["b"].status) == ("FINISHED", "KILLED")


def test_runs_of_another_experiment_are_left_out(suite: Tracking, pair: tuple[str, str]) -> None:
    other = open_tracking(suite.uri, f"{suite.suite} beside it")
    assert listing.listed_files(suite.uri, str(other.experiment_id), {run_id: [""] for run_id in pair}) == {}


@pytest.mark.parametrize("folders", [None, [1], {"a": 1}, {"a": [1]}, {"a": ["b\0"]}])
def test_folders_that_are_none_are_refused(suite: Tracking, folders: Any) -> None:
    question = {"experiment_id": str(suite.experiment_id), "folders": folders}
    assert requests.post(f"{suite.uri}{names.LISTED_FILES}", json=question, timeout=60).status_code == 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1",
        "[]",
        '{"folders": {}}',
        '{"experiment_id": "x", "folders": {}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(suite: Tracking, text: str) -> None:
    assert requests.post(f"{suite.uri}{names.LISTED_FILES}", data=text, timeout=60).status_code == 400


class Bucket:
    """S3 as far as it is asked here: names in their order, a page at a time."""

    def __init__(self, keys: Sequence[str], page: int) -> None:
        self.keys, self.page, self.questions = sorted(keys), page, 0

    def list_objects_v2(self, *, Bucket: str, StartAfter: str) -> dict[str, Any]:
        self.questions += 1
        first = bisect_right(self.keys, StartAfter)
        page = self.keys[first : first + self.page]
        told = [{"Key": key, "Size": len(key)} for key in page]
        return ({"Contents": told} if told else {}) | {"IsTruncated": first + self.page < len(self.keys)}


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_s3_is_asked_for_many_runs_at_once_and_not_for_what_lies_between(page: int, every: int) -> None:
    runs = [f"{place:032x}" for place in range(0, 800, 4)]
    kept = {run_id: ["card.json", "checkpoint/a", "checkpoint/b", "checkpoint/deep/c"] for run_id in runs[1::2]}
    bucket = Bucket([f"root/7/{run_id}/artifacts/{path}" for run_id in kept for path in kept[run_id]] + ["zzz"], page)
    asked = {run_id: ["", "checkpoint"] for run_id in runs[::every]}
    found = files._sizes_on_s3(bucket, "s3://bucket/root", {run_id: f"7/{run_id}/artifacts" for run_id in asked}, asked)

    def sizes(run_id: str, *paths: str) -> dict[str, int]:
        return {path: len(f"root/7/{run_id}/artifacts/{path}") for path in paths if run_id in kept}

    assert found == {
        run_id: {"": sizes(run_id, "card.json"), "checkpoint": sizes(run_id, "checkpoint/a", "checkpoint/b")}
        for run_id in asked
    }
    # Neither more than one for each run, and its names, nor more than there are pages.
    assert bucket.questions <= min(len(asked) * -(-5 // page), -(-len(bucket.keys) // page)) + 1


def test_an_empty_bucket_has_no_files() -> None:
    found = files._sizes_on_s3(Bucket([], 10), "s3://bucket", {"a": "7/a/artifacts"}, {"a": [""]})
    assert found == {"a": {"": {}}}


def test_the_answer_is_json(suite: Tracking, pair: tuple[str, str]) -> None:
    question: dict[str, Any] = {"experiment_id": str(suite.experiment_id), "folders": {pair[0]: [""]}}
    answer = requests.post(f"{suite.uri}{names.LISTED_FILES}", json=question, timeout=60)
    assert answer.headers["content-type"].startswith("application/json")
    assert json.loads(answer.text) == {pair[0]: {"": {"card.json": 2}}}
