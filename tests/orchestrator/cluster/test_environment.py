"""What the environment of a job may hold, and what it has to."""

import os
import re
from pathlib import Path

import pytest

from orchestrator.cluster import environment
from orchestrator.cluster.environment import (
    is_jobs_address,
    job_environment,
    overruled,
    own_token,
    ray_environment,
    ray_folder,
    require_cluster_settings,
    set_ray_environment,
)
from orchestrator.errors import UserError

STALE = {
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_OVERRIDE_RESOURCES": '{"CPU": 99}',
    "RAY_REDIS_ADDRESS": "redis:6379",
}


def test_a_job_is_given_what_env_says_and_no_path_of_this_machine():
    here = {"RNC_HOME": "/here", "RNC_COCO_ROOT": "/coco", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    assert job_environment(["RNC_HOME=/shared/runs", "NCCL_DEBUG="], here, "rnc-paper-1", "abc with changes") == {
        "RNC_HOME": "/shared/runs",
        "NCCL_DEBUG": "",
        "RNC_JOB": "rnc-paper-1",
        "RNC_GIT_COMMIT": "abc with changes",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }


def test_a_server_of_another_machine_is_passed_on_and_env_overrules_it():
    here = {"MLFLOW_TRACKING_URI": "https://mlflow.example"}
    assert job_environment([], here, "", None)["MLFLOW_TRACKING_URI"] == "https://mlflow.example"
    there = job_environment(["MLFLOW_TRACKING_URI=http://mlflow:5000"], here, "", None)
    assert there["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


@pytest.mark.parametrize(
    "text",
    ["MLFLOW_TRACKING_PASSWORD=x", "MLFLOW_TRACKING_TOKEN=x", "AWS_ACCESS_KEY_ID=x", "api_key=x", "RAY_AUTH_TOKEN=x"],
)
def test_a_secret_is_refused_without_being_repeated(text: str):
    with pytest.raises(UserError, match="the cluster has to hold it") as refused:
        job_environment([text.replace("=x", "=hunter2")], {}, "", None)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("given", [["MLFLOW_TRACKING_URI=http://me:hunter2@mlflow"], []])
def test_a_password_in_an_address_is_refused_without_being_repeated(given: list[str]):
    with pytest.raises(UserError, match="the address holds a password") as refused:
        job_environment(given, {"MLFLOW_TRACKING_URI": "http://me:hunter2@mlflow"}, "", None)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    ["http://hunter2@mlflow", "http://me:p/hunter2@mlflow", "http://mlflow?token=hunter2", "http://me:hunter2@m:x"],
)
def test_no_form_of_an_address_takes_a_secret_along(value: str):
    for given, environ in (([f"MLFLOW_TRACKING_URI={value}"], {}), ([], {"MLFLOW_TRACKING_URI": value})):
        with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as refused:
            job_environment(given, environ, "", None)
        assert "hunter2" not in str(refused.value)


def test_what_is_no_setting_of_an_environment_is_refused():
    with pytest.raises(UserError, match=r"--env RNC-HOME: expected NAME=VALUE"):
        job_environment(["RNC-HOME=/x"], {}, "", None)


def test_a_job_without_a_place_that_outlives_it_is_refused_and_nobody_else():
    require_cluster_settings({})
    require_cluster_settings({"RNC_JOB": "1", "RNC_HOME": "/shared", "MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    with pytest.raises(UserError, match=r"RNC_HOME is not set on the cluster.*\nMLFLOW_TRACKING_URI is not set"):
        require_cluster_settings({"RNC_JOB": "1"})


def test_only_http_addresses_take_jobs():
    taken = ["http://head:8265", "https://ray.example"]
    others = ["auto", "head:6379", "ray://head:10001", None]
    assert [is_jobs_address(address) for address in [*taken, *others]] == [True, True, False, False, False, False]


def test_a_ray_of_our_own_has_a_token_where_home_cannot_be_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    nowhere = own_token({"HOME": str(home)})  # as that of a user without one, or on a disk that is read-only
    assert re.fullmatch("[0-9a-f]{64}", nowhere["RAY_AUTH_TOKEN"])
    assert own_token({"HOME": str(home)}) != nowhere
    assert own_token({"HOME": str(home), "RAY_AUTH_TOKEN": "given"}) == {}
    (tmp_path / "token").write_text("given")
    assert own_token({"HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == {}
    home.mkdir()
    assert own_token({"HOME": str(home)}) == {}  # Ray writes one itself, and keeps it
    assert own_token({"HOME": str(home), "RAY_AUTH_TOKEN_PATH": str(home / "gone")})  # Ray looks there alone


def test_what_other_work_has_left_in_the_environment_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STALE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "77")  # a wish, which stays
    assert overruled(STALE, is_local=True) == STALE
    joined = {name: STALE[name] for name in ("RAY_TRAIN_V2_ENABLED", "RAY_CHDIR_TO_TRIAL_DIR")}
    assert overruled(STALE, is_local=False) == joined
    set_ray_environment(is_local=True)
    assert os.environ["RAY_TRAIN_V2_ENABLED"] == "1"
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "77"
    assert "RAY_OVERRIDE_RESOURCES" not in os.environ
    assert ray_environment(is_local=False)["RAY_TRAIN_V2_ENABLED"] == "1"  # for the workers of a cluster
    assert overruled(os.environ, is_local=True) == {}


def test_rays_session_moves_where_the_paths_of_its_sockets_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_folder({"TMPDIR": "/tmp"}) is None
    assert ray_folder({}) is None
    for name in ("TMPDIR", "RAY_TMPDIR"):
        moved = ray_folder({name: str(tmp_path / ("x" * 60))})
        assert moved is not None
        socket = f"{moved}/session_2026-11-26_22-10-49_426049_4194304/sockets/plasma_store"
        assert len(socket) <= 107
        assert moved.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(environment, "short_folder", lambda most: None)
    with pytest.raises(
        UserError, match=r"TMPDIR: /x+/ray is too long .* set RAY_TMPDIR to a folder .* at most 39 bytes"
    ):
        ray_folder({"TMPDIR": "/" + "x" * 60})
    monkeypatch.setattr(os, "access", lambda *_: False)  # as of a read-only disk
    with pytest.raises(UserError, match=r"RAY_TMPDIR: /tmp/ray cannot be written"):
        ray_folder({"RAY_TMPDIR": "/tmp"})
