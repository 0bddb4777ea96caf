"""What experiments need of a site, and whether it is there, without drawing, starting or reading anything large."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.capacity import Cluster, require_plan_fits
from orchestrator.doctor.doctor_finding import EVERYWHERE, Finding, Level
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.sizes import needed_while_training
from orchestrator.site import Site

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
