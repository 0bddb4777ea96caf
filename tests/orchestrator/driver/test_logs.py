"""How `rnc logs` shows what a training wrote, and what `--detach` tells or refuses."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.driver import logs
from orchestrator.driver.lock import Holder, locked
from orchestrator.driver.logs import _is_over
from orchestrator.experiment.load import load_experiment
from orchestrator.experiment.plan import Plan, row_keys
from orchestrator.site import Site
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.runs import Tracking
from orchestrator.tracking.server import using_server
from orchestrator.tracking.suite import Suite
from orchestrator.worker.training_log import End, Scored, Scoring, Start, write_event

TABLE = Path(__file__).parents[3] / "experiments" / "miniature" / "table1_heads.yaml"

Rnc = Callable[..., Result]


@pytest.fixture
def rnc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rnc:
    for name in ("RNC_COCO_ROOT", "RNC_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_logs_prints_points_output_errors_and_the_log(rnc: Rnc, tmp_path: Path):
    row = load_experiment(TABLE).rows[0]
    folder = tmp_path / "home" / "ray" / "miniature" / row_keys(row)[0].train_key
    folder.mkdir(parents=True)
    output = tmp_path / "worker.out"
    output.write_text(":job_id:01000000\nloading\n")
    # As in the output of a training under Ray 2.60.
    rays = "Checkpoint successfully created at: Checkpoint(filesystem=local, path=/a/epoch-0001)\nReporting training "
    rays += "result 1: TrainingReport(checkpoint=Checkpoint(filesystem=local, path=/a/epoch-0001), metrics={})\n"
    output.with_suffix(".err").write_text(f":job_id:01000000\n{rays}a warning\n")
    write_event(folder, Start(num_workers=1, process=7, host="node", epoch=0, num_epochs=2, output=str(output)))
    with (folder / "training.jsonl").open("a") as file:
        file.write("of somebody else\n")
    (folder / "error.log").write_text("Traceback\nValueError: no such image\n")
    points = {"step": 7, "timestamp": 0, "metrics": {"train/loss": 1.23456, "train/lr": 0.01}}
    (folder / "metrics.jsonl").write_text(json.dumps(points) + "\n")
    shown = rnc("logs", TABLE, "--row", row.label).stdout
    assert "step 7: train/loss 1.235, train/lr 0.01\n" in shown
    assert f"{output}, the last 1 lines\nloading\n" in shown
    assert ".err, the last 1 lines\na warning\n" in shown
    assert "ValueError: no such image\n" in shown
    (log,) = folder.glob("training.jsonl")
    assert f"== {log}\n" in shown and "of somebody else" not in shown
    assert shown.endswith(f"started on 1 worker, the first as process 7 on node; begins 2 epochs; output in {output}\n")


def test_a_row_without_a_log_is_answered_with_where_it_was_looked_for(rnc: Rnc, tmp_path: Path):
    result = rnc("logs", TABLE, "--row", "RetinaNet")
    assert result.exit_code == 2
    assert str(tmp_path / "home" / "ray" / "miniature") in result.stderr


def test_a_log_is_followed_until_it_says_what_mlflow_has_already(tmp_path: Path):
    complete = Plan(
        suite="s", experiments=(), trainings={}, evaluations={}, missing_trainings={}, missing_evaluations={}
    )
    suite = cast(
        Suite,
        SimpleNamespace(
            name="s",
            site=Site(home=tmp_path),
            tracking=Tracking(uri="", suite="s", experiment_id=None),
            refresh=lambda: None,
            make_plan=lambda: complete,
        ),
    )
    scoring = Scoring(num_done=8, num_images=8, split="val", num_settings=1)
    write_event(tmp_path, scoring)
    with locked(suite, lambda _: None):
        assert not _is_over(suite, "k", tmp_path)
        write_event(tmp_path, Scored(split="val", num_settings=1))
        assert _is_over(suite, "k", tmp_path)
        write_event(tmp_path, scoring)
    assert _is_over(suite, "k", tmp_path)  # it was cut off, and nobody runs the suite


def test_a_log_is_followed_to_the_end_that_this_submit_puts_to_the_training_and_through_an_outage(tmp_path: Path):
    answers = SimpleNamespace(is_away=False)

    def make_plan() -> Plan:
        if answers.is_away:
            raise ServerAway("the server does not answer")
        return cast(
            Plan, SimpleNamespace(missing_evaluations={}, missing_trainings={"k": ""}, evaluations_on=lambda _: ())
        )

    there = SimpleNamespace(
        name="s",
        site=Site(home=tmp_path),
        tracking=Tracking(uri="", suite="s", experiment_id=None),
        refresh=lambda: None,
        make_plan=make_plan,
    )
    suite = cast(Suite, there)
    write_event(tmp_path, End(state="interrupted", reason="Ctrl-C"))
    with locked(suite, lambda _: None):
        assert not _is_over(suite, "k", tmp_path)  # it was another submit that ended; this one goes on with it
        answers.is_away = True
        assert not _is_over(suite, "k", tmp_path)
        write_event(tmp_path, End(state="cancelled", reason="asked to"))
        assert _is_over(suite, "k", tmp_path)


def test_a_training_that_has_not_begun_is_waited_for_as_long_as_somebody_may_begin_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rnc: Rnc
):
    monkeypatch.setattr(logs, "START_SECONDS", 0.0)
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.01)
    result = rnc("logs", TABLE, "--row", "RetinaNet", "--follow")
    assert (result.exit_code, "has written nothing in" in result.stderr) == (2, True)
    row = load_experiment(TABLE).rows[0]
    folder = tmp_path / "home" / "ray" / "miniature" / row_keys(row)[0].train_key

    def begin() -> None:
        folder.mkdir(parents=True)
        write_event(folder, End(state="failed", reason="no such image"))

    with locked(cast(Suite, SimpleNamespace(name="miniature", site=Site(home=tmp_path / "home"))), lambda _: None):
        timer = threading.Timer(0.3, begin)
        timer.start()
        shown = rnc("logs", TABLE, "--row", row.label, "--follow")
        timer.join()
    assert (shown.exit_code, shown.stdout.endswith("failed: no such image\n")) == (0, True)
    assert shown.stderr.startswith("The training of row 'RetinaNet' has not begun")


def test_the_server_is_not_stopped_while_a_submit_records_in_it(
    rnc: Rnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site = Site(home=tmp_path / "home")
    suite = cast(Suite, SimpleNamespace(name="mine", site=site))
    with using_server(site):
        refused = rnc("ui", "--stop")  # it has just begun, and signed nothing
        with locked(suite, lambda _: None):
            named = rnc("ui", "--stop")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # of who asks; the submit knows nothing of it
        elsewhere = rnc("ui", "--stop")
    assert [one.exit_code for one in (refused, named, elsewhere)] == [2, 2, 2]
    assert "results of a submit that is running; wait" in refused.stderr
    assert f"running: mine (process {os.getpid()} on " in named.stderr
    assert rnc("ui", "--stop").stdout == "No server was running.\n"


@pytest.mark.slow
def test_what_cannot_run_is_refused_before_a_submit_is_detached(
    rnc: Rnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setattr(
        "orchestrator.driver.detach.subprocess.Popen", lambda *_, **__: pytest.fail("a process was started")
    )
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {TABLE}\nsuite: vast\nresources: {{cpus_per_worker: 4096}}\n")
    result = rnc("submit", file, "--detach")
    assert (result.exit_code, "4096 CPU" in result.stderr) == (2, True)


@pytest.mark.slow
def test_a_detached_submit_that_ends_at_once_is_told_with_the_end_of_its_log(
    rnc: Rnc, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setattr("orchestrator.driver.detach.check", _nothing_checked)
    monkeypatch.setattr(sys, "executable", "/bin/ls")
    result = rnc("submit", TABLE, "--detach")
    assert result.exit_code == 2
    assert "the submit ended with code" in result.stderr
    assert "/bin/ls: " in result.stderr


def test_a_detached_submit_prunes_what_another_submit_runs(rnc: Rnc, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setattr("orchestrator.driver.detach.check", _nothing_checked)
    monkeypatch.setattr("orchestrator.driver.detach.holder_of", lambda _: Holder(driver="elsewhere 7 1", since=0.0))
    pruned: list[str] = []
    monkeypatch.setattr(
        "orchestrator.driver.detach.prune_trainings", lambda suite, _: pruned.append(suite.connection.uri)
    )
    assert "nothing was started" in rnc("submit", TABLE, "--detach").stderr and not pruned
    assert "nothing was started" in rnc("submit", TABLE, "--detach", "--prune").stderr
    assert pruned == [mlflow_uri]


def _nothing_checked(suite, say):
    return suite.make_plan()
