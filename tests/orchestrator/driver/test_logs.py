"""What a training writes for people to read, and how `rnc logs` and `--detach` show it or refuse."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.experiment.load import load_experiment
from orchestrator.experiment.plan import row_keys
from orchestrator.worker.task import TRAINING_LOG, has_ended, note, note_epoch, note_start, output_of

TABLE = Path(__file__).parents[3] / "experiments" / "miniature" / "table1_heads.yaml"

Rnc = Callable[..., Result]


@pytest.fixture
def rnc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rnc:
    for name in ("RNC_COCO_ROOT", "RNC_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


def said(folder: Path) -> list[str]:
    return [line[21:] for line in (folder / TRAINING_LOG).read_text().splitlines()]


def test_a_log_has_a_line_for_each_start_epoch_and_end(tmp_path: Path):
    note_start(tmp_path, 2, 0, 12)
    note_epoch(tmp_path, 1.0, 12, {"train/loss": 1.23456, "val/AP": 23.45, "perf/images_per_s": 55.55, "train/lr": 0.1})
    note(tmp_path, "interrupted; the next submit\ngoes on")
    start, epoch, end = said(tmp_path)
    assert start.startswith(f"started on 2 workers, the first as process {os.getpid()} on ")
    assert "begins 12 epochs" in start
    assert epoch == "epoch 1/12, loss 1.235, AP 23.4, 55.5 images/s"
    assert end == "interrupted; the next submit goes on"
    assert has_ended(tmp_path)


def test_a_start_after_a_lost_worker_says_so_and_one_after_an_interruption_does_not(tmp_path: Path):
    note_start(tmp_path, 1, 0, 12)
    note_start(tmp_path, 1, 3, 12)
    assert said(tmp_path)[1].startswith("what ran before ended without a word")
    assert "goes on from epoch 3 of 12" in said(tmp_path)[2]
    note(tmp_path, "interrupted; the next submit goes on from epoch 4")
    note_start(tmp_path, 1, 4, 12)
    assert len(said(tmp_path)) == 5


def test_a_log_that_cannot_be_written_disturbs_nobody():
    note(Path("/proc/nowhere"), "started")


def test_the_file_that_a_worker_prints_to_is_found_in_its_log():
    assert output_of("2026-01-01 00:00:00  started on 1 worker; begins 2 epochs; output in /tmp/a b.out") == Path(
        "/tmp/a b.out"
    )
    assert output_of("2026-01-01 00:00:00  epoch 1/2") is None


def test_logs_prints_points_output_errors_and_the_log(rnc: Rnc, tmp_path: Path):
    row = load_experiment(TABLE).rows[0]
    folder = tmp_path / "home" / "ray" / "miniature" / row_keys(row)[0].train_key
    folder.mkdir(parents=True)
    output = tmp_path / "worker.out"
    output.write_text(":job_id:01000000\nloading\n")
    output.with_suffix(".err").write_text("a warning\n")
    note(folder, f"started on 1 worker; output in {output}")
    (folder / "error.log").write_text("Traceback\nValueError: no such image\n")
    points = {"step": 7, "timestamp": 0, "metrics": {"train/loss": 1.23456, "train/lr": 0.01}}
    (folder / "metrics.jsonl").write_text(json.dumps(points) + "\n")
    shown = rnc("logs", TABLE, "--row", row.label).stdout
    assert "step 7: train/loss 1.235, train/lr 0.01\n" in shown
    assert f"{output}, the last 1 lines\nloading\n" in shown
    assert "a warning\n" in shown
    assert "ValueError: no such image\n" in shown
    assert shown.endswith(f"started on 1 worker; output in {output}\n")


def test_a_row_without_a_log_is_answered_with_where_it_was_looked_for(rnc: Rnc, tmp_path: Path):
    result = rnc("logs", TABLE, "--row", "RetinaNet")
    assert result.exit_code == 2
    assert str(tmp_path / "home" / "ray" / "miniature") in result.stderr


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


def _nothing_checked(suite, say):
    return suite.wanted


def test_every_way_in_which_a_training_ends_is_known_as_an_end(tmp_path: Path):
    for said in ("failed: no", "cancelled", "pruned", "stopped early by ASHA after epoch 2 (AP 1.0)"):
        note(tmp_path, said)
        assert has_ended(tmp_path), said
        note_start(tmp_path, 1, 2, 4)
    assert "ended without a word" not in (tmp_path / TRAINING_LOG).read_text()
