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
from orchestrator.worker.task import Work
from orchestrator.worker.trainer import LeanTrainer, StopWhenAsked, explain, failure_of

MAX_FAILURES = 2
"""How often a training starts again from its last checkpoint after a worker or a node was lost."""


def run_trial(config: dict[str, Any], works: Mapping[str, Work]) -> dict[str, Any]:
    """Train and score one training; the body of its Tune trial. What fails is told, not raised."""
    work = works[config["key"]]
    settings = {"work": work, "picked_up": time.time()}
    release(work)
    for old in work.folder.glob("error*.log"):
        old.unlink()
    try:
        if not work.hears_stop():
            _trainer(work, settings).fit()
    except Exception as error:
        if work.hears_stop():
            return {"error": "", "log": ""}
        failure = failure_of(error)
        log = work.error_log(failure.rank)
        if failure.kind == "loss" or not log.exists():
            log = work.error_log()
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"{error}\n\n{traceback.format_exc()}")
        return {"error": explain(failure, work.train_run.resources.local_batch), "log": str(log)}
    return {"error": "", "log": ""}


def release(work: Work) -> None:
    """Give back what the workers of a trial that died still hold; Ray keeps it reserved until the job ends."""
    file = work.folder / "placement_group"
    if file.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(file.read_text())))
        file.unlink(missing_ok=True)


def _trainer(work: Work, settings: dict[str, Any]) -> LeanTrainer:
    resources = work.train_run.resources
    callbacks: list[Any] = [StopWhenAsked(work.hears_stop)]
    if work.judged_by is not None:
        from orchestrator.worker.asha import TellTune

        callbacks.append(TellTune(work.judged_by, work.num_epochs))
    backend = None
    if resources.num_workers > 1:
        from orchestrator.worker.process_group import GroupConfig

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
            name=work.train_run.key,
            storage_path=str(work.storage),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
    )
