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
from orchestrator.figures.lab import Lab
from orchestrator.tracking.artifacts import upload
from orchestrator.tracking.detections import NAME, describe, write_stored
from orchestrator.tracking.ledger import finish_training, read_ledger, record_evaluation
from orchestrator.tracking.rest import retried
from orchestrator.tracking.runs import get_run, log_input, open_tracking, write
from orchestrator.tracking.training_log import End, Note, Scored, ScoringLog, write_event
from orchestrator.worker.task import TrainingTask

if TYPE_CHECKING:
    import torch

    from model.data.coco import CocoData
    from model.evaluation.scoring import Scores
    from model.network.retinanet import RetinaNetConf
    from orchestrator.figures.lab import Lab
if TYPE_CHECKING:
    from model.data.coco import CocoData
    from model.evaluation.scoring import Scores
    from model.network.checkpoint import Card

SCORED = "scored"
"""The folder, in a training's folder, of the shards that are scored and not yet recorded."""


def finish(task: TrainingTask, folder: Path) -> None:
    """Complete the record of a training from its last checkpoint."""
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
    """
    if not task.evaluations:
        return
    from model.data.coco import read_for_scoring
    from model.network.checkpoint import read_card, require_categories
    from model.network.retinanet import load_detector

    resources, data_config = task.train_run.resources, task.train_run.config.data
    splits = dict.fromkeys(evaluation.split for evaluation in task.evaluations)
    split_data = {split: read_for_scoring(task.data_root, data_config, split) for split in splits}
    for split, data in split_data.items():
        require_categories(folder, (data.category_ids, data.category_names), f"split {split}")
    detector = load_detector(folder).to(device)
    for split, data in split_data.items():
        evaluations = [evaluation for evaluation in task.evaluations if evaluation.split == split]
        settings = [evaluation.inference for evaluation in evaluations]
        scoring = Pass(
            detector=detector,
            weights_sha256=read_card(folder).weights_sha256,
            data=data,
            config=data_config,
            settings=settings,
            keep=task.folder / SCORED,
            num_loader_processes=resources.loader_processes,
        )
        log = ScoringLog(task.folder, split, len(settings))
        score_missing(scoring, team, log.tell if team.rank == 0 else lambda done, total: None)
        mine = evaluations[team.rank :: team.size]
        for evaluation, scores in zip(mine, scores_of(scoring, settings[team.rank :: team.size]), strict=True):
            _record(task, folder, team, data, evaluation, scores)
        team.wait()
        if team.rank == 0:
            write_event(task.folder, Scored(split=split, num_settings=len(settings)))
            _free(task, scoring)
    if team.rank == 0:
        show_candidates(task, detector, split_data.get(data_config.val_split, next(iter(split_data.values()))))


def _free(task: TrainingTask, scoring: Pass) -> None:
    """Delete the shards whose scores stand in MLflow; for want of it, they stay until `rnc gc`."""
    key, split = task.train_run.key, scoring.data.split
    with suppress(UserError):
        ledger = read_ledger(open_tracking(task.tracking_uri, task.train_run.suite))
        free(
            scoring,
            lambda one: why_evaluation_is_missing(ledger, key, evaluation_key(key, one, split)) is None,
        )


def _record(
    task: TrainingTask, folder: Path, team: Team, data: "CocoData", evaluation: Evaluation, scores: "Scores"
) -> None:
    from model.network.checkpoint import read_card

    with tempfile.TemporaryDirectory() as scratch:
        found = write_findings(Path(scratch), read_card(folder), data, scores, evaluation.label)

        def record() -> str:
            if team.rank == 0:
                finish(task, folder)  # again, should MLflow have lost it meanwhile
            return record_evaluation(
                open_tracking(task.tracking_uri, task.train_run.suite),
                evaluation,
                scores.metrics,
                detections=found.detections,
                matches=found.matches,
                misalignment=found.misalignment,
                statistics=found.statistics,
                train_run_id=task.hear_run(),
                data_fingerprint=data.fingerprint,
            )

        run_id = retried(record)
    with suppress(UserError):  # good to have, and the numbers stand
        log_input(task.tracking_uri, run_id, task.train_run.config.data.dataset, data, "evaluation")


def show_candidates(task: TrainingTask, detector: "RetinaNetConf", data: "CocoData") -> None:
    """Store what the misalignment lab shows of the training, unless that is there; a training does not fail of it."""
    from orchestrator.figures.lab import NUM_IMAGES, make_lab
    from orchestrator.figures.pictures import example_indices

    def make() -> "Lab":
        indices = example_indices(data, NUM_IMAGES)
        return make_lab(task.train_run.label, detector, data, indices, task.train_run.config.data)

    try:
        store_lab(task.tracking_uri, task.hear_run(), make)
    except Exception as error:  # good to have, and the numbers stand
        write_event(task.folder, Note(text=f"nothing for the misalignment lab: {error}"))


def store_lab(uri: str, run_id: str, make: Callable[[], Lab]) -> bool:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """The files that were written, and what they say."""

    detections: Path
    matches: Path
    misalignment: tuple[Path, ...]
    """What was counted before and after NMS, figures of it, and pictures of boxes on three images.

    They are the same images for every evaluation of the data.
    """
    statistics: Mapping[str, float | None]
    """By the names of model.evaluation.misalignment."""


def write_findings(folder: Path, card: "Card", data: "CocoData", scores: "Scores", label: str) -> Findings:
    """Write the files of an evaluation into an empty folder.

    Args:
        folder: to write to.
        card: of the checkpoint that was scored.
        data: the images.
        scores: of all of them, with what was counted.
        label: of the row, as figures name it.
    """
    from model.evaluation.coco_eval import match, write_matches
    from model.evaluation.misalignment import statistics, write_misalignment
    from orchestrator.figures.charts import proportions, save, score_against_iou
    from orchestrator.figures.pictures import write_examples

    assert scores.misalignment is not None
    found = statistics(data, scores.detections, scores.misalignment)
    about = describe(card, card.config.data, data, scores, found)
    write_stored(folder / NAME, scores.detections, about)
    write_matches(match(data, scores.detections), folder / names.MATCHES_FILE)
    counts = {label: scores.misalignment}
    files = write_misalignment(folder, scores.misalignment, to_dict(about))
    files += save(score_against_iou(counts), folder, "figure1", ("png",))
    files += save(proportions(counts), folder, "figure2", ("png",))
    files += write_examples(folder, data, scores, label)
    return Findings(
        detections=folder / NAME,
        matches=folder / names.MATCHES_FILE,
        misalignment=tuple(files),
        statistics=found,
    )
