"""Trainings through Ray to MLflow: a tiny suite on two cores, with one Ray for the whole file."""

import io
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from model.config import TrainConfig
from model.training.loop import train
from orchestrator.cluster import connect
from orchestrator.cluster.capacity import Cluster, placement, require_fit
from orchestrator.driver import launch
from orchestrator.driver.live import live_view
from orchestrator.errors import UserError
from orchestrator.experiment.plan import train_key
from orchestrator.experiment.rows import Resources
from orchestrator.site import Site
from orchestrator.tracking.recorder import read_journal
from orchestrator.worker.task import Status, epochs_done, last_checkpoint
from tests.suites import TRAIN, launched, ledger_of, plan_of

pytestmark = pytest.mark.slow

LOADERS = Resources(loader_processes=1)
"""Images are read by another process, as beside a GPU."""
DIVERGES = replace(TRAIN, schedule=replace(TRAIN.schedule, learning_rate=1e9, gradient_clip=None))


@pytest.mark.usefixtures("site")
def test_a_local_ray_listens_on_this_machine_alone_and_wants_a_token():
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_row_that_fails_is_told_with_its_reason_and_does_not_stop_the_others(site: Site):
    outcome = launched(plan_of(site, "failing", DIVERGES, TRAIN), site)
    bad, good = outcome.endings
    assert (bad.state, good.state, outcome.exit_code) == ("failed", "finished", 1)
    assert "lower train.schedule.learning_rate" in bad.error
    assert "TrainingError" in Path(bad.log).read_text()
    ledger = ledger_of(site, "failing")
    assert (ledger.trainings[bad.key].status, ledger.trainings[bad.key].note) == ("FAILED", bad.error)
    assert ledger.trainings[good.key].status == "FINISHED"
    assert ledger.trainings[good.key].metrics["train/epoch"] == 4
    assert good.startup_s is not None
    assert [record.status for record in ledger.evaluations.values()] == ["FINISHED"]
    again = plan_of(site, "failing", TRAIN)
    assert not again.missing_trainings
    assert launched(again, site) == launch.Outcome(endings=())


def test_a_row_whose_folder_takes_nothing_fails_alone_and_trains_once_it_does(site: Site):
    plan = plan_of(site, "blocked", TRAIN, DIVERGES)
    in_the_way = site.storage / "blocked" / train_key(TRAIN)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder is expected")
    blocked, other = launched(plan, site).endings
    assert blocked.error.startswith(f"{in_the_way} is a file, expected a folder; move it away")
    assert "\n" not in blocked.error
    assert "lower train.schedule.learning_rate" in other.error  # it went its own way
    record = ledger_of(site, "blocked").trainings[blocked.key]
    assert (record.status, record.note) == ("FAILED", blocked.error)
    in_the_way.unlink()
    assert launched(plan_of(site, "blocked", TRAIN), site).exit_code == 0


def test_an_interrupted_training_ends_with_the_weights_of_one_that_was_neither_interrupted_nor_under_ray(
    site: Site, tmp_path: Path
):
    long = replace(TRAIN, schedule=replace(TRAIN.schedule, epochs=30))
    plan = plan_of(site, "interrupted", long, resources=LOADERS)
    key = train_key(long)
    folder = site.storage / "interrupted" / key

    def interrupt(statuses: Sequence[Status]) -> None:
        if statuses[0].state == "training" and epochs_done(folder) >= 1:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = launched(plan, site, interrupt)
    assert (outcome.interrupted, outcome.exit_code) == (True, 130)
    epoch = epochs_done(folder)
    assert 1 <= epoch < 30
    record = ledger_of(site, "interrupted").trainings[key]
    assert (record.status, record.note) == ("KILLED", f"interrupted; the next submit goes on from epoch {epoch}")

    connect.start_ray(site)
    assert launched(plan_of(site, "interrupted", long, resources=LOADERS), site).exit_code == 0
    lines, _ = read_journal(folder / "metrics.jsonl")
    starts = [metric.step for line in lines for metric in line if metric.name == "perf/startup_s"]
    steps_per_epoch = max(metric.step for line in lines for metric in line) // 30
    assert starts == [1, steps_per_epoch * (epoch + 1)]  # what is reported first: the first update; then an epoch's end
    straight = weights_without_ray(long, site, tmp_path)
    resumed = last_checkpoint(folder)
    assert resumed == folder / "epoch-0030"
    assert (resumed / "model.safetensors").read_bytes() == straight
    ledger = ledger_of(site, "interrupted")
    (evaluation,) = ledger.evaluations.values()
    assert ledger.trainings[key].status == evaluation.status == "FINISHED"
    assert evaluation.metrics["AP"] == ledger.trainings[key].metrics["val/AP"]


