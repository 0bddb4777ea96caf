"""Asks every node of a Ray cluster what `rnc doctor` wants to know, and whether the nodes reach one another."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.capacity import Cluster
from orchestrator.cluster.connect import cluster_of_ray, start_ray, stop_ray
from orchestrator.doctor import probes
from orchestrator.doctor.services import dashboard_is_open
from orchestrator.doctor.together import Reduced
from orchestrator.site import Site

Say = Callable[[str], None]
NODE_SECONDS = 90.0
"""After which a node counts as dead; the start of its first Python process takes most of them."""
REDUCE_SECONDS = 30.0
NUM_CLOCK_READINGS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What was seen of a cluster; machines stand under the names that people are shown."""

    cluster: Cluster
    facts: dict[str, probes.Facts] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """Nodes that Ray takes for alive and that did not answer, and why."""
    left: tuple[str, ...] = ()
    """Nodes that have left the cluster."""
    skews: dict[str, float] = field(default_factory=dict)
    gpus: dict[str, float] = field(default_factory=dict)
    """How many Ray gives away on each node."""
    reduced: tuple[Reduced, ...] = ()
    dashboard: str = ""
    dashboard_is_open: bool | None = None


def examine_cluster(site: Site, asked: probes.Questions, say: Say) -> Seen:
    """Join the cluster of the site, ask all its nodes, and leave it as it was.

    What Ray itself prints meanwhile, of nodes that die, goes to the standard error, beside what is said.

    Raises:
        UserError: the cluster does not answer.
    """
    with redirect_stdout(sys.stderr):
        try:
            start_ray(site)
            return _examine_nodes(asked, say)
        finally:
            stop_ray()


def _examine_nodes(asked: probes.Questions, say: Say) -> Seen:
    alive, left = _nodes()
    say(f"Asking {len(alive)} node(s) ...")
    facts, lost = _gather(
        {where: _on(node, _examine).remote(asked) for where, node in alive.items()}, NODE_SECONDS, say
    )
    answering = {where: alive[where] for where in facts}
    dashboard = ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
    address = f"http://{dashboard}" if dashboard else ""
    say("Adding up a number over all nodes ...")
    return Seen(
        cluster=cluster_of_ray(),
        facts=facts,
        lost=lost,
        left=tuple(left),
        skews={where: skew for where, node in answering.items() if (skew := _skew(node)) is not None},
        gpus={where: node["Resources"].get("GPU", 0.0) for where, node in answering.items()},
        reduced=tuple(_reduce_all(answering)),
        dashboard=address,
        dashboard_is_open=dashboard_is_open(address) if address else None,
    )


def _nodes() -> tuple[dict[str, Any], list[str]]:
    """The nodes that are alive, by the name that people are shown, and the names of those that are not."""
    nodes: Sequence[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    addresses = [node["NodeManagerAddress"] for node in nodes if node["Alive"]]
    alive, left = {}, []
    for node in sorted(nodes, key=lambda node: (_role(node), node["NodeManagerAddress"], node["NodeID"])):
        name = f"{_role(node)} {node['NodeManagerAddress']}"
        if not node["Alive"]:
            left.append(f"{name} ({node['NodeID'][:6]})")
        elif addresses.count(node["NodeManagerAddress"]) > 1 and _role(node) != "head":
            alive[f"{name} ({node['NodeID'][:6]})"] = node
        else:
            alive[name] = node
    return alive, left


def _role(node: Mapping[str, Any]) -> str:
    return "head" if "node:__internal_head__" in node["Resources"] else "node"


def _on(node: Mapping[str, Any], task: Any, **options: Any) -> Any:
    """A task for one node and no other, which takes none of its CPUs."""
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return task.options(scheduling_strategy=place, num_cpus=0, max_retries=0, **options)


def _gather(tasks: Mapping[str, Any], seconds: float, say: Say) -> tuple[dict[str, Any], dict[str, str]]:
    """What the tasks return, and why some did not; a task that takes longer is given up."""
    names = {task: where for where, task in tasks.items()}
    answers: dict[str, Any] = {}
    lost: dict[str, str] = {}
    deadline = time.monotonic() + seconds
    waiting = list(names)
    while waiting and time.monotonic() < deadline:
        done, waiting = ray.wait(waiting, timeout=1.0)
        for task in done:
            try:
                answers[names[task]] = ray.get(task)
            except Exception as error:  # whatever befell a node, the others are still to be judged
                lost[names[task]] = _last_line(error)
        if done:
            say(f"{len(tasks) - len(waiting)} of {len(tasks)} answered.")
    for task in waiting:
        lost[names[task]] = f"no answer within {seconds:.0f} s"
        with suppress(Exception):
            ray.cancel(task, force=True)
    return {where: answers[where] for where in tasks if where in answers}, lost


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]


def _skew(node: Mapping[str, Any]) -> float | None:
    """Seconds that the node's clock is off at least; the way there and back explains a part of what is seen."""
    skews = []
    for _ in range(NUM_CLOCK_READINGS):
        asked = time.time()
        try:
            there: float = ray.get(_on(node, _clock).remote(), timeout=NODE_SECONDS)
        except Exception:
            return None
        answered = time.time()
        skews.append(max(0.0, abs(there - (asked + answered) / 2) - (answered - asked) / 2))
    return min(skews)


def _reduce_all(nodes: Mapping[str, Any]) -> list[Reduced]:
    found = [_reduce(nodes, "gloo")] if len(nodes) > 1 else []
    with_gpu = {where: node for where, node in nodes.items() if node["Resources"].get("GPU", 0.0) >= 1.0}
    if with_gpu:
        free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
        busy = [where for where, node in with_gpu.items() if free.get(node["NodeID"], {}).get("GPU", 0.0) < 1.0]
        if busy:
            found.append(Reduced(backend="nccl", where=tuple(busy), skipped="no GPU is free to try it"))
        else:
            found.append(_reduce(with_gpu, "nccl", num_gpus=1))
    return found


def _reduce(nodes: Mapping[str, Any], backend: str, **options: Any) -> Reduced:
    """Add up a one over all nodes, as the workers of a training add up their gradients."""
    places = list(nodes.items())
    begun = time.monotonic()
    try:
        port = ray.get(_on(places[0][1], _free_port).remote(), timeout=NODE_SECONDS)
    except Exception as error:
        return Reduced(backend=backend, where=tuple(nodes), problem=_last_line(error))
    address = f"{places[0][1]['NodeManagerAddress']}:{port}"
    tasks = {
        where: _on(node, _all_reduce, **options).remote(rank, len(places), address, backend, REDUCE_SECONDS)
        for rank, (where, node) in enumerate(places)
    }
    sums, lost = _gather(tasks, NODE_SECONDS, lambda _: None)
    wrong = [f"{where} has {number:g}" for where, number in sums.items() if number != len(places)]
    problem = "; ".join([*(f"{where}: {why}" for where, why in lost.items()), *wrong])
    return Reduced(backend=backend, where=tuple(nodes), seconds=time.monotonic() - begun, problem=problem)


@ray.remote
def _examine(asked: probes.Questions) -> probes.Facts:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return probes.examine(asked) | {"ray": {"auth_mode": "token" if is_token_auth_enabled() else "disabled"}}


@ray.remote
def _clock() -> float:
    return probes.clock()


@ray.remote
def _free_port() -> int:
    return probes.free_port()


@ray.remote
def _all_reduce(rank: int, count: int, address: str, backend: str, seconds: float) -> float:
    return probes.all_reduce(rank, count, address, backend, seconds)
