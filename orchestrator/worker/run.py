"""One worker of a training under Ray Train: it trains, records and scores."""

import gc
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.util.placement_group import get_current_placement_group

from model.evaluation.shards import Team
from model.names import CARD, EPOCH, PEAK_MEMORY_MIB, STARTUP_S, VAL, WEIGHTS
from model.network.checkpoint import damages
from orchestrator.cluster.capacity import cores_of_worker, loader_processes
from orchestrator.cluster.connect import node_here
from orchestrator.cluster.gpus import peak_memory, worker_device
from orchestrator.errors import UserError
from orchestrator.names import CHECKPOINT, DEVICE
from orchestrator.tracking.artifacts import download
from orchestrator.tracking.recorder import Recorder
from orchestrator.tracking.rest import RETRY_SECONDS, given_up, retried
from orchestrator.tracking.runs import metrics_target, write
from orchestrator.worker.gauges import Updates, tell_peak_memory
from orchestrator.worker.scoring import finish, score
from orchestrator.worker.showcase import Showcase
from orchestrator.worker.task import TrainingTask
from orchestrator.worker.trainer import TooLarge
from orchestrator.worker.training_log import Again, log_epoch, log_start, write_event

if TYPE_CHECKING:
    import torch

    from model.training.loop import Progress

    TakeReport = Callable[[Mapping[str, float], Progress], None]

SHOW_SECONDS = 20.0
"""How long the end of a training waits for the last example detections; the submit shows them then."""


def run(settings: dict[str, Any]) -> None:
    """Train and score, as one of the workers; the same calls on each of them.

    What one of them raises ends all of them, wherever they wait for it.
    """
    import torch

    node = node_here()
    task = _for_node(settings["task"], node)
    resources = task.train_run.resources
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        group = get_current_placement_group()
        assert group is not None
        # Ray keeps reserved what a trial that dies had; its next start gives that back by this id.
        task.tell_group(group.id.hex())
        done = _epochs_done(ray.train.get_checkpoint())
        log_start(task.folder, context.get_world_size(), done, task.num_epochs, resources.loader_processes or 0)
    # torch would take every core of the node for each of the workers on it.
    torch.set_num_threads(max(1, int(cores_of_worker(resources, node))))
    try:
        _device(task)  # a worker whose GPU cannot be used fails before anything is read
        if not task.is_trained and _epochs_done(ray.train.get_checkpoint()) < task.num_epochs:
            _train(task, settings["picked_up"])
        with _checkpoint(task) as folder:
            if context.get_world_rank() == 0:
                retried(lambda: finish(task, folder))
            score(task, folder, _team(), _device(task))
    except Exception:
        with suppress(OSError):  # or a full disk would hide what it is about
            task.error_log(context.get_world_rank()).write_text(traceback.format_exc())  # Ray cuts it
        raise


def _train(task: TrainingTask, picked_up: float) -> None:
    """Train from the last checkpoint, or from the start, to the last epoch."""
    from model.training.loop import train

    checkpoint = ray.train.get_checkpoint()
    with tempfile.TemporaryDirectory() as scratch, _recording(task, _epochs_done(checkpoint)) as record:
        has_reported = False

        def report(progress: "Progress") -> None:
            nonlocal has_reported
            metrics = progress.metrics | {EPOCH: progress.epoch}
            if not has_reported:
                metrics[STARTUP_S] = time.time() - picked_up
                has_reported = True
            # Ray Train keeps no metrics that come without a checkpoint (ray #56718); curves go to MLflow by a journal.
            record(metrics, progress)
            if progress.end_of_epoch:
                _report(metrics, progress)
                _ask_for_judgement(task, metrics)

        resume = Path(scratch) / "resume"
        if checkpoint is not None:
            checkpoint.to_directory(str(resume))
        with _sized(task):
            train(
                task.train_run.config,
                data_root=task.data_root,
                weights_file=task.weights_file,
                folder=Path(scratch),
                local_batch=task.train_run.resources.local_batch,
                num_loader_processes=task.train_run.resources.loader_processes or 0,
                resume=resume if checkpoint is not None else None,
                report=report,
                device=_device(task),
                use_graphs=task.train_run.resources.cuda_graphs,
            )


