"""Judges machines against each other: what has to be the same everywhere, and whether they reach one another."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orchestrator.doctor.machine import EVERYWHERE, Finding, judge_skew

Facts = Mapping[str, Any]
SAME_NUMBERS = ("python", "torch", "torchvision", "ray", "sources")
"""What decides whether nodes understand each other and compute the same; other packages may differ a little."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduced:
    """How adding up a number over machines went."""

    backend: str
    where: tuple[str, ...]
    seconds: float = 0.0
    problem: str = ""
    skipped: str = ""


def judge_versions_agree(machines: Mapping[str, Facts]) -> Iterator[Finding]:
    """Every machine has the same packages and the same sources."""
    seen = {where: facts["versions"] for where, facts in machines.items() if "error" not in facts.get("versions", {})}
    names = dict.fromkeys(name for versions in seen.values() for name in versions)
    differing = False
    for name in names:
        texts = {where: _version(name, versions.get(name)) for where, versions in seen.items()}
        if len(set(texts.values())) > 1:
            differing = True
            yield Finding(
                check="versions agree",
                where=EVERYWHERE,
                level="fail" if name in SAME_NUMBERS else "warn",
                seen=f"{name} differs: {differences(texts)}",
                way_out="install the same requirements.lock and checkout everywhere, or use one image",
            )
    if not differing and len(seen) > 1:
        yield Finding(check="versions agree", where=EVERYWHERE, level="ok", seen=f"on {len(seen)} machines")


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
    """A split or a file of weights is the same wherever it is; where it is missing is told elsewhere."""
    ways = {
        "data": "copy the data anew to the nodes that differ, or mount one copy of them everywhere",
        "weights": "copy the file anew to the nodes that differ, or mount one copy of it everywhere",
    }
    for kind, way_out in ways.items():
        names = dict.fromkeys(name for facts in machines.values() for name in _there(facts, kind))
        for name in names:
            texts = {
                where: ", ".join(f"{key} {value}" for key, value in found.items())
                for where, facts in machines.items()
                if (found := _there(facts, kind).get(name))
            }
            if len(set(texts.values())) > 1:
                seen = f"{name} differs: {differences(texts)}"
                yield Finding(check=f"{kind} agree", where=EVERYWHERE, level="fail", seen=seen, way_out=way_out)
            elif len(texts) > 1:
                seen = f"{name}: the same on {len(texts)} machines"
                yield Finding(check=f"{kind} agree", where=EVERYWHERE, level="ok", seen=seen)


def _there(facts: Facts, kind: str) -> dict[str, Facts]:
    return {name: one for name, one in facts.get(kind, {}).items() if isinstance(one, Mapping) and "missing" not in one}


def judge_gpus_agree(machines: Mapping[str, Facts], promised: Mapping[str, float]) -> Iterator[Finding]:
    """Nodes have one kind of GPU, and as many as Ray gives away."""
    devices = {where: facts["gpus"].get("devices", []) for where, facts in machines.items() if where in promised}
    kinds = {where: " and ".join(sorted({one["name"] for one in found})) for where, found in devices.items() if found}
    if len(set(kinds.values())) > 1:
        yield Finding(
            check="gpus agree",
            where=EVERYWHERE,
            level="warn",
            seen=differences(kinds),
            way_out="workers of one training wait for the slowest; keep different GPUs in clusters of their own",
        )
    for where, found in devices.items():
        if promised[where] > len(found):
            yield Finding(
                check="gpus agree",
                where=where,
                level="fail",
                seen=f"Ray gives away {promised[where]:g} GPUs, the driver of the machine shows {len(found)}",
                way_out="start the node with the --num-gpus that it has, and give its container the GPUs",
            )
        elif promised[where] < len(found):
            yield Finding(
                check="gpus agree",
                where=where,
                level="warn",
                seen=f"Ray gives away {promised[where]:g} of {len(found)} GPUs",
                way_out="start the node with --num-gpus, or leave it if the rest is meant for others",
            )


def judge_clocks(skews: Mapping[str, float]) -> Iterator[Finding]:
    """No clock of a node is far from the driver's."""
    for where, skew in skews.items():
        yield judge_skew("clock", where, skew)


