"""The connection to Ray: joins the site's cluster, or starts one on this machine alone; and what its nodes have."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.capacity import Cluster, local_cluster
from orchestrator.cluster.environment import ray_environment
from orchestrator.cluster.ray_processes import end_leftovers, sign, withdraw
from orchestrator.errors import UserError
from orchestrator.site import Site

TOKENS = {"CPU": "training_cpu", "GPU": "training_gpu"}
"""Resources of which a trial reserves as much as its workers take of the real ones, so that it starts when they fit."""
OBJECT_STORE_BYTES = 256 * 1024**2
"""Tasks and results are small, and images never pass through it; by default it takes 30 % of the memory."""
CONNECT_SECONDS = 5.0


def start_ray(site: Site) -> None:
    """Join the site's cluster, or start Ray on this machine, where nobody else can reach it.

    `set_ray_environment` has been called before this module was imported.

    Raises:
        UserError: the cluster does not answer.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if site.ray_address is None:
        end_leftovers()  # of a driver that was killed; they hold memory, and ports
        machine = local_cluster()
        tokens = {token: machine.total(name) for name, token in TOKENS.items() if machine.total(name)}
        started: Any = ray.init(  # a context of a driver, which knows its session
            address="local",  # never join a cluster that happens to run here, as no address would
            num_cpus=int(machine.total("CPU")),
            # Left to itself, Ray takes -1 in CUDA_VISIBLE_DEVICES for a GPU, and MIG instances of one board for one.
            num_gpus=int(machine.total("GPU")),
            resources=tokens,
            include_dashboard=False,  # three more processes, and an open port
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
        sign(Path(started.address_info["session_dir"]))
        return
    _require_answer(site.ray_address)
    try:
        ray.init(address=site.ray_address, runtime_env={"env_vars": ray_environment(is_local=False)}, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"RAY_ADDRESS: {site.ray_address} takes no work ({error})") from error


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
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return resources | {"CPU": min(resources.get("CPU", usable), usable)}


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself waits far longer before it gives up on one."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return  # "auto"
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS: {address} does not answer ({error}); start the cluster, correct the address, or unset it to "
            "run on this machine"
        ) from error


def _can_grow() -> bool:
    """Whether an autoscaler may add nodes; where Ray does not tell, none does."""
    with suppress(AttributeError):  # Ray has no public word for it
        return bool(ray._private.state.state.get_max_resources_from_cluster_config())
    return False
