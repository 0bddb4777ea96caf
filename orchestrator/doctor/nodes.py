"""Asks every node of a Ray cluster what `rnc doctor` wants to know, and whether the nodes reach one another."""

import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.capacity import Cluster
from orchestrator.cluster.connect import cluster_of_ray, start_ray, stop_ray
from orchestrator.doctor.machine import Facts, Questions, examine
from orchestrator.doctor.services import dashboard_is_open
from orchestrator.doctor.together import Reduced
from orchestrator.errors import Say
from orchestrator.site import Site

Node = Mapping[str, Any]
"""A node as `ray.nodes()` tells of it."""
NODE_SECONDS = 90.0
"""Seconds after which a node counts as dead; the start of its first Python process takes most of them."""
REDUCE_SECONDS = 30.0
NUM_CLOCK_READINGS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What was seen of a cluster; machines stand under the names that people are shown."""

    cluster: Cluster
    facts: dict[str, dict[str, Facts]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    """Nodes that Ray takes for alive and that did not answer, and why."""
    left: tuple[str, ...] = ()
    """Nodes that have left the cluster."""
    skews: dict[str, float] = field(default_factory=dict)
    gpus: dict[str, float] = field(default_factory=dict)
    """GPUs that Ray gives away on each node."""
    reduced: tuple[Reduced, ...] = ()
    dashboard: str = ""
    dashboard_is_open: bool | None = None


def examine_cluster(site: Site, asked: Questions, say: Say) -> Seen:
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


def _examine_nodes(asked: Questions, say: Say) -> Seen:
    alive, left = _nodes()
    say(f"Asking {len(alive)} node(s) ...")
    facts, lost = _gather({where: _on(node, _examine, asked) for where, node in alive.items()}, say)
    answering = {where: alive[where] for where in facts}
    address = _dashboard()
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


def _dashboard() -> str:
    """The address of Ray's dashboard; empty where there is none, or where this Ray does not tell."""
    with suppress(AttributeError):  # what is asked is not public
        dashboard = ray._private.worker.get_dashboard_url()  # type: ignore[no-untyped-call]
        return f"http://{dashboard}" if dashboard else ""
    return ""


def _nodes() -> tuple[dict[str, Node], list[str]]:
    """The nodes that are alive, by the name that people are shown, and the names of those that are not."""
    nodes: list[Node] = ray.nodes()  # type: ignore[no-untyped-call]
    addresses = [node["NodeManagerAddress"] for node in nodes if node["Alive"]]
    alive, left = {}, []
    for node in sorted(nodes, key=lambda node: (_role(node), node["NodeManagerAddress"], node["NodeID"])):
        name = f"{_role(node)} {node['NodeManagerAddress']}"
        numbered = f"{name} ({node['NodeID'][:6]})"
        if not node["Alive"]:
            left.append(numbered)
        elif addresses.count(node["NodeManagerAddress"]) > 1 and _role(node) != "head":
            alive[numbered] = node
        else:
            alive[name] = node
    return alive, left


def _role(node: Node) -> str:
    return "head" if "node:__internal_head__" in node["Resources"] else "node"


def _on(node: Node, task: Any, *arguments: Any, num_gpus: int = 0) -> Any:
    """Start a task on one node and no other, which takes none of its CPUs, and return Ray's reference."""
    # soft=True would run the task elsewhere when the node is gone, and tell of the wrong machine.
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    # No CPUs, or a node full of trainings would not answer; no second try, as a lost node is what is looked for.
    options = {"scheduling_strategy": place, "num_cpus": 0, "num_gpus": num_gpus, "max_retries": 0}
    return task.options(**options).remote(*arguments)


def _gather(tasks: Mapping[str, Any], say: Say) -> tuple[dict[str, Any], dict[str, str]]:
    """What the tasks return, and why some did not; a task that takes longer than a node may is given up."""
    names = {task: where for where, task in tasks.items()}
    answers: dict[str, Any] = {}
    lost: dict[str, str] = {}
    deadline = time.monotonic() + NODE_SECONDS
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
        lost[names[task]] = f"no answer within {NODE_SECONDS:.0f} s"
        with suppress(Exception):
            ray.cancel(task, force=True)
    return {where: answers[where] for where in tasks if where in answers}, lost


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:300]  # the last of a remote traceback is the error itself


