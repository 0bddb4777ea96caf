"""A Ray Train run with as few processes as it needs, so that a training starts within seconds on few cores.

Ray Train 2.60 starts five processes more than these for each training, and each imports Ray Train for itself: for three
trainings on two cores that is 27 s until their first steps, and half of it without them. The parts overridden here are
not Ray's public interface, which is why pyproject.toml names the one version that they were tested with; with
`ray.train.torch.TorchTrainer` in place of `LeanTrainer` everything works as well, only later.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from orchestrator.worker.failures import failure_of


class LeanTrainer(DataParallelTrainer):
    """What TorchTrainer is, with its controller in the caller's process; one worker needs no process group."""

    def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
        parts["scaling_policy"] = _FixedSize(self.scaling_config)  # type: ignore[arg-type]
        parts["failure_policy"] = _AgainAfterLoss(self.run_config.failure_config)  # type: ignore[arg-type]
        controller = TrainController(**parts)
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        needless = (
            PlacementGroupCleanerCallback,  # asks Ray's dashboard, which may be off; trial.release does its work
            DatasetsCallback,  # an actor for Ray Data sets; there are none
        )
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, needless)]


class StopWhenAsked(WorkerGroupCallback):
    """Ends the workers of a training in order, and frees what they hold; `fit` then raises."""

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        """Take what is asked each time that the workers are looked at, several times a second."""
        self._is_asked = is_asked

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Raise what the failure policy does not retry."""
        if self._is_asked():
            raise InterruptedError("asked to stop")


class _FixedSize(FixedScalingPolicy):
    """Lets the placement group alone ask for the workers, without the actor that shares nodes with Ray Data."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _AgainAfterLoss(DefaultFailurePolicy):
    """Starts workers again that were lost; does not repeat what comes again."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if failure_of(training_failed_error).kind != "loss":
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)