@contextmanager
def _sized(task: TrainingTask) -> Iterator[None]:
    """Find out, where a GPU runs out of memory, with how many images a forward pass it would not have.

    Raises:
        TooLarge: it does, and how many these are.
    """
    import torch

    from model.training.memory import ask_largest_batch, ran_out

    try:
        yield
        return
    except Exception as error:
        if not ran_out(error):
            raise
        words = str(error)
        cause: BaseException | None = error
        while cause is not None:
            # Its frames hold the tensors of the training, which would leave no room to try anything.
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
    from model.data.coco import read_for_training

    gc.collect()
    torch.cuda.empty_cache()
    config, resources = task.train_run.config, task.train_run.resources
    num_classes = len(read_for_training(task.data_root, config.data).category_ids)
    share = -(-config.global_batch // resources.num_workers)
    tried = min(resources.local_batch or share, share)
    part = min(1.0, resources.gpus_per_worker)
    largest = ask_largest_batch(config, num_classes, tried, part, resources.cuda_graphs)
    raise TooLarge(words, tried, largest)


@contextmanager
def _recording(task: TrainingTask, first_epoch: int) -> "Iterator[TakeReport]":
    """Yield what the first worker does with a report: tell MLflow, Prometheus and the log; the others do nothing."""
    if ray.train.get_context().get_world_rank() != 0:
        yield lambda metrics, progress: None
        return
    device = _device(task)
    with _recorder(task) as recorder, _showcase(task) as showcase:
        _name_device(task, device)
        updates: Updates | None = None
        latest: dict[str, float] = {}

        def record(metrics: Mapping[str, float], progress: "Progress") -> None:
            nonlocal updates
            latest.update(metrics)
            if updates is None:  # only a report says how many steps an epoch has
                updates = _count_updates(task, recorder, first_epoch * progress.num_steps // task.num_epochs)
            # Counted here, as the journal does not grow while lost updates are made again, which is no standstill.
            updates.reach(progress.step)
            memory = peak_memory(device)
            if memory:
                tell_peak_memory(task.train_run.suite, task.train_run.key, memory[PEAK_MEMORY_MIB])
            recorder.log({**metrics, **memory, **showcase.look(progress)}, progress.step)
            if progress.end_of_epoch:
                log_epoch(task.folder, progress.epoch, task.num_epochs, latest)
                _await_judgement(task)

        yield record


def _name_device(task: TrainingTask, device: "torch.device") -> None:
    """Write to the run on which GPU it is trained."""
    from model.network.checkpoint import device_name

    if device.type == "cuda":
        with suppress(UserError):  # good to have
            write(task.tracking_uri, task.hear_run(), tags={DEVICE: device_name(device)})


@contextmanager
def _recorder(task: TrainingTask) -> Iterator[Recorder]:
    task.hear_run()  # a training that has no run fails before it starts
    recorder = Recorder(lambda: metrics_target(task.tracking_uri, task.hear_run()), task.journal)
    try:
        yield recorder
    except BaseException:
        recorder.close(5.0)  # the journal keeps the rest for the next start
        raise
    if num_missing := recorder.close(RETRY_SECONDS):
        raise UserError(given_up(RETRY_SECONDS, f"{num_missing} metrics wait in {task.journal}"))


@contextmanager
def _showcase(task: TrainingTask) -> Iterator[Showcase]:
    from model.data.coco import read_for_training

    data = task.train_run.config.data
    showcase = Showcase(
        task.tracking_uri,
        task.hear_run(),
        data,
        lambda: read_for_training(task.data_root, data),
        _device(task),
        task.folder,
    )
    try:
        yield showcase
    except BaseException:
        showcase.close(1.0)
        raise
    showcase.close(SHOW_SECONDS)


def _count_updates(task: TrainingTask, recorder: Recorder | None, done: int) -> Updates:
    """Return the counter of updates, and log how many images are trained on again since the last checkpoint."""
    if recorder is not None and recorder.last_step > done:
        num_images = (recorder.last_step - done) * task.train_run.config.global_batch
        write_event(task.folder, Again(num_images=num_images))
    return Updates(task.train_run.suite, task.train_run.key, done)


def _await_judgement(task: TrainingTask) -> None:
    """Wait until the epoch before is judged; without, a training could finish before it is stopped."""
    while task.judged_by is not None and task.hear_number() is not None:
        time.sleep(0.1)


def _ask_for_judgement(task: TrainingTask, metrics: Mapping[str, float]) -> None:
    """Tell the trial, from the first worker, the number of each epoch but the last; some have none."""
    if task.judged_by is None or ray.train.get_context().get_world_rank() != 0:
        return
    epoch, value = round(metrics[EPOCH]), metrics.get(f"{VAL}{task.judged_by}", math.nan)
    if epoch < task.num_epochs and not math.isnan(value):
        task.tell_number(epoch, value)


def _report(metrics: dict[str, float], progress: "Progress") -> None:
    """Hand the epoch's checkpoint to Ray Train, which keeps it on the storage; every worker does so together."""
    checkpoint = None if progress.checkpoint is None else ray.train.Checkpoint.from_directory(str(progress.checkpoint))
    # Every rank has to call this equally often, or the others wait for it for ever.
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        # `_epochs_done` reads the epoch back from this name.
        checkpoint_dir_name=f"epoch-{round(progress.epoch):04d}",
        delete_local_checkpoint_after_upload=checkpoint is not None,
    )


@contextmanager
def _checkpoint(task: TrainingTask) -> Iterator[Path]:
    """The last checkpoint, from Ray's storage, or from MLflow where the storage was freed."""
    checkpoint = _reported_by_first()
    if checkpoint is not None and _epochs_done(checkpoint) == task.num_epochs:
        with checkpoint.as_directory() as folder:
            yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:

        def fetch() -> None:
            for name in (WEIGHTS, CARD):
                download(task.tracking_uri, task.hear_run(), f"{CHECKPOINT}/{name}", Path(scratch))

        retried(fetch)
        if damage := next(damages(Path(scratch), with_resume=False), None):
            raise UserError(
                f"MLflow's checkpoint of this training is damaged: {damage.file.name} {damage.why}; `rnc repair "
                "--deep` stores it again from the storage, or lets the next submit train it again"
            )
        yield Path(scratch)


def _reported_by_first() -> ray.train.Checkpoint | None:
    """The last checkpoint; the workers that report none with an epoch do not know the one of the first worker."""
    checkpoint: ray.train.Checkpoint | None = ray.train.get_checkpoint()
    if ray.train.get_context().get_world_size() == 1:
        return checkpoint
    # On a rank that reported no checkpoint itself, get_checkpoint() is None until a new start.
    path: str = broadcast_from_rank_zero(checkpoint.path if checkpoint is not None else "")
    return ray.train.Checkpoint(path) if path else None


def _team() -> Team:
    """Return the workers as scoring knows them: it shares out shards, and meets at barriers."""
    context = ray.train.get_context()
    if context.get_world_size() == 1:
        return Team()
    return Team(
        rank=context.get_world_rank(), size=context.get_world_size(), agree=broadcast_from_rank_zero, wait=barrier
    )


def _device(task: TrainingTask) -> "torch.device":
    return worker_device(task.train_run.resources.gpus_per_worker)


def _for_node(task: TrainingTask, node: Mapping[str, float]) -> TrainingTask:
    """Return the task with as many loader processes as its worker starts on this node."""
    resources = task.train_run.resources
    chosen = replace(resources, loader_processes=loader_processes(resources, node))
    return replace(task, train_run=replace(task.train_run, resources=chosen))


def _epochs_done(checkpoint: ray.train.Checkpoint | None) -> int:
    return int(checkpoint.path.rpartition("-")[2]) if checkpoint else 0
