"""A suite whose MLflow server loses everything, and one whose driver is killed, both in the middle of a training."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from model.data.shapes import draw_shapes
from orchestrator.cluster import connect
from orchestrator.driver import launch
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking import runs, server
from orchestrator.tracking.recorder import read_journal
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.worker.task import Status, epochs_done
from tests.suites import TRAIN, launched, ledger_of, plan_of
from tests.system.test_submit import EXPERIMENT, RNC, surroundings

pytestmark = pytest.mark.slow


def kill_server(site: Site) -> None:
    state = json.loads((site.home / "mlflow" / "server.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)


def points_of(suite: Tracking, run_id: str) -> list[tuple[str, int]]:
    """Every point that MLflow holds of a run, as often as it does; not those of the machine, which are not repeated."""
    names = [name for name in runs.get_run(suite.uri, run_id).metrics if not name.startswith("system/")]
    return sorted((name, int(p.get("step", 0))) for name in names for p in runs.history(suite.uri, run_id, name))


def points_in(journal: Path) -> list[tuple[str, int]]:
    lines, _ = read_journal(journal)
    return sorted((m.name, m.step) for line in lines for m in line if not m.name.startswith("system/"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(home=tmp_path / "home")
    yield site
    connect.stop_ray()
    server.stop_server(site)


def test_a_training_whose_server_comes_back_empty_ends_with_its_whole_history(site: Site):
    draw_shapes(site.data_root("shapes"), num_train=32, num_val=8, image_size=64)
    starting = server.begin_tracking_server(site)
    connect.start_ray(site)
    uri = starting.wait()
    seen: list[Status] = []
    lost: list[bool] = []

    def lose(statuses: Sequence[Status]) -> None:
        seen.extend(statuses)
        if statuses[0].epoch >= 1 and not lost:
            kill_server(site)
            (site.home / "mlflow" / "mlflow.db").unlink()
            lost.append(True)

    (key,) = plan_of(site, "lost", TRAIN).trainings
    outcome = launch.launch(plan_of(site, "lost", TRAIN), site, uri, show=lose)
    assert lost and server.running_server(site) == uri  # the driver began it again
    assert outcome.exit_code == 0, outcome.endings
    suite = open_tracking(uri, "lost", create=False)
    ledger = tracking.read_ledger(suite)
    assert ledger.trainings[key].status == "FINISHED"
    assert [record.status for record in ledger.evaluations.values()] == ["FINISHED"]
    journal = points_in(site.storage / "lost" / key / "metrics.jsonl")
    assert ("train/loss", 1) in journal  # reported, and sent, before the loss
    assert points_of(suite, ledger.trainings[key].run_id) == journal
    run = runs.get_run(uri, ledger.trainings[key].run_id)
    assert run.params["backbone"] == "resnet18_quarter"
    assert run.tags["mlflow.runName"] == "row 0"


def test_a_training_whose_ray_dies_is_told_in_one_line_and_goes_on_with_the_next_launch(site: Site):
    draw_shapes(site.data_root("shapes"), num_train=32, num_val=8, image_size=64)
    long = replace(TRAIN, schedule=replace(TRAIN.schedule, epochs=60))  # workers train on until the driver ends them
    (key,) = plan_of(site, "died", long).trainings
    folder = site.storage / "died" / key

    def kill(statuses: Sequence[Status]) -> None:
        parts = [one for one in psutil.Process().children() if one.name() == "gcs_server"]
        if statuses[0].state == "training" and epochs_done(folder) >= 1 and parts:
            parts[0].kill()

    connect.start_ray(site)
    outcome = launched(plan_of(site, "died", long), site, kill)
    assert outcome.lost.startswith("Ray has ended: its gcs_server, process ")
    assert (outcome.exit_code, outcome.interrupted) == (1, False)
    done = epochs_done(folder)
    assert 1 <= done < 60
    record = ledger_of(site, "died").trainings[key]
    assert (record.status, record.note) == ("KILLED", f"interrupted; the next submit goes on from epoch {done}")
    connect.start_ray(site)
    assert launched(plan_of(site, "died", long), site).exit_code == 0
    lines, _ = read_journal(folder / "metrics.jsonl")
    assert len([m for line in lines for m in line if m.name == "perf/startup_s"]) == 2


def test_a_suite_whose_driver_was_killed_goes_on_without_doubled_points(tmp_path: Path):
    (tmp_path / "heads.yaml").write_text(
        EXPERIMENT.replace("epochs: 2,", "epochs: 8,").replace(', "RetinaNet-Conf, alpha 0.4"]', "]")
    )
    kept = surroundings()
    command = [str(RNC), "submit", "heads.yaml"]
    first = subprocess.Popen(command, cwd=tmp_path, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    storage = tmp_path / "runs" / "ray" / "tiny"
    try:
        deadline = time.monotonic() + 240
        while not list(storage.glob("*/epoch-0002/config.json")) and time.monotonic() < deadline:
            assert first.poll() is None, first.stderr.read() if first.stderr else ""
            time.sleep(0.05)
    finally:
        first.kill()
        first.communicate()
    again = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=300, check=False)
    site = Site(home=tmp_path / "runs")
    try:
        assert again.returncode == 0, again.stderr
        assert "says RUNNING, and its process is gone: closed as interrupted" in again.stderr
        suite = open_tracking(server.tracking_server(site), "tiny", create=False)
        ((key, record),) = tracking.read_ledger(suite).trainings.items()
        points = points_of(suite, record.run_id)
        assert len(set(points)) == len(points)
        assert points == points_in(storage / key / "metrics.jsonl")
        epochs = [step for name, step in points if name == "perf/startup_s"]
        assert len(epochs) == 2  # two starts, the second of them not from the first update
        assert epochs[0] == 1 < epochs[1]
    finally:
        server.stop_server(site)