def _skew(node: Node) -> float | None:
    """Seconds that the node's clock is off at least; the way there and back explains a part of what is seen."""
    skews = []
    for _ in range(NUM_CLOCK_READINGS):
        asked = time.time()
        try:
            there: float = ray.get(_on(node, _clock), timeout=NODE_SECONDS)
        except Exception:
            return None
        answered = time.time()
        # Half of the way there and back may lie on either side of the reading, so that much is no skew.
        skews.append(max(0.0, abs(there - (asked + answered) / 2) - (answered - asked) / 2))
    return min(skews)


def _reduce_all(nodes: Mapping[str, Node]) -> list[Reduced]:
    """Add up over all nodes through their CPUs, and over those with GPUs through these, if all have a free one."""
    found = [_reduce(nodes, "gloo")] if len(nodes) > 1 else []
    with_gpu = {where: node for where, node in nodes.items() if node["Resources"].get("GPU", 0.0) >= 1.0}
    if with_gpu:
        if busy := _without_free_gpu(with_gpu):
            found.append(Reduced(backend="nccl", where=tuple(busy), skipped="no GPU is free to try it"))
        else:
            found.append(_reduce(with_gpu, "nccl"))
    return found


def _without_free_gpu(nodes: Mapping[str, Any]) -> list[str]:
    """The nodes whose GPUs are all taken; none where this Ray does not tell."""
    with suppress(AttributeError):  # what is asked is not public
        free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
        return [where for where, node in nodes.items() if free.get(node["NodeID"], {}).get("GPU", 0.0) < 1.0]
    return []


def _reduce(nodes: Mapping[str, Node], backend: str) -> Reduced:
    """Add up a one over all nodes, as the workers of a training add up their gradients."""
    first = next(iter(nodes.values()))
    begun = time.monotonic()
    try:
        port = ray.get(_on(first, _free_port), timeout=NODE_SECONDS)
    except Exception as error:
        return Reduced(backend=backend, where=tuple(nodes), problem=_last_line(error))
    group = (len(nodes), f"tcp://{first['NodeManagerAddress']}:{port}", backend)
    tasks = {
        where: _on(node, _all_reduce, rank, *group, num_gpus=int(backend == "nccl"))
        for rank, (where, node) in enumerate(nodes.items())
    }
    sums, lost = _gather(tasks, lambda _: None)
    wrong = [f"{where} has {number:g}" for where, number in sums.items() if number != len(nodes)]
    problem = "; ".join([*(f"{where}: {why}" for where, why in lost.items()), *wrong])
    return Reduced(backend=backend, where=tuple(nodes), seconds=time.monotonic() - begun, problem=problem)


@ray.remote
def _examine(asked: Questions) -> dict[str, Facts]:
    return examine(asked) | {"ray": {"auth_mode": _auth_mode()}}


def _auth_mode() -> str:
    """Whether Ray wants a token, in its own word."""
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:  # it is not public
        return os.environ.get("RAY_AUTH_MODE", "disabled")
    # Ray is asked, since a node may have its mode from a file instead of RAY_AUTH_MODE.
    return "token" if is_token_auth_enabled() else "disabled"


@ray.remote
def _clock() -> float:
    return time.time()


@ray.remote
def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        port: int = one.getsockname()[1]
        return port


@ray.remote
def _all_reduce(rank: int, count: int, address: str, backend: str) -> float:
    """Add up a one over all ranks, and return the sum; rank 0 listens at the address."""
    import torch
    from torch import distributed

    patience = timedelta(seconds=REDUCE_SECONDS)
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=count, timeout=patience)
    try:
        number = torch.ones(1, device="cuda" if backend == "nccl" else "cpu")
        distributed.all_reduce(number)
        return float(number.item())
    finally:
        distributed.destroy_process_group()
