"""What a worker takes of its node; the shares are worked out by hand."""

import pytest

from orchestrator.cluster.capacity import Cluster, cores_of_worker, loader_processes, require_fit
from orchestrator.errors import UserError
from orchestrator.experiment.rows import Resources

H100 = {"CPU": 16.0, "GPU": 1.0}
EIGHT = {"CPU": 32.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("resources", "node", "cores", "processes"),
    [
        (Resources(gpus_per_worker=1.0), H100, 16.0, 8),  # 15, of which 8 at most
        (Resources(gpus_per_worker=0.5), H100, 8.0, 7),  # two trainings share the GPU, and so the cores
        (Resources(gpus_per_worker=0.25), H100, 4.0, 3),
        (Resources(gpus_per_worker=1.0, num_workers=8), EIGHT, 4.0, 3),
        (Resources(gpus_per_worker=1.0, cpus_per_worker=6.0), EIGHT, 6.0, 5),  # more reserved than its share
        (Resources(gpus_per_worker=1.0), {"CPU": 1.0, "GPU": 1.0}, 1.0, 1),
        (Resources(gpus_per_worker=1.0), {}, 1.0, 1),  # a node that does not tell
        (Resources(gpus_per_worker=1.0, loader_processes=0), H100, 16.0, 0),
        (Resources(gpus_per_worker=1.0, cpus_per_worker=12.0, loader_processes=12), H100, 16.0, 12),
        (Resources(), H100, 1.0, 0),
        (Resources(cpus_per_worker=4.0), {"CPU": 16.0}, 4.0, 0),
        (Resources(cpus_per_worker=4.0, loader_processes=2), {"CPU": 16.0}, 4.0, 2),
    ],
)
def test_a_worker_on_a_gpu_loads_with_its_share_of_the_nodes_cores(
    resources: Resources, node: dict[str, float], cores: float, processes: int
):
    assert cores_of_worker(resources, node) == cores
    assert loader_processes(resources, node) == processes


@pytest.mark.parametrize("gpus", [1.0, 0.5, 0.25])
def test_the_loaders_of_all_trainings_that_find_a_gpu_never_ask_for_more_cores_than_the_node_has(gpus: float):
    resources = Resources(gpus_per_worker=gpus, cpus_per_worker=0.5)
    num_places = Cluster(nodes=(EIGHT,)).num_places({"GPU": gpus})
    assert num_places == 8 / gpus
    assert num_places * cores_of_worker(resources, EIGHT) == EIGHT["CPU"]


def test_a_plan_for_gpus_says_where_there_is_none_and_what_hides_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cluster = Cluster(nodes=({"CPU": 2.0}, {"CPU": 2.0}))
    with pytest.raises(
        UserError,
        match=r"^here: resources ask for 1 x \(1 CPU, 1 GPU\), and none of 2 node\(s\) has a GPU\. "
        r"Set resources\.gpus_per_worker: 0 to train on CPUs, or RAY_ADDRESS",
    ):
        require_fit(Resources(gpus_per_worker=1.0), cluster, "here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=r"none of 2 node\(s\) has a GPU\. "):  # they may have set it otherwise
        require_fit(Resources(gpus_per_worker=1.0), cluster, "here")
    with pytest.raises(UserError, match=r"has a GPU that CUDA_VISIBLE_DEVICES='-1' leaves to Ray\."):
        require_fit(Resources(gpus_per_worker=1.0), Cluster(nodes=({"CPU": 2.0},)), "here")
