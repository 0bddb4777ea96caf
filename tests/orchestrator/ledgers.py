"""Suites that are recorded in a real MLflow server, though nothing was trained."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model.config import METRICS, TrainConfig
from model.settings import to_dict
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, Record, make_plan, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.runs import Tracking
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL

NUMBERS = {name: 100 / (place + 3) for place, name in enumerate(METRICS)}


def experiment(name: str, rows: Sequence[Row], suite: str = "any") -> Experiment:
    """An experiment file of these rows."""
    return Experiment(name=name, suite=suite, title=name, rows=tuple(rows), path=Path(f"{name}.yaml"))


def finished(**metrics: float) -> Record:
    """A run that is complete, with these metrics."""
    return Record(status="FINISHED", run_id="r", metrics=metrics)


def ledger_of(*scored: tuple[Row, list[Record | None]]) -> Ledger:
    """Return a ledger with a finished training for each evaluation, one record for each seed of each row."""
    trainings, evaluations = {}, {}
    for row, records in scored:
        for (_, train_key, evaluation_key), record in zip(row_keys(row), records, strict=True):
            if record is not None:
                trainings[train_key] = finished()
                evaluations[evaluation_key] = record
    return Ledger(trainings=trainings, evaluations=evaluations)


def suite_of(
    tracking: Tracking, experiments: Sequence[Experiment], storage: Path, home: Path = Path("nowhere")
) -> Suite:
    """Those tables as the suite that a test has for itself in MLflow, whose checkpoints lie in `storage`."""
    own = [replace(one, suite=tracking.suite) for one in experiments]
    suite = type("SuiteAt", (Suite,), {"storage": storage})(own, Site(home=home, tracking_uri=tracking.uri))
    assert isinstance(suite, Suite)
    return suite


def keep_checkpoint(
    storage: Path, key: str, epoch: int = 12, weights: str = "", config: TrainConfig | None = None
) -> Path:
    """What Ray Train leaves of a training: a checkpoint, and a note of which is the last."""
    folder = storage / key / f"epoch-{epoch:04d}"
    folder.mkdir(parents=True)
    content = (weights or key).encode()
    (folder / "model.safetensors").write_bytes(content)
    card = {
        "config": to_dict(config or TrainConfig()),
        "epoch": epoch,
        "step": epoch * 10,
        "category_ids": [1],
        "category_names": ["thing"],
        "data_fingerprint": "data",
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "config.json").write_text(json.dumps(card))
    with zipfile.ZipFile(folder / "resume.pt", "w") as archive:  # as torch.save writes
        archive.writestr("resume/data.pkl", bytes(1000))
    write_snapshot(folder.parent, folder.name)
    return folder


def write_snapshot(folder: Path, *names: str) -> None:
    """What Ray Train 2.60 notes of a training's checkpoints."""
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {"train/epoch": 1.0}} for name in names]
    content = {
        "ray_version": "2.60.0",
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": 6,
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(content))


def record(suite: Tracking, experiments: Sequence[Experiment], storage: Path) -> Plan:
    """Record all trainings and evaluations of the experiments as finished, and keep their checkpoints."""
    plan = make_plan(experiments, Ledger())
    for key, run in plan.trainings.items():
        run_id = tracking.begin_training(suite, run)
        tracking.finish_training(
            suite, run_id, keep_checkpoint(storage, key, config=run.config), storage / key / JOURNAL
        )
        for evaluation in plan.evaluations_on(key):
            detections = storage / key / "detections.parquet"
            detections.write_text(evaluation.key)
            tracking.record_evaluation(
                suite, evaluation, NUMBERS, detections=detections, train_run_id=run_id, data_fingerprint="val data"
            )
    return make_plan(experiments, tracking.read_ledger(suite))