def weights_without_ray(config: TrainConfig, site: Site, folder: Path) -> bytes:
    """What one uninterrupted call writes, on one thread as a worker with one CPU has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(config, data_root=site.data_root("shapes"), folder=folder, report=lambda _: None)
    torch.set_num_threads(threads)
    return (folder / "epoch-0030" / "model.safetensors").read_bytes()


def test_what_can_never_fit_is_refused_before_anything_starts(site: Site):
    plan = plan_of(site, "large", TRAIN, resources=Resources(num_workers=500, gpus_per_worker=1.0))
    with pytest.raises(UserError, match=r"tiny, row 'row 0': .* 500 x \(1 CPU, 1 GPU\); there are not enough CPUs"):
        launched(plan, site)
    assert not ledger_of(site, "large").trainings


def test_a_cluster_that_does_not_answer_is_a_users_mistake(tmp_path: Path):
    with pytest.raises(UserError, match=r"RAY_ADDRESS: 127\.0\.0\.1:1 does not answer"):
        connect.start_ray(Site(home=tmp_path, ray_address="127.0.0.1:1"))


@pytest.mark.parametrize(
    ("resources", "fits"),
    [
        (Resources(num_workers=4, cpus_per_worker=1.0), True),
        (Resources(num_workers=5, cpus_per_worker=1.0), False),
        (Resources(num_workers=2, cpus_per_worker=1.5), True),
        (Resources(num_workers=3, cpus_per_worker=1.5), False),  # 4.5 CPUs of 4, and 1.5 leave 0.5 unused on each node
        (Resources(num_workers=2, gpus_per_worker=1.0, cpus_per_worker=0.5), False),
        (Resources(num_workers=2, gpus_per_worker=0.5, cpus_per_worker=0.5), True),
    ],
)
def test_a_worker_has_to_fit_on_one_node(resources: Resources, fits: bool):
    cluster = Cluster(nodes=({"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0}))
    if fits:
        require_fit(resources, cluster, "here")
    else:
        with pytest.raises(UserError, match="here: resources ask for"):
            require_fit(resources, cluster, "here")


@pytest.mark.parametrize(
    ("num_workers", "num_nodes", "fits"), [(4, 2, True), (2, 2, True), (3, 3, False), (4, 1, False), (2, 1, True)]
)
def test_workers_have_to_fit_on_as_many_nodes_as_are_asked_for(num_workers: int, num_nodes: int, fits: bool):
    cluster = Cluster(nodes=({"CPU": 2.0}, {"CPU": 3.0}))
    resources = Resources(num_workers=num_workers, num_nodes=num_nodes)
    if fits:
        require_fit(resources, cluster, "here")
    else:
        with pytest.raises(UserError, match=rf"here: resources ask for {num_nodes} node\(s\) with room for"):
            require_fit(resources, cluster, "here")


@pytest.mark.parametrize(
    ("num_nodes", "strategy"), [(None, "PACK"), (1, "STRICT_PACK"), (2, "SPREAD"), (4, "STRICT_SPREAD")]
)
def test_the_number_of_nodes_decides_how_ray_places_the_workers(num_nodes: int | None, strategy: str):
    assert placement(Resources(num_workers=4, num_nodes=num_nodes)) == strategy


def test_a_stream_that_is_no_terminal_gets_one_line_for_each_finished_epoch():
    stream = io.StringIO()
    status = Status(label="row", state="training", num_epochs=3, loss=1.25)
    with live_view(stream) as show:
        for epoch in (0.5, 0.9, 1.0, 1.4, 2.2):
            show([replace(status, epoch=epoch)])
    assert stream.getvalue() == "row: training, epoch 1/3, loss 1.250\nrow: training, epoch 2/3, loss 1.250\n"
