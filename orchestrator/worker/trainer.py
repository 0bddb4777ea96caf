"""A Ray Train run with as few processes as it needs, so that a training starts within seconds on few cores.

Ray Train 2.60 starts five processes more than these for each training, and each imports Ray Train for itself: for three
trainings on two cores that is 27 s until their first steps, and half of it without them. The parts overridden here are
not Ray's public interface, which is why pyproject.toml names the one version that they were tested with; with
`ray.train.torch.TorchTrainer` in place of `LeanTrainer` everything works as well, only later.
"""

import asyncio
import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import ray.train
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


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


# What ended a training. Errors come from torch, Ray and this project, wrapped by Ray, and are told apart by the names
# of their classes and by their words, so that nobody has to import torch or Ray to read them.

Kind = Literal["mistake", "memory", "loss"]
"""In the order in which they explain each other: a worker that fails makes the others lose their connection."""
WRAPPED_IN = ("controller_failure", "health_check_failure", "_base_exc", "cause")
"""Where Ray keeps the error that it reports."""
LOSSES = {"RayError", "RayTrainError", "RuntimeError", "OSError", "ServerAway"}
"""Classes of errors that come with lost workers, nodes, connections and servers."""
MISTAKES = {"TrainingError"}
"""Classes of errors that come again, though their base class is one of LOSSES."""
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC}
"""What the operating system refuses the second time as well."""
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, and torch.OutOfMemoryError
    "defaultcpuallocator",  # torch on the CPU
    "unable to allocate",  # NumPy
    "alloc_failed",  # cuBLAS, cuDNN
    "running low on memory",  # a worker that Ray ended
)
MAX_CHARACTERS = 300
"""Of an error's own words within an advice."""


class Failure(NamedTuple):
    """What ended a training, of all that its workers reported."""

    kind: Kind
    error: BaseException
    rank: int | None
    """Of the worker that reported it; None where it was none of them."""


def failure_of(error: BaseException) -> Failure:
    """Return the error among those of all workers that explains the others."""
    order: list[Kind] = ["mistake", "memory", "loss"]
    found = [Failure(_kind(cause), cause, rank) for rank, cause in _causes(error)]
    return min(found, key=lambda failure: order.index(failure.kind))


def explain(failure: Failure, local_batch: int | None) -> str:
    """Say in one line what happened, and what helps against it."""
    words = _last_line(failure.error)
    if failure.kind != "memory":
        return words
    now = f"now {local_batch}" if local_batch is not None else "now a worker's whole share"
    return (
        f"out of memory: lower resources.local_batch ({now}), which leaves the numbers as they are, or run fewer "
        f"trainings at a time ({words[:MAX_CHARACTERS]})"
    )


def _causes(error: BaseException, rank: int | None = None) -> Iterator[tuple[int | None, BaseException]]:
    """Unwrap what Ray reports: one error of each failed worker, or the one that there is."""
    workers = getattr(error, "worker_failures", None)
    if isinstance(workers, Mapping) and workers:
        for worker, cause in workers.items():
            yield from _causes(cause, worker)
        return
    wrapped = [cause for name in WRAPPED_IN if isinstance(cause := getattr(error, name, None), BaseException)]
    if wrapped:
        yield from _causes(wrapped[0], rank)
    else:
        yield rank, error


def _kind(error: BaseException) -> Kind:
    names = {base.__name__ for base in type(error).__mro__}
    text = str(error).lower()
    if names & {"OutOfMemoryError", "MemoryError"}:
        return "memory"
    if names & MISTAKES or not names & LOSSES or getattr(error, "errno", None) in LASTING:
        return "mistake"
    return "memory" if any(words in text for words in OUT_OF_MEMORY) else "loss"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