def judge_reduced(reduced: Sequence[Reduced]) -> Iterator[Finding]:
    """The machines reach one another as the workers of a training do."""
    for one in reduced:
        check, where = f"all-reduce with {one.backend}", ", ".join(one.where)
        if one.problem:
            yield Finding(
                check=check,
                where=where,
                level="fail",
                seen=one.problem,
                way_out="open all TCP ports between the nodes; name the interface in GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME where a node has several",
            )
        elif one.skipped:
            way_out = "run this again when no training holds the GPUs"
            yield Finding(check=check, where=where, level="warn", seen=one.skipped, way_out=way_out)
        else:
            seen = f"{len(one.where)} machine(s) in {one.seconds:.1f} s"
            yield Finding(check=check, where=where, level="ok", seen=seen)


def judge_lost(lost: Mapping[str, str], left: Sequence[str]) -> Iterator[Finding]:
    """Nodes that did not answer, and nodes that Ray knows and that are gone."""
    for where, problem in lost.items():
        way_out = "look into Ray's logs on that node, end it and start it again; `ray status` says what Ray knows"
        yield Finding(check="node", where=where, level="fail", seen=problem, way_out=way_out)
    for where in left:
        way_out = "nothing, if it was taken away on purpose; else start Ray there again"
        yield Finding(check="node", where=where, level="warn", seen="has left the cluster", way_out=way_out)


def judge_tokens(modes: Mapping[str, str], dashboard: str, is_open: bool | None) -> Iterator[Finding]:
    """Nobody gives Ray work without a token, neither through its ports nor through its dashboard."""
    without = [where for where, mode in modes.items() if mode != "token"]
    if without:
        way_out = (
            "set RAY_AUTH_MODE=token, and the same token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, and start again"
        )
        seen = f"RAY_AUTH_MODE is not token, so who reaches Ray's ports runs code there: {', '.join(without)}"
        yield Finding(check="ray tokens", where=EVERYWHERE, level="fail", seen=seen, way_out=way_out)
    else:
        yield Finding(check="ray tokens", where=EVERYWHERE, level="ok", seen=f"on {len(modes)} node(s)")
    if is_open:
        way_out = "switch tokens on, and let the dashboard listen on 127.0.0.1 or behind a proxy that asks for a key"
        seen = f"{dashboard} takes jobs of anybody who reaches it"
        yield Finding(check="ray dashboard", where=EVERYWHERE, level="fail", seen=seen, way_out=way_out)
    elif is_open is False:
        yield Finding(check="ray dashboard", where=EVERYWHERE, level="ok", seen=f"{dashboard} wants a token")


def judge_mlflow_written(uri: str, written: Facts) -> Finding:
    """A run and a file could be stored and read back."""
    if problem := written.get("error"):
        way_out = "give this user the right to create experiments, and see that the server reaches its artifact store"
        return Finding(check="mlflow writes", where="driver", level="fail", seen=str(problem), way_out=way_out)
    seen = f"a run with a file was written, read and deleted in {written['seconds']:.1f} s at {uri}"
    return Finding(check="mlflow writes", where="driver", level="ok", seen=seen)


def judge_mlflow_key(uri: str, is_open: bool) -> Finding:
    """Who has no password is turned away, unless only this machine reaches the server."""
    if not is_open:
        return Finding(check="mlflow key", where=EVERYWHERE, level="ok", seen="who has no password is turned away")
    is_local = urlsplit(uri).hostname in LOOPBACK
    return Finding(
        check="mlflow key",
        where=EVERYWHERE,
        level="warn" if is_local else "fail",
        seen=f"{uri} takes everything from anybody {'on this machine' if is_local else 'who reaches it'}",
        way_out="start it with --app-name basic-auth, and a password for every user",
    )


def judge_embedded(uri: str | None, folder: str, num_nodes: int) -> Finding:
    """What records where no server is named: one of our own, which other machines do not reach."""
    if num_nodes > 1:
        return Finding(
            check="mlflow",
            where=EVERYWHERE,
            level="fail",
            seen=f"none is named, and one of our own would listen on localhost, which {num_nodes} nodes do not share",
            way_out="set MLFLOW_TRACKING_URI to a server that all nodes reach",
        )
    state = f"runs at {uri}" if uri else "is started by the first submit"
    return Finding(check="mlflow", where="driver", level="ok", seen=f"one of our own, in {folder}, {state}")
