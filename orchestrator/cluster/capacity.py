"""Resources: what trainings ask of a cluster, what its nodes have, and whether the one fits into the other."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from model.machine import usable_cores
from orchestrator.cluster.gpus import VISIBLE, count_gpus
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Plan
from orchestrator.experiment.rows import Resources

MOST_LOADERS = 8
"""Loader processes of a worker where none are asked for; more than a GPU takes in only cost memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What the nodes have."""

    nodes: tuple[Mapping[str, float], ...]
    """Of each, amounts by Ray's names: CPU, GPU ..."""
    grows: bool = False
    """Whether more nodes may come when they are asked for."""

    def total(self, name: str) -> float:
        """Return the amount on all nodes."""
        return sum(node.get(name, 0.0) for node in self.nodes)

    def num_nodes_with(self, num_workers: int, per_worker: Mapping[str, float]) -> int:
        """Return how many nodes have room for so many such workers each."""
        return sum(Cluster(nodes=(node,)).num_places(per_worker) >= num_workers for node in self.nodes)

    def num_places(self, per_worker: Mapping[str, float]) -> int:
        """Return how many such workers find room at once; each has to fit on one node."""
        wanted = {name: amount for name, amount in per_worker.items() if amount}
        return sum(
            # Amounts may be fractions: 1 / 0.1 workers on a GPU are ten, though floats may say 9.999.
            min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items())
            for node in self.nodes
        )


def needs(resources: Resources) -> dict[str, float]:
    """Return what the workers of a training take together; the GPUs first, they are the scarcer."""
    return {
        "GPU": resources.num_workers * resources.gpus_per_worker,
        "CPU": resources.num_workers * resources.cpus_per_worker,
    }


def placement(resources: Resources) -> str:
    """Return how Ray is to place the workers on nodes."""
    if resources.num_nodes is None:
        return "PACK"
    if resources.num_nodes == 1:
        return "STRICT_PACK"
    # STRICT_SPREAD puts each worker on a node of its own; SPREAD only tries to use many nodes.
    return "STRICT_SPREAD" if resources.num_nodes == resources.num_workers else "SPREAD"


def per_worker(resources: Resources) -> dict[str, float]:
    """Return what one worker takes, without what it does not need."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {name: amount for name, amount in amounts.items() if amount}


def require_fit(resources: Resources, cluster: Cluster, where: str) -> None:
    """Refuse what could only wait for ever.

    Raises:
        UserError: the cluster is too small for the workers of `where`.
    """
    if cluster.grows:
        return
    wanted, num_workers = per_worker(resources), resources.num_workers
    if resources.num_nodes is not None:
        on_each = num_workers // resources.num_nodes
        have = cluster.num_nodes_with(on_each, wanted)
        if have < resources.num_nodes:
            raise UserError(
                f"{where}: resources ask for {resources.num_nodes} node(s) with room for {on_each} worker(s) each; "
                f"{have} of {len(cluster.nodes)} node(s) have it. Lower resources.num_nodes or num_workers, or set "
                "RAY_ADDRESS to a larger cluster"
            )
    if cluster.num_places(wanted) >= num_workers:
        return
    short = next((name for name in wanted if cluster.num_places({name: wanted[name]}) < num_workers), "CPU")
    asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    if short == "GPU" and not cluster.total("GPU"):
        raise UserError(
            f"{where}: resources ask for {num_workers} x ({asked}), and none of {len(cluster.nodes)} node(s) has a GPU"
            f"{_hidden(cluster)}. Set resources.gpus_per_worker: 0 to train on CPUs, or RAY_ADDRESS to a cluster with "
            "GPUs"
        )
    has = ", ".join(f"{cluster.total(name):g} {name}" for name in ("CPU", "GPU"))
    raise UserError(
        f"{where}: resources ask for {num_workers} x ({asked}); there are not enough {short}s for that ever to start, "
        f"the cluster has {has} on {len(cluster.nodes)} node(s). Lower resources.num_workers, cpus_per_worker or "
        "gpus_per_worker, or set RAY_ADDRESS to a larger cluster"
    )


def _hidden(cluster: Cluster) -> str:
    # Of this machine; what the nodes of a larger cluster have there, they know alone.
    visible = os.environ.get(VISIBLE)
    return "" if visible is None or len(cluster.nodes) > 1 else f" that {VISIBLE}={visible!r} leaves to Ray"


def require_plan_fits(plan: Plan, cluster: Cluster) -> None:
    """Refuse a plan of which something missing could only wait for ever.

    Raises:
        UserError: the cluster is too small for a training.
    """
    for key, run in plan.trainings.items():
        evaluations = plan.evaluations_on(key)
        # Scoring alone takes the same workers as the training.
        if key in plan.missing_trainings or plan.missing_evaluations.keys() & {one.key for one in evaluations}:
            require_fit(run.resources, cluster, f"{evaluations[0].places[0].table}, row {run.label!r}")


def local_cluster() -> Cluster:
    """Return what a Ray on this machine alone would have."""
    return Cluster(nodes=({"CPU": float(usable_cores()), "GPU": float(count_gpus())},))


def cores_of_worker(resources: Resources, node: Mapping[str, float]) -> float:
    """Return how many cores of its node a worker may take: on a GPU its share of them, else what it reserves."""
    if not resources.gpus_per_worker:
        return resources.cpus_per_worker
    # Ray gives each GPU away once, so that such shares never add up to more than the node has, however many trainings
    # run there; reserved CPUs would have to be known before anybody knows the node.
    share = node.get("CPU", 0.0) * resources.gpus_per_worker / max(node.get("GPU", 0.0), resources.gpus_per_worker)
    return max(share, resources.cpus_per_worker)


def loader_processes(resources: Resources, node: Mapping[str, float]) -> int:
    """Return how many processes of a worker read images on a node with so much of each resource."""
    if resources.loader_processes is not None:
        return resources.loader_processes
    if not resources.gpus_per_worker:
        return 0  # its cores are busy with the network already
    # One core is the worker's own, which keeps the GPU busy.
    return max(1, min(MOST_LOADERS, int(cores_of_worker(resources, node)) - 1))
