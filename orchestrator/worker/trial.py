"""One Tune trial: it starts the workers of a training, and tells how they ended."""

import time
import traceback
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray.util.placement_group import PlacementGroup, remove_placement_group

from orchestrator.cluster.capacity import per_worker, placement
from orchestrator.worker.run import run
from orchestrator.worker.task import TrainingTask
from orchestrator.worker.trainer import LeanTrainer, StopWhenAsked, explain, failure_of

MAX_FAILURES = 2
"""How often a training starts again from its last checkpoint after a worker or a node was lost."""


def run_trial(config: dict[str, Any], tasks: Mapping[str, TrainingTask]) -> dict[str, Any]:
    """Train and score one training; the body of its Tune trial. What fails is told, not raised."""
    task = tasks[config["key"]]
    settings = {"task": task, "picked_up": time.time()}
    release(task)
    for old in task.folder.glob("error*.log"):
        old.unlink()
    try:
        if not task.hears_stop():
            _trainer(task, settings).fit()
    except Exception as error:
        if task.hears_stop():
            return {"error": "", "log": ""}
        failure = failure_of(error)
        log = task.error_log(failure.rank)
        if failure.kind == "loss" or not log.exists():
            log = task.error_log()
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"{error}\n\n{traceback.format_exc()}")
        return {"error": explain(failure, task.train_run.resources.local_batch), "log": str(log)}
    return {"error": "", "log": ""}


def release(task: TrainingTask) -> None:
    """Give back what the workers of a trial that died still hold; Ray keeps it reserved until the job ends."""
    file = task.folder / "placement_group"
    if file.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(file.read_text())))
        file.unlink(missing_ok=True)


def _trainer(task: TrainingTask, settings: dict[str, Any]) -> LeanTrainer:
    resources = task.train_run.resources
    callbacks: list[Any] = [StopWhenAsked(task.hears_stop)]
    if task.judged_by is not None:
        from orchestrator.worker.asha import ReportToTune

        callbacks.append(ReportToTune(task.judged_by, task.num_epochs))
    backend = None
    if resources.num_workers > 1:
        from orchestrator.cluster.process_group import GroupConfig

        backend = GroupConfig(backend="nccl" if resources.gpus_per_worker else "gloo")
    return LeanTrainer(
        run,
        train_loop_config=settings,
        backend_config=backend,
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker(resources),
            placement_strategy=placement(resources),
        ),
        run_config=ray.train.RunConfig(
            name=task.train_run.key,
            storage_path=str(task.storage),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
    )
