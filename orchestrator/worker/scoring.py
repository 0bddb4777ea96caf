"""What follows a training on its workers: its record is completed, and its checkpoint scored for every table."""

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.cache import file_sha256
from model.evaluation.shards import Pass, Team, free, score_missing, scores_of
from model.settings import to_dict
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Evaluation, evaluation_key, why_evaluation_is_missing
from orchestrator.tracking.artifacts import upload
from orchestrator.tracking.evaluations.classes import ClassRecord, record_of
from orchestrator.tracking.evaluations.detections import describe, write_stored
from orchestrator.tracking.ledger import finish_training, read_ledger, record_evaluation
from orchestrator.tracking.rest import retried
from orchestrator.tracking.runs import get_run, log_input, open_tracking, write
from orchestrator.worker.task import TrainingTask
from orchestrator.worker.training_log import End, Note, Scored, ScoringLog, write_event

if TYPE_CHECKING:
    import torch

    from model.config import InferenceConfig
    from model.data.split import CocoData
    from model.evaluation.scoring import Scores
    from model.network.checkpoint import Card
    from model.network.retinanet import RetinaNetConf
    from orchestrator.figures.lab import Lab

SCORED = "scored"
"""The folder, in a training's folder, of the shards that are scored and not yet recorded."""
LAB_SECONDS = 300.0
"""How long the misalignment lab waits for MLflow; RETRY_SECONDS may follow, and other workers wait for 30 minutes."""


def finish(task: TrainingTask, folder: Path) -> None:
    """Complete the record of a training from its last checkpoint, unless it is complete.

    Raises:
        UserError: MLflow does not take it.
    """
    suite = open_tracking(task.tracking_uri, task.train_run.suite)
    if finish_training(suite, task.hear_run(), folder, task.journal):
        write_event(task.folder, End(state="finished", reason="finished; its checkpoint is recorded"))


def score(task: TrainingTask, folder: Path, team: Team, device: "torch.device") -> None:
    """Score the last checkpoint under every missing setting, in one pass over each split, and record what it gives.

    Shards and then evaluations are shared out over the workers; what an earlier try scored stands.

    Args:
        task: the training, and its missing evaluations.
        folder: of the checkpoint.
        team: the workers, all of which call this.
        device: of this one.

    Raises:
        DataError: a split cannot be read.
        UserError: MLflow refuses a record, or did not answer for a long time.
    """
    if not task.evaluations:
        return
    from model.data.coco import read_for_scoring
    from model.network.checkpoint import require_categories
    from model.network.retinanet import load_detector

    config = task.train_run.config.data
    data = {}
    for split in dict.fromkeys(evaluation.split for evaluation in task.evaluations):
        data[split] = read_for_scoring(task.data_root, config, split)
        # All splits before the first is scored, which may take hours.
        require_categories(folder, (data[split].category_ids, data[split].category_names), f"split {split}")
    detector = load_detector(folder).to(device)
    if team.rank == 0:
        # First: whoever is killed before it stands leaves evaluations missing, and a later submit comes by again.
        # The split of the training's own validation, so that trainings of different tables can be compared.
        record_lab(task, detector, data.get(config.val_split, next(iter(data.values()))))
    for split in data:
        _score_split(task, folder, detector, data[split], team)


def _score_split(task: TrainingTask, folder: Path, detector: "RetinaNetConf", data: "CocoData", team: Team) -> None:
    from model.network.checkpoint import read_card

    evaluations = [evaluation for evaluation in task.evaluations if evaluation.split == data.split]
    scoring = Pass(
        detector=detector,
        weights_sha256=read_card(folder).weights_sha256,
        data=data,
        config=task.train_run.config.data,
        settings=[evaluation.inference for evaluation in evaluations],
        keep=task.folder / SCORED,
        num_loader_processes=task.train_run.resources.loader_processes or 0,
    )
    if team.rank == 0:  # its progress counts the images of all workers
        score_missing(scoring, team, ScoringLog(task.folder, data.split, len(evaluations)).tell)
    else:
        score_missing(scoring, team)
    # Each worker puts its evaluations together one at a time, so that memory holds one setting and not all.
    mine = evaluations[team.rank :: team.size]
    for evaluation, scores in zip(mine, scores_of(scoring, [one.inference for one in mine]), strict=True):
        _record(task, folder, team, data, evaluation, scores)
    team.wait()  # shards are deleted only once every worker has recorded what it made of them
    if team.rank == 0:
        write_event(task.folder, Scored(split=data.split, num_settings=len(evaluations)))
        _free_shards(task, scoring)


def _free_shards(task: TrainingTask, scoring: Pass) -> None:
    """Delete the shards whose scores stand in MLflow; where it is away, they stay until `rnc gc`."""
    key, split = task.train_run.key, scoring.data.split
    with suppress(UserError):
        ledger = read_ledger(open_tracking(task.tracking_uri, task.train_run.suite), key)

        def is_recorded(inference: "InferenceConfig") -> bool:
            return why_evaluation_is_missing(ledger, key, evaluation_key(key, inference, split)) is None

        free(scoring, is_recorded)


