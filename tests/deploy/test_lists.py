"""What the cluster's MLflow lists of PostgreSQL, beside what MLflow's API says of the same runs, and to whom."""

import math
from typing import Any

import pytest
import requests

from orchestrator import names
from orchestrator.tracking import rest
from orchestrator.tracking.artifacts import upload_texts
from orchestrator.tracking.reading import listing
from orchestrator.tracking.runs import (
    create_run,
    open_tracking,
    read_changes,
    read_runs,
    search_runs,
    set_status,
    write,
)
from tests.deploy.stack import Stack

pytestmark = pytest.mark.slow


@pytest.fixture
def as_job(services: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in services.driver_environment().items():
        if name.startswith("MLFLOW_TRACKING_"):
            monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("as_job")
def test_all_runs_are_listed_as_mlflow_itself_tells_them(services: Stack):
    suite = open_tracking(services.mlflow, "lists")
    experiment = str(suite.experiment_id)
    odd = create_run(suite.uri, experiment, 'λ = 0.1, "so" \\ \n', {names.KIND: "training", names.TRAIN_KEY: "a"})
    metrics = {"third": 1 / 3, "tiny": 1e-300, "none": math.nan, "large": math.inf, "less": -math.inf, "val/AP": 12.0}
    params = {"head": "box ≥ 1", "long": "x" * 6000, "separators": "\u2028\x85"}
    write(suite.uri, odd, metrics=metrics, params=params, tags={"pin": "", "note": "\x1b\r\n"})
    write(suite.uri, odd, metrics={"third": 2 / 3}, params={}, tags={})
    create_run(suite.uri, experiment, "empty", {})
    ended = create_run(suite.uri, experiment, "ended", {})
    set_status(suite.uri, ended, "FINISHED")

    lines = listing.listed_runs(suite.uri, experiment)
    assert lines is not None and len(lines) == 3
    listed, told = read_runs(suite), list(search_runs(suite.uri, experiment))
    assert [run.run_id for run in listed] == [run.run_id for run in told]
    for own, theirs in zip(listed, told, strict=True):
        assert repr(own.metrics) == repr(theirs.metrics)  # a NaN equals none
        for part in ("name", "status", "experiment_id", "start_time", "tags", "params", "last_metric_time"):
            assert getattr(own, part) == getattr(theirs, part), part
    assert listed[-1].metrics["third"] == 2 / 3 and math.isnan(listed[-1].metrics["none"])
    hour = 3_600_000
    assert {run.run_id for run in read_changes(suite, max(line[4] for line in lines) + hour)} == {
        run.run_id for run in listed if run.run_id != ended
    }


@pytest.mark.usefixtures("as_job")
def test_files_on_s3_are_listed_as_mlflow_itself_tells_them(services: Stack):
    suite = open_tracking(services.mlflow, "lists of files")
    runs = [create_run(suite.uri, str(suite.experiment_id), name, {}) for name in ("one", "two", "empty")]
    kept, login = f"{services.mlflow}/api/2.0/mlflow-artifacts/artifacts", ("rnc", services.secrets.job)
    for run_id in runs[:2]:
        upload_texts(suite.uri, run_id, {"card.json": "{}", "λ (1).txt": run_id})
        for folder in ("checkpoint", "checkpoint/deep"):
            url = f"{kept}/{suite.experiment_id}/{run_id}/artifacts/{folder}/weights"
            requests.put(url, data=b"12345", auth=login, timeout=10).raise_for_status()
    asked = {run_id: ["", "checkpoint", "nothing"] for run_id in runs}
    listed = listing.listed_files(suite.uri, str(suite.experiment_id), asked)
    assert listed.keys() == set(runs) and listed[runs[0]]["checkpoint"] == {"checkpoint/weights": 5}
    for run_id, folders in asked.items():
        for folder in folders:
            (told,) = rest.get_many(suite.uri, "artifacts/list", [{"run_id": run_id, "path": folder}])
            sizes = {one["path"]: int(one["file_size"]) for one in told.get("files", []) if not one["is_dir"]}
            assert listed[run_id][folder] == sizes
    question: dict[str, Any] = {"experiment_id": str(suite.experiment_id), "folders": asked}
    url = f"{services.mlflow}{names.LISTED_FILES}"
    reader = requests.post(url, json=question, auth=("reader", services.secrets.reader), timeout=10)
    assert (reader.status_code, reader.json()) == (200, listed)
    assert requests.post(url, json=question, timeout=10).status_code == 401


def test_the_list_is_told_to_whom_may_read_the_experiment(services: Stack):
    admin, job, reader = (
        ("admin", services.secrets.admin),
        ("rnc", services.secrets.job),
        ("reader", services.secrets.reader),
    )
    api, url = f"{services.mlflow}/api/2.0/mlflow", f"{services.mlflow}{names.LISTED_RUNS}"
    made = requests.post(f"{api}/experiments/create", auth=admin, json={"name": "not for all"}, timeout=10).json()
    query = {"experiment_id": made["experiment_id"]}
    for login in (admin, job, reader):
        answer = requests.get(url, params=query, auth=login, timeout=10)
        assert (answer.status_code, answer.text) == (200, "0\n")
    for stranger in (None, ("rnc", services.secrets.reader), ("nobody", "")):
        assert requests.get(url, params=query, auth=stranger, timeout=10).status_code == 401
    closed = {"resource_type": "experiment", "resource_id": made["experiment_id"], "username": "reader"}
    grant = f"{services.mlflow}/api/3.0/mlflow/users/permissions/grant"
    told = requests.post(grant, auth=admin, json=closed | {"permission": "DENY"}, timeout=10)
    assert told.status_code == 200, told.text
    assert requests.get(url, params=query, auth=reader, timeout=10).status_code == 403
    files, question = f"{services.mlflow}{names.LISTED_FILES}", query | {"folders": {}}
    assert requests.post(files, json=question, auth=reader, timeout=10).status_code == 403
    assert requests.post(files, json=question, auth=job, timeout=10).json() == {}
    assert requests.get(url, params=query, auth=job, timeout=10).status_code == 200
    assert requests.get(url, auth=job, timeout=10).status_code == 400
    assert requests.post(url, params=query, auth=job, timeout=10).status_code in (403, 405)
    elsewhere = {"Host": "elsewhere.example"}
    assert requests.get(url, params=query, auth=job, headers=elsewhere, timeout=10).status_code == 403
