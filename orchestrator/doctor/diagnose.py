"""`rnc doctor`: finds, before GPU time is spent, what would stop a training or spoil its numbers."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.capacity import local_cluster
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.doctor import together
from orchestrator.doctor.doctor_finding import Finding
from orchestrator.doctor.doctor_needs import judge_fit, judge_space, needs_of
from orchestrator.doctor.machine import judge_machine
from orchestrator.doctor.probes import Questions, examine
from orchestrator.doctor.services import write_mlflow
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.site import Site
from orchestrator.tracking import server

if TYPE_CHECKING:
    from orchestrator.doctor.nodes import Seen

Say = Callable[[str], None]
DRIVER = "driver"


def diagnose(experiments: Sequence[Experiment], site: Site, say: Say) -> list[Finding]:
    """Look at this machine and at every node of the site's cluster, if it names one; nothing that is made stays.

    Args:
        experiments: whose needs are looked for; without any, all that the site names is looked at.
        site: where things are.
        say: told what is being done.
    """
    needs = needs_of(experiments, site)
    asked = Questions(home=site.home, splits=needs.splits, weights=needs.weights, tracking_uri=site.tracking_uri)
    say("Looking at this machine ...")
    facts = examine(asked)
    findings = [*needs.findings, *judge_machine(DRIVER, facts), *judge_space(experiments, site.home)]
    findings += _judge_tracking(site, facts, say)
    if site.ray_address is None:
        seen = "no cluster is named: a Ray of our own starts with the submit, for this machine and user alone"
        findings.append(Finding(check="ray", where=DRIVER, level="ok", seen=seen))
        return [*findings, *judge_fit(experiments, local_cluster())]
    return [*findings, *_judge_cluster(experiments, site, asked, facts, say)]


def _judge_tracking(site: Site, facts: Mapping[str, Any], say: Say) -> Iterator[Finding]:
    if site.tracking_uri is None:
        if site.ray_address is None:
            yield together.judge_embedded(server.running_server(site), str(site.home / "mlflow"), 1)
        return
    if "open" not in facts["mlflow"]:
        return
    yield together.judge_mlflow_key(site.tracking_uri, facts["mlflow"]["open"])
    if "refused" not in facts["mlflow"]:
        say("Writing a run to MLflow ...")
        yield together.judge_mlflow_written(site.tracking_uri, write_mlflow(site.tracking_uri))


def _judge_cluster(
    experiments: Sequence[Experiment], site: Site, asked: Questions, facts: Mapping[str, Any], say: Say
) -> Iterator[Finding]:
    set_ray_environment(is_local=False)
    from orchestrator.doctor.nodes import examine_cluster

    say(f"Joining {site.ray_address} ...")
    try:
        with _left_file(site.home) as left:
            seen = examine_cluster(site, replace(asked, left=left), say)
    except UserError as error:
        way_out = "start the cluster, correct RAY_ADDRESS, or give the token that it wants"
        yield Finding(check="ray", where=DRIVER, level="fail", seen=str(error), way_out=way_out)
        return
    yield Finding(check="ray", where=DRIVER, level="ok", seen=f"{site.ray_address}: {_nodes(seen)}")
    yield from together.judge_lost(seen.lost, seen.left)
    for where, found in seen.facts.items():
        yield from judge_machine(where, found)
    yield from judge_together({DRIVER: facts, **seen.facts}, seen)
    if site.tracking_uri is None:
        yield together.judge_embedded(None, str(site.home / "mlflow"), len(seen.facts) + len(seen.lost))
    yield from judge_fit(experiments, seen.cluster)


def judge_together(machines: Mapping[str, Mapping[str, Any]], seen: "Seen") -> Iterator[Finding]:
    """Judge the driver and the nodes of a cluster against each other."""
    yield from together.judge_versions_agree(machines)
    yield from together.judge_gpus_agree(machines, seen.gpus)
    yield from together.judge_files_agree(machines)
    yield from together.judge_clocks(seen.skews)
    yield from together.judge_reduced(seen.reduced)
    modes = {where: facts["ray"].get("auth_mode", "") for where, facts in seen.facts.items()}
    yield from together.judge_tokens(modes, seen.dashboard, seen.dashboard_is_open)


def _nodes(seen: "Seen") -> str:
    return f"{len(seen.facts)} of {len(seen.facts) + len(seen.lost)} node(s) answer"


@contextmanager
def _left_file(home: Path) -> Iterator[tuple[Path, str] | None]:
    """Leave a file in the storage for the nodes to find; None where nothing can be left, which is told elsewhere."""
    content = secrets.token_bytes(64)
    path = home / f".doctor-{secrets.token_hex(4)}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError:
        yield None
        return
    try:
        yield path, sha256(content).hexdigest()
    finally:
        os.unlink(path)
