"""Judges machines against each other: what has to be the same everywhere, and whether they reach one another."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.doctor.finding import EVERYWHERE, Finding, Level, finding
from orchestrator.doctor.services import judge_skew
from orchestrator.doctor.versions import PACKAGES

Facts = Mapping[str, Any]
SAME_NUMBERS = ("python", "torch", "torchvision", "ray", "sources")
"""What decides whether nodes understand each other and compute the same; other packages may differ a little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """The outcome of an all-reduce over machines."""

    backend: str
    where: tuple[str, ...]
    seconds: float = 0.0
    problem: str = ""
    skipped: str = ""


def judge_versions_agree(machines: Mapping[str, Facts]) -> Iterator[Finding]:
    """Judge whether every machine has the same packages and the same sources."""
    seen = {where: facts["versions"] for where, facts in machines.items() if "error" not in facts.get("versions", {})}
    differing = False
    for name in ("python", *PACKAGES, "sources"):
        texts = {where: _version(name, versions.get(name)) for where, versions in seen.items()}
        if len(set(texts.values())) > 1:
            differing = True
            level: Level = "fail" if name in SAME_NUMBERS else "warn"
            way_out = "install the same requirements.lock and checkout everywhere, or use one image"
            yield finding("versions agree", EVERYWHERE, level, f"{name} differs: {differences(texts)}", way_out)
    if not differing and len(seen) > 1:
        yield finding("versions agree", EVERYWHERE, "ok", f"on {len(seen)} machines")


def _version(name: str, version: str | None) -> str:
    if version is None:
        return "none"
    return ".".join(version.split(".")[:2]) if name == "python" else version


def differences(texts: Mapping[str, str]) -> str:
    """Say what most machines have, and which have something else."""
    usual = Counter(texts.values()).most_common(1)[0][0]
    others = [f"{text} on {where}" for where, text in texts.items() if text != usual]
    return f"{usual} on {len(texts) - len(others)}, but {', '.join(others)}"


def judge_files_agree(machines: Mapping[str, Facts]) -> Iterator[Finding]:
    """Judge whether splits and files of weights are the same wherever they are; missing ones are told elsewhere."""
    ways = {
        "data": "copy the data anew to the nodes that differ, or mount one copy of them everywhere",
        "weights": "copy the file anew to the nodes that differ, or mount one copy of it everywhere",
    }
    for kind, way_out in ways.items():
        there = {where: _there(facts, kind) for where, facts in machines.items()}
        for name in dict.fromkeys(name for texts in there.values() for name in texts):
            texts = {where: found[name] for where, found in there.items() if name in found}
            if len(set(texts.values())) > 1:
                yield finding(f"{kind} agree", EVERYWHERE, "fail", f"{name} differs: {differences(texts)}", way_out)
            elif len(texts) > 1:
                yield finding(f"{kind} agree", EVERYWHERE, "ok", f"{name}: the same on {len(texts)} machines")


def _there(facts: Facts, kind: str) -> dict[str, str]:
    """What a machine has of a kind of files, each as one line."""
    return {
        name: ", ".join(f"{key} {value}" for key, value in one.items())
        for name, one in facts.get(kind, {}).items()
        if isinstance(one, Mapping) and "missing" not in one  # else it is the error that kept the look from seeing
    }


def judge_gpus_agree(machines: Mapping[str, Facts], promised: Mapping[str, float]) -> Iterator[Finding]:
    """Judge whether nodes have one kind of GPU, and as many as Ray gives away."""
    # No devices where the look failed, which is told with that machine.
    devices = {where: machines[where]["gpus"].get("devices", []) for where in machines if where in promised}
    kinds = {where: " and ".join(sorted({one["name"] for one in found})) for where, found in devices.items() if found}
    if len(set(kinds.values())) > 1:
        way_out = "workers of one training wait for the slowest; keep different GPUs in clusters of their own"
        yield finding("gpus agree", EVERYWHERE, "warn", differences(kinds), way_out)
    for where, found in devices.items():
        # MIG makes several of one board; one that CUDA_VISIBLE_DEVICES hides is none that Ray could give away.
        there = machines[where]["gpus"].get("ray_counts", len(found))
        if promised[where] > there:
            seen = f"Ray gives away {promised[where]:g} GPUs, the driver of the machine shows {there}"
            way_out = "start the node with the --num-gpus that it has, and give its container the GPUs"
            yield finding("gpus agree", where, "fail", seen, way_out)
        elif promised[where] < there:
            seen = f"Ray gives away {promised[where]:g} of {there} GPUs"
            way_out = "start the node with --num-gpus, or leave it if the rest is meant for others"
            yield finding("gpus agree", where, "warn", seen, way_out)


def judge_clocks(skews: Mapping[str, float]) -> Iterator[Finding]:
    """Judge how far the nodes' clocks are from the driver's."""
    for where, skew in skews.items():
        yield judge_skew("clock", where, skew)


def judge_reduced(reduced: Sequence[Reduced]) -> Iterator[Finding]:
    """Judge whether the machines reach one another as the workers of a training do."""
    for one in reduced:
        check, where = f"all-reduce with {one.backend}", ", ".join(one.where)
        if one.problem:
            way_out = (
                "open all TCP ports between the nodes; name the interface in GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME where a node has several"
            )
            yield finding(check, where, "fail", one.problem, way_out)
        elif one.skipped:
            yield finding(check, where, "warn", one.skipped, "run this again when no training holds the GPUs")
        else:
            yield finding(check, where, "ok", f"{len(one.where)} machine(s) in {one.seconds:.1f} s")


def judge_lost(lost: Mapping[str, str], left: Sequence[str]) -> Iterator[Finding]:
    """Report nodes that did not answer, and nodes that Ray knows and that are gone."""
    for where, problem in lost.items():
        way_out = "look into Ray's logs on that node, end it and start it again; `ray status` says what Ray knows"
        yield finding("node", where, "fail", problem, way_out)
    for where in left:
        way_out = "nothing, if it was taken away on purpose; else start Ray there again"
        yield finding("node", where, "warn", "has left the cluster", way_out)


def judge_tokens(modes: Mapping[str, str], dashboard: str, is_open: bool | None) -> Iterator[Finding]:
    """Judge whether Ray takes work without a token, through its ports or through its dashboard."""
    if without := [where for where, mode in modes.items() if mode != "token"]:
        seen = f"RAY_AUTH_MODE is not token, so who reaches Ray's ports runs code there: {', '.join(without)}"
        way_out = (
            "set RAY_AUTH_MODE=token, and the same token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, and start again"
        )
        yield finding("ray tokens", EVERYWHERE, "fail", seen, way_out)
    else:
        yield finding("ray tokens", EVERYWHERE, "ok", f"on {len(modes)} node(s)")
    if is_open:
        way_out = "switch tokens on, and let the dashboard listen on 127.0.0.1 or behind a proxy that asks for a key"
        yield finding("ray dashboard", EVERYWHERE, "fail", f"{dashboard} takes jobs of anybody who reaches it", way_out)
    elif is_open is False:
        yield finding("ray dashboard", EVERYWHERE, "ok", f"{dashboard} wants a token")
