"""`rnc doctor`: finds, before GPU time is spent, what would stop a training or spoil its numbers."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.capacity import Cluster, local_cluster, require_plan_fits
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.doctor import together
from orchestrator.doctor.machine import EVERYWHERE, Finding, Level, judge_machine
from orchestrator.doctor.probes import Questions, examine
from orchestrator.doctor.services import write_mlflow
from orchestrator.errors import UserError
from orchestrator.experiment.estimate import needed_while_training
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, make_plan
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


COCO_SPLITS = ("train2017", "val2017")
WEIGHTS = ("*.pth", "*.safetensors")
MOST_WEIGHTS = 20
"""Files of a folder that are compared where no experiment says which are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What is to be looked for on every machine, and what was wrong before looking."""

    splits: tuple[tuple[Path, str], ...]
    weights: tuple[Path, ...]
    findings: tuple[Finding, ...]


def needs_of(experiments: Sequence[Experiment], site: Site) -> Needs:
    """What the experiments read, or, without any, all that the site names."""
    if not experiments:
        return _whole_site(site)
    splits: dict[tuple[Path, str], None] = {}
    weights: dict[Path, None] = {}
    findings: dict[Finding, None] = {}
    for row in (row for experiment in experiments for row in experiment.rows):
        data, file = row.train.data, row.train.model.weights
        if data.dataset == "shapes":
            splits |= dict.fromkeys(_drawn(site))
            findings |= dict.fromkeys(_shapes(site))
        elif site.coco_root is None:
            seen = "the experiments need COCO, and RNC_COCO_ROOT is not set"
            findings[_missing("data", seen, "set RNC_COCO_ROOT to a folder with train2017/ val2017/ annotations/")] = (
                None
            )
        else:
            splits |= dict.fromkeys((site.coco_root, split) for split in (data.train_split, data.val_split, row.split))
        if file is not None and site.weights_root is None:
            seen = f"the experiments start from {file}, and RNC_WEIGHTS is not set"
            findings[_missing("weights", seen, f"set RNC_WEIGHTS to a folder that holds {file}")] = None
        elif file is not None and site.weights_root is not None:
            weights[site.weights_root / file] = None
    return Needs(splits=tuple(splits), weights=tuple(weights), findings=tuple(findings))


def _whole_site(site: Site) -> Needs:
    splits = [(site.coco_root, split) for split in COCO_SPLITS] if site.coco_root else []
    files = sorted(path for kind in WEIGHTS for path in site.weights_root.glob(kind)) if site.weights_root else []
    findings = list(_shapes(site))
    if site.coco_root is None:
        findings.append(_told("data", "RNC_COCO_ROOT is not set: COCO cannot be used"))
    if site.weights_root is None:
        findings.append(_told("weights", "RNC_WEIGHTS is not set: trainings start from random weights"))
    return Needs(splits=(*splits, *_drawn(site)), weights=tuple(files[:MOST_WEIGHTS]), findings=tuple(findings))


def _drawn(site: Site) -> list[tuple[Path, str]]:
    root = site.data_root("shapes")
    return [(root, split) for split in ("train", "val")] if root.is_dir() else []


def _shapes(site: Site) -> Iterator[Finding]:
    root = site.data_root("shapes")
    if not root.is_dir():
        yield _told("data", f"shapes are drawn to {root} by the first submit that needs them")


def _told(check: str, seen: str) -> Finding:
    return Finding(check=check, where="driver", level="ok", seen=seen)


def _missing(check: str, seen: str, way_out: str) -> Finding:
    return Finding(check=check, where="driver", level="fail", seen=seen, way_out=way_out)


def judge_fit(experiments: Sequence[Experiment], cluster: Cluster) -> Iterator[Finding]:
    """Every training of the experiments finds room at some time."""
    for suite, group in _by_suite(experiments).items():
        check = f"resources of {suite}"
        try:
            require_plan_fits(make_plan(group, Ledger()), cluster)
        except UserError as error:
            way_out = "lower resources in the experiment files, or add nodes"
            yield Finding(check=check, where=EVERYWHERE, level="fail", seen=str(error), way_out=way_out)
        else:
            has = ", ".join(f"{cluster.total(name):g} {name}" for name in ("CPU", "GPU"))
            yield Finding(check=check, where=EVERYWHERE, level="ok", seen=f"every training fits into {has}")


def judge_space(experiments: Sequence[Experiment], home: Path, free: int | None = None) -> Iterator[Finding]:
    """The storage has room for the checkpoints of all trainings of the experiments."""
    trainings = {
        key: run.config
        for group in _by_suite(experiments).values()
        for key, run in make_plan(group, Ledger()).trainings.items()
    }
    if not trainings:
        return
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free if free is None else free
    needed = needed_while_training(trainings.values())
    seen = f"{needed / 1e9:.1f} GB needed at most for {len(trainings)} trainings, {free / 1e9:.1f} GB free"
    way_out = "free some, submit fewer rows, or set RNC_HOME to another disk"
    level: Level = "fail" if free < needed else "ok"
    yield Finding(
        check="room for checkpoints", where="driver", level=level, seen=seen, way_out=way_out if level == "fail" else ""
    )


def _by_suite(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    suites = dict.fromkeys(experiment.suite for experiment in experiments)
    return {suite: [one for one in experiments if one.suite == suite] for suite in suites}
