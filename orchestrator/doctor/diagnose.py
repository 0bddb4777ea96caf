"""Runs all checks of `rnc doctor` on this machine and the cluster, before GPU time is spent."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.faults import DataError
from model.data.layout import find_layout
from orchestrator.cluster.capacity import Cluster, local_cluster, require_plan_fits
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.doctor import services, together
from orchestrator.doctor.finding import DRIVER, EVERYWHERE, Finding, Level, finding
from orchestrator.doctor.machine import Facts, Questions, examine, existing, judge_machine
from orchestrator.doctor.surroundings import judge_variables
from orchestrator.errors import Say, UserError
from orchestrator.experiment.cost.estimate import needed_while_training
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.experiment.prepare import look_ahead
from orchestrator.experiment.rows import Row
from orchestrator.homes import describe_home, last_home
from orchestrator.site import COCO_LAYOUT, Site
from orchestrator.tracking import server
from orchestrator.tracking.suite import site_of

if TYPE_CHECKING:
    from orchestrator.doctor.nodes import Seen

COCO_SPLITS = ("train2017", "val2017")
WEIGHTS = ("*.pth", "*.safetensors")
MOST_IMAGES = 10**9
"""All of a split: who asks the doctor has the minutes that COCO's take."""
MOST_WEIGHTS = 20
"""Files of a folder that are compared where no experiment says which are needed."""


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
    findings = [*needs.findings, *judge_machine(DRIVER, facts), *judge_variables(site, os.environ)]
    findings += judge_space(experiments, site.home)
    findings += [*judge_homes(experiments, site), *judge_use(experiments, site, say)]
    findings += _judge_tracking(site, facts["mlflow"], say)
    if site.ray_address is None:
        seen = "no cluster is named: a Ray of our own starts with the submit, for this machine and user alone"
        return [*findings, finding("ray", DRIVER, "ok", seen), *judge_fit(experiments, local_cluster())]
    return [*findings, *_judge_cluster(experiments, site, asked, facts, say)]


def _judge_tracking(site: Site, facts: Facts, say: Say) -> Iterator[Finding]:
    if site.tracking_uri is None:
        if site.ray_address is None:
            yield services.judge_embedded(server.running_server(site), str(site.home / "mlflow"), 1)
        return
    if "open" not in facts:  # the server is away, which is told already
        return
    yield services.judge_mlflow_key(site.tracking_uri, facts["open"])
    if "refused" not in facts:
        say("Writing a run to MLflow ...")
        yield services.judge_mlflow_written(site.tracking_uri, services.write_mlflow(site.tracking_uri))


def _judge_cluster(
    experiments: Sequence[Experiment], site: Site, asked: Questions, facts: Facts, say: Say
) -> Iterator[Finding]:
    set_ray_environment(is_local=False)  # before nodes.py imports ray, which reads it then
    from orchestrator.doctor.nodes import examine_cluster

    say(f"Joining {site.ray_address} ...")
    try:
        with _left_file(site.home) as left:
            seen = examine_cluster(site, replace(asked, left=left), say)
    except UserError as error:
        way_out = "start the cluster, correct RAY_ADDRESS, or give the token that it wants"
        yield finding("ray", DRIVER, "fail", str(error), way_out)
        return
    num_nodes = len(seen.facts) + len(seen.lost)
    yield finding("ray", DRIVER, "ok", f"{site.ray_address}: {len(seen.facts)} of {num_nodes} node(s) answer")
    yield from together.judge_lost(seen.lost, seen.left)
    for where, found in seen.facts.items():
        yield from judge_machine(where, found)
    yield from _judge_together({DRIVER: facts, **seen.facts}, seen)
    if site.tracking_uri is None:
        yield services.judge_embedded(None, str(site.home / "mlflow"), num_nodes)
    yield from judge_fit(experiments, seen.cluster)


def _judge_together(machines: Mapping[str, Facts], seen: "Seen") -> Iterator[Finding]:
    """Judge the driver and the nodes of a cluster against each other."""
    yield from together.judge_versions_agree(machines)
    yield from together.judge_gpus_agree(machines, seen.gpus)
    yield from together.judge_files_agree(machines)
    yield from together.judge_clocks(seen.skews)
    yield from together.judge_reduced(seen.reduced)
    modes = {where: facts["ray"]["auth_mode"] for where, facts in seen.facts.items()}
    yield from together.judge_tokens(modes, seen.dashboard, seen.dashboard_is_open)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """The data and weights to look for on every machine, and findings that need no look."""

    splits: tuple[tuple[Path, str], ...]
    weights: tuple[Path, ...]
    findings: tuple[Finding, ...]


def needs_of(experiments: Sequence[Experiment], site: Site) -> Needs:
    """Return what the experiments read, or, without any, all that the site names."""
    alone = [([*one.rows], site_of([one], site)) for one in experiments] or [([], site)]
    needs = list(dict.fromkeys(need for rows, here in alone for need in (*_data(rows, here), *_weights(rows, here))))
    return Needs(
        splits=tuple(need for need in needs if isinstance(need, tuple)),
        weights=tuple(need for need in needs if isinstance(need, Path)),
        findings=tuple(need for need in needs if isinstance(need, Finding)),
    )