def _record(
    task: TrainingTask, folder: Path, team: Team, data: "CocoData", evaluation: Evaluation, scores: "Scores"
) -> None:
    """Write the files of an evaluation, and record it in MLflow, which may take a while to answer."""
    from model.network.checkpoint import read_card

    with tempfile.TemporaryDirectory() as scratch:
        files = write_evaluation_files(Path(scratch), read_card(folder), data, scores, evaluation.label)

        def record() -> str:
            if team.rank == 0:
                finish(task, folder)  # again: MLflow may have lost the training since
            return record_evaluation(
                open_tracking(task.tracking_uri, task.train_run.suite),
                evaluation,
                scores.metrics,
                detections=files.detections,
                matches=files.matches,
                misalignment=files.misalignment,
                statistics=files.statistics,
                calibration=scores.calibration,
                classes=files.classes,
                train_run_id=task.hear_run(),
                data_fingerprint=data.fingerprint,
                data_root=str(data.root),
            )

        run_id = retried(record)
    with suppress(UserError):  # good to have, and the numbers stand
        log_input(task.tracking_uri, run_id, task.train_run.config.data.dataset, data, "evaluation")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationFiles:
    """The files that an evaluation stores, and the numbers that they hold."""

    detections: Path
    matches: Path
    misalignment: tuple[Path, ...]
    """What was counted before and after NMS, figures of it, and pictures of boxes on three images.

    They are the same images for every evaluation of the data.
    """
    statistics: Mapping[str, float | None]
    """By the names of model.evaluation.misalignment."""
    classes: ClassRecord


def write_evaluation_files(
    folder: Path, card: "Card", data: "CocoData", scores: "Scores", label: str
) -> EvaluationFiles:
    """Write the files of an evaluation into an empty folder.

    Args:
        folder: to write to.
        card: of the checkpoint that was scored.
        data: the images.
        scores: of all of them, with what was counted.
        label: of the row, as figures name it.
    """
    from model.evaluation.calibration.errors import reliability
    from model.evaluation.calibration.outcomes import outcomes
    from model.evaluation.coco.matches import match, write_matches
    from model.evaluation.misalignment import statistics, write_misalignment
    from orchestrator.figures.charts import proportions, reliability_diagrams, save, score_against_iou
    from orchestrator.figures.pictures import write_examples

    assert scores.misalignment is not None
    numbers = statistics(data, scores.detections, scores.misalignment)
    about = describe(card, card.config.data, data, scores, numbers)
    write_stored(folder / names.DETECTIONS_FILE, scores.detections, about)
    matches = match(data, scores.detections)
    write_matches(matches, folder / names.MATCHES_FILE)
    counts = {label: scores.misalignment}
    misalignment = write_misalignment(folder, scores.misalignment, to_dict(about))
    bins = {label: reliability(outcomes(data, scores.detections))}
    misalignment += save(reliability_diagrams(bins, {label: scores.calibration}), folder, "reliability", ("png",))
    misalignment += save(score_against_iou(counts), folder, "figure1", ("png",))
    misalignment += save(proportions(counts), folder, "figure2", ("png",))
    misalignment += write_examples(folder, data, scores, label)
    return EvaluationFiles(
        detections=folder / names.DETECTIONS_FILE,
        matches=folder / names.MATCHES_FILE,
        misalignment=tuple(misalignment),
        statistics=numbers,
        classes=record_of(matches, folder, label),
    )


def record_lab(task: TrainingTask, detector: "RetinaNetConf", data: "CocoData") -> None:
    """Store what the misalignment lab shows of the training, unless that is there; a training does not fail of it."""
    from orchestrator.figures.lab import NUM_IMAGES, make_lab
    from orchestrator.figures.pictures import example_indices

    def make() -> "Lab":
        indices = example_indices(data, NUM_IMAGES)
        return make_lab(task.train_run.label, detector, data, indices, task.train_run.config.data)

    try:
        retried(lambda: store_lab(task.tracking_uri, task.hear_run(), make), LAB_SECONDS)
    except Exception as error:  # good to have, and the numbers stand
        write_event(task.folder, Note(text=f"nothing for the misalignment lab: {error}"))


def store_lab(uri: str, run_id: str, make: Callable[[], "Lab"]) -> bool:
    """Make the lab of a training and store it with its run, unless that has one; says whether it did.

    Raises:
        UserError: the server does not take it.
    """
    if names.LAB_SHA256 in get_run(uri, run_id).tags:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / names.LAB_FILE
        file.write_text(json.dumps(make(), separators=(",", ":")), encoding="utf-8")
        upload(uri, run_id, [file], names.LAB)
        write(uri, run_id, tags={names.LAB_SHA256: file_sha256(file)})
    return True
