"""One worker of a training under Ray Train: it trains, records and scores."""

import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.util.placement_group import get_current_placement_group

from orchestrator import tracking
from orchestrator.artifacts import download
from orchestrator.errors import UserError
from orchestrator.inputs import log_input
from orchestrator.keys import evaluation_key
from orchestrator.patience import PATIENCE_SECONDS, given_up, patiently
from orchestrator.plan import Evaluation, why_evaluation_is_missing
from orchestrator.recorder import Recorder
from orchestrator.runs import metrics_target
from orchestrator.scored import Pass, Team, free, score_missing, scores_of
from orchestrator.showcase import Showcase
from orchestrator.suite import open_suite
from orchestrator.training_log import ScoringLog, note, note_epoch, note_start
from orchestrator.work import Work, epochs_done

if TYPE_CHECKING:
    import torch

    from model.data import CocoData
    from model.detector import RetinaNetConf
    from model.scoring import Scores
    from model.training import Progress
    from orchestrator.lab import Lab

SCORED = "scored"
"""The folder, in a training's folder, of the shards that are scored and not yet recorded."""
SHOW_SECONDS = 20.0
"""How long the end of a training waits for the last example detections."""


def run(settings: dict[str, Any]) -> None:
    """Train and score, as one of the workers; the same calls on each of them.

    What one of them raises ends all of them, wherever they wait for it.
    """
    import torch

    work: Work = settings["work"]
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        group = get_current_placement_group()
        assert group is not None
        (work.folder / "placement_group").write_text(group.id.hex())
        done = _epochs_done(ray.train.get_checkpoint())
        note_start(work.folder, context.get_world_size(), done, work.num_epochs)
    torch.set_num_threads(max(1, int(work.train_run.resources.cpus_per_worker)))
    try:
        if not work.is_trained and _epochs_done(ray.train.get_checkpoint()) < work.num_epochs:
            _train(work, settings["picked_up"])
            if work.judged_by is not None and context.get_world_rank() == 0:
                _await_judgement(work)
        with _checkpoint(work) as folder:
            if context.get_world_rank() == 0:
                patiently(lambda: _finish(work, folder))
            _score(work, folder)
    except Exception:
        work.error_log(context.get_world_rank()).write_text(traceback.format_exc())  # Ray cuts it
        raise


def _train(work: Work, picked_up: float) -> None:
    from model.training import train

    starting = True
    resources = work.train_run.resources
    checkpoint = ray.train.get_checkpoint()
    rank = ray.train.get_context().get_world_rank()
    with (
        tempfile.TemporaryDirectory() as scratch,
        _recorder(work, rank) as recorder,
        _showcase(work, rank) as showcase,
    ):
        latest: dict[str, float] = {}

        def report(progress: "Progress") -> None:
            nonlocal starting
            metrics = progress.metrics | {"train/epoch": progress.epoch}
            latest.update(metrics)
            if starting:
                metrics["perf/startup_s"] = time.time() - picked_up
                starting = False
            if recorder is not None and showcase is not None:
                recorder.log(metrics | showcase.look(progress), progress.step)
            if progress.end_of_epoch:
                if recorder is not None:
                    note_epoch(work.folder, progress.epoch, work.num_epochs, latest)
                _report(metrics, progress)

        resume = Path(scratch) / "resume"
        if checkpoint is not None:
            checkpoint.to_directory(str(resume))
        train(
            work.train_run.config,
            data_root=work.data_root,
            weights_file=work.weights_file,
            folder=Path(scratch),
            local_batch=resources.local_batch,
            num_loader_processes=resources.loader_processes,
            resume=resume if checkpoint is not None else None,
            report=report,
            device=_device(work),
        )


def _await_judgement(work: Work) -> None:
    """Finish nothing that was stopped: the last checkpoint stands once all epochs before it were judged."""
    while epochs_done(work.folder) < work.num_epochs:
        time.sleep(0.1)


def _report(metrics: dict[str, float], progress: "Progress") -> None:
    """Hand the epoch's checkpoint to Ray Train, which keeps it on the storage; every worker does so together."""
    checkpoint = None if progress.checkpoint is None else ray.train.Checkpoint.from_directory(str(progress.checkpoint))
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        checkpoint_dir_name=f"epoch-{round(progress.epoch):04d}",
        delete_local_checkpoint_after_upload=checkpoint is not None,
    )


@contextmanager
def _recorder(work: Work, rank: int) -> Iterator[Recorder | None]:
    if rank != 0:
        yield None
        return
    work.hear_run()  # a training that has no run fails before it starts
    recorder = Recorder(lambda: metrics_target(work.tracking_uri, work.hear_run()), work.journal)
    try:
        yield recorder
    except BaseException:
        recorder.close(5.0)
        raise
    if num_missing := recorder.close(PATIENCE_SECONDS):
        raise UserError(given_up(PATIENCE_SECONDS, f"{num_missing} metrics wait in {work.journal}"))


@contextmanager
def _showcase(work: Work, rank: int) -> Iterator[Showcase | None]:
    if rank != 0:
        yield None
        return
    from model.data import read_for_training

    data = work.train_run.config.data
    read = partial(read_for_training, work.data_root, data)
    showcase = Showcase(work.tracking_uri, work.hear_run(), data, read, _device(work))
    try:
        yield showcase
    except BaseException:
        showcase.close(1.0)
        raise
    showcase.close(SHOW_SECONDS)


