"""The connection to Ray: joins the site's cluster, or starts one on this machine alone; and what its nodes have."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from model.machine import usable_cores, usable_memory
from orchestrator.cluster.address import require_head
from orchestrator.cluster.capacity import Cluster, local_cluster
from orchestrator.cluster.environment import ray_environment, ray_folder
from orchestrator.cluster.ray_processes import end_leftovers, sessions_folder, sign, withdraw
from orchestrator.errors import UserError
from orchestrator.site import Site

TOKENS = {"CPU": "training_cpu", "GPU": "training_gpu"}
"""Resources of which a trial reserves as much as its workers take of the real ones, so that it starts when they fit."""
OBJECT_STORE_BYTES = 256 * 1024**2
"""Tasks and results are small, and images never pass through it; by default it takes 30 % of the memory."""
LEAST_OBJECT_STORE_BYTES = 80 * 1024**2
"""Ray refuses less than 75 MiB."""


def start_ray(site: Site) -> None:
    """Join the site's cluster, or start Ray on this machine, where nobody else can reach it.

    `set_ray_environment` has been called before this module was imported.

    Raises:
        UserError: the cluster does not answer, or Ray does not start here.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if site.ray_address is None:
        _start_own(quiet)
        return
    address = require_head(site.ray_address)
    try:
        ray.init(address=address, runtime_env={"env_vars": ray_environment(is_local=False)}, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"RAY_ADDRESS: {site.ray_address} takes no work ({why})") from error


def _start_own(quiet: dict[str, Any]) -> None:
    machine, memory = local_cluster(), usable_memory()
    tokens = {token: machine.total(name) for name, token in TOKENS.items() if machine.total(name)}
    folder = ray_folder(os.environ)
    end_leftovers()  # of a driver that was killed; they hold memory, and ports
    try:
        started: Any = ray.init(  # a context of a driver, which knows its session
            address="local",  # never join a cluster that happens to run here, as no address would
            num_cpus=int(machine.total("CPU")),
            # Left to itself, Ray takes -1 in CUDA_VISIBLE_DEVICES for a GPU, and MIG instances of one board for one.
            num_gpus=int(machine.total("GPU")),
            resources=tokens,
            include_dashboard=False,  # three more processes, and an open port
            object_store_memory=min(OBJECT_STORE_BYTES, max(LEAST_OBJECT_STORE_BYTES, memory // 8)),
            # Nothing asks for it; but Ray, which does not see the limits of all control groups, may refuse what it
            # finds left for tasks.
            _memory=memory,
            _temp_dir=None if folder is None else str(folder),
            **quiet,
        )
    except Exception as error:  # of Ray's own classes, and plain ones, as where a node times out while it starts
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Ray does not start on this machine ({why}); `rnc doctor` says what may keep it from it, and its logs are "
            f"in {sessions_folder()}"
        ) from error
    sign(Path(started.address_info["session_dir"]))


def stop_ray() -> None:
    """End the local cluster and everything in it, or leave the one that was joined."""
    ray.shutdown()
    withdraw()


def cluster_of_ray() -> Cluster:
    """What the nodes of the cluster have that was joined or started."""
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
    return Cluster(nodes=nodes, grows=_can_grow())


def node_here() -> dict[str, float]:
    """What the node has that this worker runs on, its cores no more than the process may use."""
    here = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = next((dict(node["Resources"]) for node in nodes if node["NodeID"] == here), {})
    usable = float(usable_cores())
    return resources | {"CPU": min(resources.get("CPU", usable), usable)}


def _can_grow() -> bool:
    """Whether an autoscaler may add nodes; where Ray does not tell, none does."""
    with suppress(AttributeError):  # Ray has no public word for it
        return bool(ray._private.state.state.get_max_resources_from_cluster_config())
    return False
