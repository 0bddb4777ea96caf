"""What Ray does with trainings that fail, and with those that are stopped: a tiny suite on two cores."""

import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from PIL import Image

from model.config import TrainConfig
from orchestrator.cluster import connect
from orchestrator.cluster.capacity import Cluster
from orchestrator.driver import cancel as stops
from orchestrator.driver import launch
from orchestrator.experiment.plan import make_plan
from orchestrator.experiment.rows import Resources
from orchestrator.site import Site
from orchestrator.tracking import server
from orchestrator.tracking.runs import open_tracking
from orchestrator.worker.task import Status, epochs_done, last_checkpoint
from tests.suites import TRAIN, experiment_of, launched, ledger_of, plan_of, variant

pytestmark = pytest.mark.slow

GOES_ON = ("starting", "training", "scoring")
TOO_LARGE = replace(TRAIN, model=replace(TRAIN.model, channels=2**20))  # 36 TB for one convolution


def test_a_worker_that_is_killed_starts_again_from_its_last_checkpoint_and_changes_no_bit(site: Site):
    long = replace(TRAIN, schedule=replace(TRAIN.schedule, epochs=12))
    killed: list[int] = []

    def kill_once(statuses: Sequence[Status]) -> None:
        if not killed and statuses[0].state == "training" and statuses[0].epoch >= 2:
            killed.extend(workers())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    before = num_groups()
    (ending,) = launched(plan_of(site, "killed", long), site, kill_once).endings
    assert num_groups() - before == 3  # of the trial, and of two starts of its worker
    assert (ending.state, len(killed)) == ("finished", 1)
    (straight,) = launched(plan_of(site, "straight", long), site).endings
    assert weights(site, "killed", ending.key) == weights(site, "straight", straight.key)
    log = (site.storage / "killed" / ending.key / "metrics.jsonl").read_text()
    assert log.count("perf/startup_s") == 2


def workers() -> list[int]:
    """The processes in which the Ray of this test, and no other on this machine, runs a worker of Ray Train."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def weights(site: Site, suite: str, key: str) -> bytes:
    checkpoint = last_checkpoint(site.storage / suite / key)
    assert checkpoint is not None
    return (checkpoint / "model.safetensors").read_bytes()


def test_too_little_memory_ends_a_row_at_once_with_advice_and_leaves_the_other_alone(site: Site):
    before = num_groups()
    outcome = launched(plan_of(site, "memory", TOO_LARGE, TRAIN), site)
    large, small = outcome.endings
    assert (large.state, small.state) == ("failed", "finished")
    assert large.error.startswith("out of memory: lower resources.local_batch (now a worker's whole share)")
    assert "can't allocate memory" in large.error
    record = ledger_of(site, "memory").trainings[large.key]
    assert (record.status, record.note) == ("FAILED", large.error)
    assert num_groups() - before == 4  # for each training one of its trial, and one of the only start of its workers


def num_groups() -> int:
    """Placement groups that there ever were."""
    return len(ray.util.placement_group_table())


def test_a_mistake_that_one_of_two_workers_meets_ends_both_at_once(site: Site):
    before = num_groups()
    outcome = launched(plan_of(site, "torn", torn(site), resources=Resources(num_workers=2, cpus_per_worker=0.5)), site)
    (ending,) = outcome.endings
    assert ending.state == "failed"
    assert "annotated (64, 64); mend either" in ending.error
    assert "DataError" in Path(ending.log).read_text()
    assert num_groups() - before == 2


def torn(site: Site) -> TrainConfig:
    """A training of which one image has another size than annotated, so that one worker fails and the other waits."""
    root = site.data_root("shapes")
    shutil.copytree(root / "train", root / "torn")
    shutil.copy(root / "annotations" / "instances_train.json", root / "annotations" / "instances_torn.json")
    image = min((root / "torn").iterdir())
    Image.new("RGB", (32, 32)).save(image)
    return replace(TRAIN, data=replace(TRAIN.data, train_split="torn"))


def test_trainings_of_different_sizes_share_a_cluster_the_largest_first(site: Site):
    large = experiment_of("sizes", TRAIN, name="large", resources=Resources(num_workers=2))
    small = experiment_of("sizes", variant(1), variant(2), name="small")
    plan = make_plan([small, large], ledger_of(site, "sizes"))
    seen: list[list[str]] = []
    outcome = launched(plan, site, lambda statuses: seen.append([status.state for status in statuses]))
    assert [(ending.state, ending.error) for ending in outcome.endings] == [("finished", "")] * 3
    # Shown in the order of the files, in which the large one is the last.
    assert next(states for states in seen if states[-1] != "waiting")[:-1] == ["waiting", "waiting"]
    assert not any(states[-1] in GOES_ON and set(states[:-1]) & set(GOES_ON) for states in seen)


def test_no_more_trainings_run_at_once_than_a_file_allows(site: Site):
    tasks = [SimpleNamespace(train_run=run) for run in plan_of(site, "most", TRAIN, variant(1)).trainings.values()]
    cluster = Cluster(nodes=({"CPU": 8.0},))
    assert launch.most_at_once(tasks, cluster, connect.TOKENS, None) is None  # type: ignore[arg-type]
    assert launch.most_at_once(tasks, cluster, connect.TOKENS, 3) == 3  # type: ignore[arg-type]
    assert launch.most_at_once(tasks, cluster, {}, None) == 8  # type: ignore[arg-type]
    assert launch.most_at_once(tasks, cluster, {}, 3) == 3  # type: ignore[arg-type]
    fifths = [
        SimpleNamespace(train_run=replace(task.train_run, resources=Resources(cpus_per_worker=0.2))) for task in tasks
    ]
    assert launch.most_at_once(fifths, cluster, {}, None) == 40  # type: ignore[arg-type]


def test_a_cancelled_and_a_pruned_training_end_and_free_their_place_while_the_others_go_on(site: Site):
    long = replace(TRAIN, schedule=replace(TRAIN.schedule, epochs=200))
    trains = [long, variant(1), variant(2)]
    plan = plan_of(site, "cancelled", *trains)
    first, second, third = plan.trainings
    suite = open_tracking(server.tracking_server(site), "cancelled")
    asked = False

    def ask(statuses: Sequence[Status]) -> None:
        nonlocal asked
        if not asked and epochs_done(site.storage / "cancelled" / first) >= 1:
            asked = True
            stops.ask_to_cancel(suite, plan.trainings[first])
            stops.ask_to_prune(suite, stops.Prune(tables=frozenset({"tiny"}), keep=frozenset({first, second})))

    outcome = launched(plan, site, ask)
    assert [(ending.state, ending.error) for ending in outcome.endings] == [
        ("cancelled", "cancelled"),
        ("finished", ""),
        ("cancelled", "pruned"),
    ]
    assert outcome.exit_code == 1
    ledger = ledger_of(site, "cancelled")
    assert (ledger.trainings[first].status, ledger.trainings[first].note) == ("KILLED", "cancelled")
    assert third not in ledger.trainings  # it waited
    assert 1 <= epochs_done(site.storage / "cancelled" / first) < 200
    assert plan_of(site, "cancelled", *trains).missing_trainings == {first: "cancelled", third: "never run"}
    states = {group["state"] for group in ray.util.placement_group_table().values()}
    assert states == {"REMOVED"}