def _data(rows: Sequence[Row], site: Site) -> Iterator[tuple[Path, str] | Finding]:
    on_outside = [row for row in rows if row.train.data.dataset != "shapes"]
    if len(on_outside) < len(rows) or not rows:
        shapes = site.data_root("shapes")
        if shapes.is_dir():
            yield from ((shapes, split) for split in ("train", "val"))
        else:
            yield finding("data", DRIVER, "ok", f"shapes are drawn to {shapes} by the first submit that needs them")
    if site.coco_root is not None:
        of_row = ((row.train.data.train_split, row.train.data.val_split, row.split) for row in on_outside)
        splits = [split for splits in of_row for split in splits] if rows else _splits_there(site.coco_root)
        yield from ((site.coco_root, split) for split in dict.fromkeys(splits))
    elif on_outside:
        named = ", ".join(dict.fromkeys(row.train.data.dataset for row in on_outside))
        seen = f"the experiments need {named}; no file has `data: {{root: ...}}`, and RNC_COCO_ROOT is not set"
        way_out = f"name the data set in one of them: a folder, of COCO with {COCO_LAYOUT}, or what `rnc data` knows"
        yield finding("data", DRIVER, "fail", seen, way_out)
    elif not rows:
        yield finding("data", DRIVER, "ok", "RNC_COCO_ROOT is not set: files have to name their data (data.root)")


def _splits_there(root: Path) -> Sequence[str]:
    """The splits of a data set that no experiment names; COCO's where it is COCO, or nothing at all."""
    try:
        found = [name for name, files in find_layout(root).splits.items() if files.share is None]
    except DataError:
        return COCO_SPLITS
    return COCO_SPLITS if not set(COCO_SPLITS).isdisjoint(found) else found


def _weights(rows: Sequence[Row], site: Site) -> Iterator[Path | Finding]:
    files = dict.fromkeys(row.train.model.weights for row in rows if row.train.model.weights is not None)
    if site.weights_root is not None and rows:
        yield from (site.weights_root / file for file in files)
    elif site.weights_root is not None:
        there = (path for kind in WEIGHTS for path in site.weights_root.glob(kind))
        yield from sorted(there)[:MOST_WEIGHTS]
    elif not rows:
        yield finding("weights", DRIVER, "ok", "RNC_WEIGHTS is not set: trainings start from random weights")
    else:
        for file in files:
            seen = (
                f"the experiments start from {file}; no file has `data: {{weights: ...}}`, and RNC_WEIGHTS is not set"
            )
            yield finding("weights", DRIVER, "fail", seen, f"name a folder that holds {file} in one of them")


def judge_homes(experiments: Sequence[Experiment], site: Site) -> Iterator[Finding]:
    """Judge whether results of the experiments lie in another RNC_HOME, where a submit would have to go on."""
    for suite, folder in dict.fromkeys((one.suite, one.path.parent) for one in experiments):
        seen = describe_home(suite, folder, site.home)
        is_other = last_home(suite, folder) not in (None, site.home)
        way_out = "set RNC_HOME to the folder of the last submit, or submit here to begin anew"
        yield finding("RNC_HOME", DRIVER, "warn" if is_other else "ok", seen, way_out)


def judge_use(experiments: Sequence[Experiment], site: Site, say: Say) -> Iterator[Finding]:
    """Judge whether trainings of the experiments can learn, by the same checks of data as a submit's."""
    for suite, plan in _plans(experiments).items():
        seen: list[str] = []
        here = site_of(plan.experiments, site)
        if any(run.config.data.dataset != "shapes" for run in plan.trainings.values()) and here.coco_root is not None:
            say(f"Reading {here.coco_root} ...")
        # What is not here is judged by the nodes, one by one.
        stops = look_ahead(plan, Ledger(), here, seen.append, is_here=False, most_images=MOST_IMAGES)
        yield from (finding(f"data of {suite}", DRIVER, "ok", text) for text in seen)
        way_out = "as it says; `rnc data` shows a data set as it is"
        yield from (finding(f"data of {suite}", DRIVER, "fail", text, way_out) for text in stops)


def judge_fit(experiments: Sequence[Experiment], cluster: Cluster) -> Iterator[Finding]:
    """Judge whether every training of the experiments fits into the cluster, when nothing else runs there."""
    for suite, plan in _plans(experiments).items():
        check = f"resources of {suite}"
        try:
            require_plan_fits(plan, cluster)
        except UserError as error:
            way_out = "lower resources in the experiment files, or add nodes"
            yield finding(check, EVERYWHERE, "fail", str(error), way_out)
        else:
            has = ", ".join(f"{cluster.total(name):g} {name}" for name in ("CPU", "GPU"))
            yield finding(check, EVERYWHERE, "ok", f"every training fits into {has}")


def judge_space(experiments: Sequence[Experiment], home: Path, free: int | None = None) -> Iterator[Finding]:
    """Judge whether the storage has room for the checkpoints of all trainings of the experiments."""
    trainings = {key: run.config for plan in _plans(experiments).values() for key, run in plan.trainings.items()}
    if not trainings:
        return
    free = shutil.disk_usage(existing(home)).free if free is None else free
    needed = needed_while_training(trainings.values())
    level: Level = "fail" if free < needed else "ok"
    seen = f"{needed / 1e9:.1f} GB needed at most for {len(trainings)} trainings, {free / 1e9:.1f} GB free"
    way_out = "free some, submit fewer rows, or set RNC_HOME to another disk"
    yield finding("room for checkpoints", DRIVER, level, seen, way_out)


def _plans(experiments: Sequence[Experiment]) -> dict[str, Plan]:
    """The plan of each suite against an empty ledger, as if nothing of it were done."""
    suites = dict.fromkeys(experiment.suite for experiment in experiments)
    return {suite: make_plan([one for one in experiments if one.suite == suite], Ledger()) for suite in suites}
