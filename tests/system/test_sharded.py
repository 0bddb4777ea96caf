"""Scoring on two workers, one of which is killed in the middle: the numbers of one, and no shard scored twice."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import InferenceConfig
from model.data.coco import read_for_scoring
from model.data.shapes import draw_shapes
from model.evaluation.scoring import score
from model.inference.table import TYPES, read_detections
from model.network.retinanet import load_detector
from orchestrator.cluster import connect
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import make_plan
from orchestrator.experiment.rows import Resources, Row
from orchestrator.site import Site
from orchestrator.tracking import server
from orchestrator.tracking.artifacts import download
from orchestrator.worker.task import last_checkpoint
from orchestrator.worker.training_log import Scoring, Start, read_log
from tests.suites import TRAIN, launched, ledger_of

pytestmark = pytest.mark.slow

NUM_IMAGES = 320
SETTINGS = tuple(InferenceConfig(confidence_exponent=exponent) for exponent in (0.0, 0.4, 1.0))
SHORT = replace(TRAIN, schedule=replace(TRAIN.schedule, epochs=1))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(home=tmp_path / "home")
    draw_shapes(site.data_root("shapes"), num_train=32, num_val=NUM_IMAGES, image_size=64)
    starting = server.begin_tracking_server(site)
    connect.start_ray(site)
    starting.wait()
    yield site
    connect.stop_ray()
    server.stop_server(site)


class Watch(threading.Thread):
    """Notes every shard file that appears, and kills the first worker once there is one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.seen: dict[Path, set[int]] = {}
        self.killed_at: set[Path] = set()

    def run(self) -> None:
        while not self.over.wait(0.002):
            for file in self.folder.glob("*/scored/*/*.parquet"):
                try:
                    self.seen.setdefault(file, set()).add(file.stat().st_mtime_ns)
                except FileNotFoundError:
                    continue
            if self.seen and not self.killed_at:
                (log,) = self.folder.glob("*/training.jsonl")
                starts = [entry.event for entry in read_log(log.parent) if isinstance(entry.event, Start)]
                os.kill(starts[-1].process, signal.SIGKILL)
                self.killed_at = set(self.seen)


def test_a_killed_worker_costs_no_shard_and_no_bit(site: Site, tmp_path: Path) -> None:
    rows = tuple(
        Row(label=f"row {place}", train=SHORT, inference=one, split="val") for place, one in enumerate(SETTINGS)
    )
    experiment = Experiment(
        name="sharded",
        suite="sharded",
        title="Sharded",
        rows=rows,
        resources=Resources(num_workers=2),
        path=Path("sharded.yaml"),
    )
    watch = Watch(site.storage / "sharded")
    watch.start()
    outcome = launched(make_plan([experiment], ledger_of(site, "sharded")), site)
    time.sleep(0.1)
    watch.over.set()
    watch.join()
    assert outcome.exit_code == 0, outcome.endings
    assert 0 < len(watch.killed_at) < len(watch.seen)
    assert all(len(times) == 1 for times in watch.seen.values())
    (key,) = make_plan([experiment], ledger_of(site, "sharded")).trainings
    folder = site.storage / "sharded" / key
    assert not list((folder / "scored").glob("*/*"))
    events = [entry.event for entry in read_log(folder)]
    starts = [place for place, event in enumerate(events) if isinstance(event, Start) and event.num_workers == 2]
    scorings = [event for event in events if isinstance(event, Scoring)]
    assert any((e.num_images, e.split, e.num_settings) == (NUM_IMAGES, "val", 3) for e in scorings)
    assert not any(isinstance(event, Scoring) and event.num_done == 0 for event in events[starts[-1] :])

    data = read_for_scoring(site.data_root("shapes"), SHORT.data, "val")
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    torch.set_num_threads(1)
    alone = {one.inference: one for one in score(load_detector(checkpoint), data, SETTINGS, SHORT.data)}
    ledger = ledger_of(site, "sharded")
    plan = make_plan([experiment], ledger)
    assert len(ledger.evaluations) == len(SETTINGS)
    for evaluation in plan.evaluations_on(key):
        expected, record = alone[evaluation.inference], ledger.evaluations[evaluation.key]
        assert record.status == "FINISHED"
        assert all(expected.metrics[name] == record.metrics[name] for name in ("AP", "AP50", "AP75"))
        scratch = tmp_path / evaluation.key
        scratch.mkdir()
        file = "detections/detections.parquet"
        download(server.tracking_server(site), record.run_id, file, scratch)
        (found,) = scratch.rglob("*.parquet")
        table, _ = read_detections(found)
        for name in TYPES:
            assert np.array_equal(getattr(table, name), getattr(expected.detections, name), equal_nan=True), name