@contextmanager
def _checkpoint(work: Work) -> Iterator[Path]:
    """The last checkpoint, from Ray's storage, or from MLflow where the storage was freed."""
    checkpoint = _reported_by_first()
    if checkpoint is not None and _epochs_done(checkpoint) == work.num_epochs:
        with checkpoint.as_directory() as folder:
            yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("model.safetensors", "config.json"):
            path = f"checkpoint/{name}"
            patiently(partial(download, work.tracking_uri, work.hear_run(), path, Path(scratch)))
        yield Path(scratch)


def _reported_by_first() -> ray.train.Checkpoint | None:
    """The last checkpoint; the workers that report none with an epoch do not know the one of the first worker."""
    checkpoint: ray.train.Checkpoint | None = ray.train.get_checkpoint()
    if ray.train.get_context().get_world_size() == 1:
        return checkpoint
    path: str = broadcast_from_rank_zero(checkpoint.path if checkpoint is not None else "")
    return ray.train.Checkpoint(path) if path else None


def _finish(work: Work, folder: Path) -> None:
    suite = open_suite(work.tracking_uri, work.train_run.suite)
    if tracking.finish_training(suite, work.hear_run(), folder, work.journal):
        note(work.folder, "finished; its checkpoint is recorded")


def _score(work: Work, folder: Path) -> None:
    """Score the last checkpoint under every missing setting, in one pass over each split.

    Shards and then evaluations are shared out over the workers; what an earlier try scored stands.
    """
    if not work.evaluations:
        return
    from model.checkpoint import read_card, require_categories
    from model.data import read_for_scoring
    from model.scoring import load_detector

    resources, data_config = work.train_run.resources, work.train_run.config.data
    splits = dict.fromkeys(evaluation.split for evaluation in work.evaluations)
    split_data = {split: read_for_scoring(work.data_root, data_config, split) for split in splits}
    for split, data in split_data.items():
        require_categories(folder, (data.category_ids, data.category_names), f"split {split}")
    detector, team = load_detector(folder).to(_device(work)), _team()
    for split, data in split_data.items():
        evaluations = [evaluation for evaluation in work.evaluations if evaluation.split == split]
        settings = [evaluation.inference for evaluation in evaluations]
        scoring = Pass(
            detector=detector,
            weights_sha256=read_card(folder).weights_sha256,
            data=data,
            config=data_config,
            settings=settings,
            keep=work.folder / SCORED,
            num_loader_processes=resources.loader_processes,
        )
        log = ScoringLog(work.folder, split, len(settings))
        score_missing(scoring, team, log.tell if team.rank == 0 else lambda done, total: None)
        mine = evaluations[team.rank :: team.size]
        for evaluation, scores in zip(mine, scores_of(scoring, settings[team.rank :: team.size]), strict=True):
            _record(work, folder, data, evaluation, scores)
        team.wait()
        if team.rank == 0:
            note(work.folder, f"scored under {len(settings)} settings on {split}")
            _free(work, scoring)
    if team.rank == 0:
        _show_candidates(work, detector, split_data.get(data_config.val_split, next(iter(split_data.values()))))


def _team() -> Team:
    """All workers, who meet here and there while they score."""
    context = ray.train.get_context()
    if context.get_world_size() == 1:
        return Team()
    return Team(
        rank=context.get_world_rank(), size=context.get_world_size(), agree=broadcast_from_rank_zero, wait=barrier
    )


def _free(work: Work, scoring: Pass) -> None:
    """Delete the shards whose scores stand in MLflow; for want of it, they stay until `rnc gc`."""
    key, split = work.train_run.key, scoring.data.split
    with suppress(UserError):
        ledger = tracking.read_ledger(open_suite(work.tracking_uri, work.train_run.suite))
        free(
            scoring,
            lambda one: why_evaluation_is_missing(ledger, key, evaluation_key(key, one, split)) is None,
        )


def _record(work: Work, folder: Path, data: "CocoData", evaluation: Evaluation, scores: "Scores") -> None:
    from model.checkpoint import read_card
    from orchestrator.findings import write_findings

    with tempfile.TemporaryDirectory() as scratch:
        found = write_findings(Path(scratch), read_card(folder), data, scores, evaluation.label)

        def record() -> str:
            if ray.train.get_context().get_world_rank() == 0:
                _finish(work, folder)  # again, should MLflow have lost it meanwhile
            return tracking.record_evaluation(
                open_suite(work.tracking_uri, work.train_run.suite),
                evaluation,
                scores.metrics,
                detections=found.detections,
                matches=found.matches,
                misalignment=found.misalignment,
                statistics=found.statistics,
                train_run_id=work.hear_run(),
                data_fingerprint=data.fingerprint,
            )

        run_id = patiently(record)
    with suppress(UserError):  # good to have, and the numbers stand
        log_input(work.tracking_uri, run_id, work.train_run.config.data.dataset, data, "evaluation")


def _show_candidates(work: Work, detector: "RetinaNetConf", data: "CocoData") -> None:
    """Store what the misalignment lab shows of the training, unless that is there; a training does not fail of it."""
    from orchestrator.examples import example_indices
    from orchestrator.lab import NUM_IMAGES, make_lab
    from orchestrator.lab_files import store_lab

    def make() -> "Lab":
        indices = example_indices(data, NUM_IMAGES)
        return make_lab(work.train_run.label, detector, data, indices, work.train_run.config.data)

    try:
        store_lab(work.tracking_uri, work.hear_run(), make)
    except Exception as error:  # good to have, and the numbers stand
        note(work.folder, f"nothing for the misalignment lab: {error}")


def _device(work: Work) -> "torch.device":
    import torch

    if not work.train_run.resources.gpus_per_worker:
        return torch.device("cpu")
    from ray.train.torch import get_device

    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device


def _epochs_done(checkpoint: ray.train.Checkpoint | None) -> int:
    return int(checkpoint.path.rpartition("-")[2]) if checkpoint else 0
