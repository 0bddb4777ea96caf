"""Trainings on GPUs that Ray gives away and torch cannot use: all the way through Ray up to the choice of a device."""

from collections.abc import Iterator

import pytest
import torch

from model.data.shapes import draw_shapes
from orchestrator.cluster import capacity, connect
from orchestrator.experiment.rows import Resources
from orchestrator.site import Site
from orchestrator.tracking import server
from orchestrator.worker.training_log import Start, read_log
from tests.suites import TRAIN, launched, plan_of, variant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be used, and the trainings succeed"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The small site of these tests, whose Ray takes this machine for one with two GPUs."""
    site = Site(home=tmp_path_factory.mktemp("home"))
    draw_shapes(site.data_root("shapes"), num_train=32, num_val=8, image_size=64)
    starting = server.begin_tracking_server(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setattr(capacity, "count_gpus", lambda: 2)
        connect.start_ray(site)
        starting.wait()
        yield site
        connect.stop_ray()
        server.stop_server(site)


@pytest.mark.parametrize(
    ("suite", "resources"),
    [
        ("whole", Resources(gpus_per_worker=1.0, cpus_per_worker=0.5)),
        ("shared", Resources(gpus_per_worker=0.5, cpus_per_worker=0.5)),
        ("sharded", Resources(gpus_per_worker=1.0, cpus_per_worker=0.5, num_workers=2)),  # a group of NCCL
    ],
)
def test_a_worker_whose_gpu_cannot_be_used_fails_at_once_with_the_way_out(site: Site, suite: str, resources: Resources):
    trainings = [TRAIN, variant(1)] if suite == "shared" else [TRAIN]
    outcome = launched(plan_of(site, suite, *trainings, resources=resources), site)
    assert [ending.state for ending in outcome.endings] == ["failed"] * len(trainings)
    for ending in outcome.endings:
        assert ending.error.startswith("resources.gpus_per_worker asks for a GPU, which torch cannot use on ")
        assert ending.error.endswith("; or set resources.gpus_per_worker: 0 to train on CPUs")
        # Another start would not help; the workers of a group fail before the first of them writes to the log.
        starts = [entry for entry in read_log(site.storage / suite / ending.key) if isinstance(entry.event, Start)]
        assert len(starts) == (0 if suite == "sharded" else 1)
