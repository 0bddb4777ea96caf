"""What is told of shells, containers and folders; the looks are real, the environments are of each test."""

import os
from pathlib import Path

import pytest

from model import machine
from orchestrator.doctor import surroundings
from orchestrator.doctor.surroundings import judge_limits, judge_temporary, judge_variables, limits, temporary
from orchestrator.site import Site


def test_the_limits_of_this_process_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {one.check: one for one in judge_limits("here", limits())}
    assert list(seen) == ["cores", "memory", "open files"]
    monkeypatch.setattr(surroundings, "core_quota", lambda: 1.5)
    monkeypatch.setattr(surroundings, "usable_cores", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    cores = next(judge_limits("here", limits()))
    assert (cores.level, cores.seen) == ("ok", "1 of 64, by the limit of a control group, 1.5")
    monkeypatch.setattr(surroundings, "core_quota", lambda: None)
    assert next(judge_limits("here", limits())).seen == "1 of 64, by the affinity of the process"


def test_a_long_tmpdir_is_told_with_where_ray_goes_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    (found,) = judge_temporary("here", temporary())
    assert found.level == "ok"
    assert f"{long}; Ray's session goes to /tmp/rnc-{os.getuid()}/ray" in found.seen
    for module in (machine, surroundings):
        monkeypatch.setattr(module, "short_folder", lambda most: None)
    monkeypatch.setattr("orchestrator.cluster.environment.short_folder", lambda most: None)
    (found,) = judge_temporary("here", temporary())
    assert found.level == "fail"
    assert "is too long a path for Ray's sockets" in found.seen


def test_variables_of_other_work_are_named_without_their_values(tmp_path: Path) -> None:
    stale = {
        "RAY_TRAIN_V2_ENABLED": "0",
        "RAY_REDIS_PASSWORD": "hunter2",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow.example",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone"),
    }
    variables, token = judge_variables(Site(home=tmp_path), stale)
    assert variables.level == token.level == "warn"
    for name in ("RAY_TRAIN_V2_ENABLED", "RAY_REDIS_PASSWORD", "MLFLOW_SERVER_ALLOWED_HOSTS"):
        assert name in variables.seen
    assert "hunter2" not in str((variables, token))
    (clean,) = judge_variables(Site(home=tmp_path), {"PATH": "/bin", "MLFLOW_TRACKING_TOKEN": "x"})
    assert clean.level == "ok"
    # A cluster's own switches are its affair, and so is a named server's; its token has to be there.
    *_, token = judge_variables(Site(home=tmp_path, ray_address="head:6379", tracking_uri="http://mlflow"), stale)
    assert token.level == "fail"


@pytest.mark.parametrize(("named", "level"), [("MLFLOW_TRACKING_TOKEN", "warn"), ("OTHER", "ok")])
def test_a_netrc_that_names_the_server_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, level: str
) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".netrc").write_text("machine mlflow.example login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv(named, "x")
    _, netrc = judge_variables(Site(home=tmp_path, tracking_uri="https://mlflow.example"), {})
    assert (netrc.check, netrc.level) == ("netrc", level)
    assert "hunter2" not in str(netrc)
    assert len(list(judge_variables(Site(home=tmp_path, tracking_uri="https://other.example"), {}))) == 1
