"""One Tune trial: it starts the workers of a training, and tells how they ended."""

import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import ray
import ray.train
from ray.util.placement_group import PlacementGroup, remove_placement_group

from orchestrator.cluster.capacity import per_worker, placement
from orchestrator.experiment.rows import Resources
from orchestrator.worker.run import run
from orchestrator.worker.task import TrainingTask, take_up
from orchestrator.worker.trainer import explain, failure_of, make_trainer

MAX_FAILURES = 2
"""How often a training starts again from its last checkpoint after a worker or a node was lost."""
LOOK_SECONDS = 0.2
"""How often a trial looks whether it is to end, and what its workers tell."""


def run_trial(config: dict[str, Any], tasks: Mapping[str, TrainingTask]) -> dict[str, Any]:
    """Train and score one training; the body of its Tune trial. What fails is told, not raised."""
    task = tasks[config["key"]]
    settings = {"task": task, "picked_up": time.time()}
    try:
        _tidy(task)
        _run_workers(task, settings)
    except Exception as error:
        return _told(task, error)
    return {"error": "", "log": ""}


def _tidy(task: TrainingTask) -> None:
    """Remove what an earlier start left, and find out whether the folder takes files before workers are started.

    Raises:
        OSError: it does not.
    """
    release(task)
    task.folder.mkdir(parents=True, exist_ok=True)
    for old in task.folder.glob("error*.log"):
        old.unlink()
    attempt = task.folder / "attempt"
    try:
        attempt.touch()
        attempt.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(task.folder)) from error


def _told(task: TrainingTask, error: Exception) -> dict[str, Any]:
    """Say in one line why a training failed, and where the rest stands; a folder that takes nothing holds no log."""
    failure = failure_of(error)
    log = ""
    with suppress(OSError):
        if task.hears_stop():
            return {"error": "", "log": ""}
        file = task.error_log(failure.rank)
        if failure.kind == "loss" or not file.exists():
            file = task.error_log()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{error}\n\n{traceback.format_exc()}")
        log = str(file)
    resources = task.train_run.resources
    advice = explain(failure, resources.local_batch, resources.gpus_per_worker, cuda_graphs=resources.cuda_graphs)
    return {"error": advice, "log": log}


def release(task: TrainingTask) -> None:
    """Give back what the workers of a trial that died still hold; Ray keeps it reserved until the job ends."""
    group = task.hear_group()
    if group is not None:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
        task.group_file.unlink(missing_ok=True)


def backend_of(resources: Resources) -> str | None:
    """Return what sums up the workers' gradients; None for a single worker, which sums up nothing."""
    # Without a group for one worker, three trainings on two cores made their first steps after 19 s, not 27 s.
    if resources.num_workers == 1:
        return None
    return "nccl" if resources.gpus_per_worker else "gloo"


def _run_workers(task: TrainingTask, settings: dict[str, Any]) -> None:
    """Run the workers to their end, after a loss again from their last checkpoint; a mistake is not repeated."""
    for failures_left in reversed(range(MAX_FAILURES + 1)):
        if task.hears_stop():
            return
        # Ray refuses, or takes for sound, what a disk or somebody has damaged since.
        take_up(task.folder, task.train_run.config, is_trained=task.is_trained)
        with ThreadPoolExecutor(1) as pool:
            # A Ray Train run of the same name and storage goes on from its last checkpoint by itself.
            workers = pool.submit(_trainer(task, settings).fit)
            _follow(task, workers)
        error = workers.exception()
        if error is None:
            return
        if not failures_left or failure_of(error).kind != "loss":
            raise error
        release(task)


def _follow(task: TrainingTask, workers: "Future[Any]") -> None:
    """Until the workers end, pass their metrics on to Tune, and end them when asked to."""
    try:
        while wait([workers], LOOK_SECONDS).not_done:
            if task.judged_by is not None:
                from orchestrator.worker.asha import report_to_tune  # imports Ray Tune, which workers do without

                report_to_tune(task)
            if task.hears_stop():
                # Workers die with their placement group, wherever they are; `fit` takes that for a loss.
                release(task)
    except BaseException:
        release(task)  # workers whom nobody follows may wait for ever
        raise


def _trainer(task: TrainingTask, settings: dict[str, Any]) -> Any:
    resources = task.train_run.resources
    return make_trainer(
        run,
        settings,
        backend=backend_of(resources),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker(resources),
            placement_strategy=placement(resources),
        ),
        run_config=ray.train.RunConfig(
            name=task.train_run.key,
            storage_path=str(task.storage),
            failure_config=ray.train.FailureConfig(max_failures=0),  # would repeat mistakes; _run_workers does not
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
