"""One worker of a training under Ray Train: it trains, records and scores."""

import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.util.placement_group import get_current_placement_group

from model.evaluation.shards import Team
from orchestrator.errors import UserError
from orchestrator.tracking.artifacts import download
from orchestrator.tracking.recorder import Recorder
from orchestrator.tracking.rest import RETRY_SECONDS, given_up, retried
from orchestrator.tracking.runs import metrics_target
from orchestrator.tracking.training_log import Again, log_epoch, log_start, write_event
from orchestrator.worker.gauges import Updates
from orchestrator.worker.scoring import finish, score
from orchestrator.worker.showcase import Showcase
from orchestrator.worker.task import TrainingTask, epochs_done

if TYPE_CHECKING:
    import torch

    from model.training.loop import Progress

SHOW_SECONDS = 20.0
"""How long the end of a training waits for the last example detections."""


def run(settings: dict[str, Any]) -> None:
    """Train and score, as one of the workers; the same calls on each of them.

    What one of them raises ends all of them, wherever they wait for it.
    """
    import torch

    task: TrainingTask = settings["task"]
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        group = get_current_placement_group()
        assert group is not None
        (task.folder / "placement_group").write_text(group.id.hex())
        done = _epochs_done(ray.train.get_checkpoint())
        log_start(task.folder, context.get_world_size(), done, task.num_epochs)
    torch.set_num_threads(max(1, int(task.train_run.resources.cpus_per_worker)))
    try:
        if not task.is_trained and _epochs_done(ray.train.get_checkpoint()) < task.num_epochs:
            _train(task, settings["picked_up"])
            if task.judged_by is not None and context.get_world_rank() == 0:
                _await_judgement(task)
        with _checkpoint(task) as folder:
            if context.get_world_rank() == 0:
                retried(lambda: finish(task, folder))
            score(task, folder, _team(), _device(task))
    except Exception:
        task.error_log(context.get_world_rank()).write_text(traceback.format_exc())  # Ray cuts it
        raise


def _train(task: TrainingTask, picked_up: float) -> None:
    from model.training.loop import train

    updates: Updates | None = None
    resources = task.train_run.resources
    checkpoint = ray.train.get_checkpoint()
    rank = ray.train.get_context().get_world_rank()
    with (
        tempfile.TemporaryDirectory() as scratch,
        _recorder(task, rank) as recorder,
        _showcase(task, rank) as showcase,
    ):
        latest: dict[str, float] = {}

        def report(progress: "Progress") -> None:
            nonlocal updates
            metrics = progress.metrics | {"train/epoch": progress.epoch}
            latest.update(metrics)
            if updates is None:
                metrics["perf/startup_s"] = time.time() - picked_up
                updates = _count_updates(
                    task, recorder, _epochs_done(checkpoint) * progress.num_steps // task.num_epochs
                )
            if recorder is not None and showcase is not None:
                updates.reach(progress.step)
                recorder.log(metrics | showcase.look(progress), progress.step)
            if progress.end_of_epoch:
                if recorder is not None:
                    log_epoch(task.folder, progress.epoch, task.num_epochs, latest)
                _report(metrics, progress)

        resume = Path(scratch) / "resume"
        if checkpoint is not None:
            checkpoint.to_directory(str(resume))
        train(
            task.train_run.config,
            data_root=task.data_root,
            weights_file=task.weights_file,
            folder=Path(scratch),
            local_batch=resources.local_batch,
            num_loader_processes=resources.loader_processes,
            resume=resume if checkpoint is not None else None,
            report=report,
            device=_device(task),
        )


def _count_updates(task: TrainingTask, recorder: Recorder | None, done: int) -> Updates:
    """Count from the last checkpoint, and say what had been done since then."""
    if recorder is not None and recorder.last_step > done:
        num_images = (recorder.last_step - done) * task.train_run.config.global_batch
        write_event(task.folder, Again(num_images=num_images))
    return Updates(task.train_run.suite, task.train_run.key, done)


def _await_judgement(task: TrainingTask) -> None:
    """Finish nothing that was stopped: the last checkpoint stands once all epochs before it were judged."""
    while epochs_done(task.folder) < task.num_epochs:
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
def _recorder(task: TrainingTask, rank: int) -> Iterator[Recorder | None]:
    if rank != 0:
        yield None
        return
    task.hear_run()  # a training that has no run fails before it starts
    recorder = Recorder(lambda: metrics_target(task.tracking_uri, task.hear_run()), task.journal)
    try:
        yield recorder
    except BaseException:
        recorder.close(5.0)
        raise
    if num_missing := recorder.close(RETRY_SECONDS):
        raise UserError(given_up(RETRY_SECONDS, f"{num_missing} metrics wait in {task.journal}"))


@contextmanager
def _showcase(task: TrainingTask, rank: int) -> Iterator[Showcase | None]:
    if rank != 0:
        yield None
        return
    from model.data.coco import read_for_training

    data = task.train_run.config.data
    read = partial(read_for_training, task.data_root, data)
    showcase = Showcase(task.tracking_uri, task.hear_run(), data, read, _device(task))
    try:
        yield showcase
    except BaseException:
        showcase.close(1.0)
        raise
    showcase.close(SHOW_SECONDS)


@contextmanager
def _checkpoint(task: TrainingTask) -> Iterator[Path]:
    """The last checkpoint, from Ray's storage, or from MLflow where the storage was freed."""
    checkpoint = _reported_by_first()
    if checkpoint is not None and _epochs_done(checkpoint) == task.num_epochs:
        with checkpoint.as_directory() as folder:
            yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("model.safetensors", "config.json"):
            path = f"checkpoint/{name}"
            retried(partial(download, task.tracking_uri, task.hear_run(), path, Path(scratch)))
        yield Path(scratch)


def _reported_by_first() -> ray.train.Checkpoint | None:
    """The last checkpoint; the workers that report none with an epoch do not know the one of the first worker."""
    checkpoint: ray.train.Checkpoint | None = ray.train.get_checkpoint()
    if ray.train.get_context().get_world_size() == 1:
        return checkpoint
    path: str = broadcast_from_rank_zero(checkpoint.path if checkpoint is not None else "")
    return ray.train.Checkpoint(path) if path else None


def _team() -> Team:
    """All workers, who meet here and there while they score."""
    context = ray.train.get_context()
    if context.get_world_size() == 1:
        return Team()
    return Team(
        rank=context.get_world_rank(), size=context.get_world_size(), agree=broadcast_from_rank_zero, wait=barrier
    )


def _device(task: TrainingTask) -> "torch.device":
    import torch

    if not task.train_run.resources.gpus_per_worker:
        return torch.device("cpu")
    from ray.train.torch import get_device

    device: torch.device = get_device()
    torch.cuda.set_device(device)
    return device


def _epochs_done(checkpoint: ray.train.Checkpoint | None) -> int:
    return int(checkpoint.path.rpartition("-")[2]) if checkpoint else 0
