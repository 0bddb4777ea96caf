"""The way into Ray Train: its public trainer, or a leaner one where the installed Ray was tested with it.

Ray Train 2.60 starts five processes more than the lean trainer for each training, and each imports Ray Train for
itself: for three trainings on two cores that is 27 s until their first steps, and half of it without them. Nothing but
that time depends on which of the two it is.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import ray
import ray.train

from orchestrator.cluster.environment import FAST_PATH, INHERITED
from orchestrator.errors import REFUSALS, errno_of, refusal

TESTED = ("2.60",)
"""Minor versions of Ray whose inner parts the lean trainer was tested with; its public ones serve from 2.52 on."""


def make_trainer(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    backend: str | None,
    scaling_config: ray.train.ScalingConfig,
    run_config: ray.train.RunConfig,
) -> Any:
    """Return the trainer whose `fit` runs a function on each worker.

    Args:
        loop: what a worker does.
        settings: what it is given.
        backend: of the workers' process group, "nccl" or "gloo"; None for a single worker, which needs none.
        scaling_config: how many workers there are, and what each takes.
        run_config: where checkpoints go.
    """
    parts: dict[str, Any] = {"train_loop_config": settings, "scaling_config": scaling_config, "run_config": run_config}
    if not why_public():
        return _lean_trainer()(loop, backend_config=_group(backend) if backend else None, **parts)
    from ray.train.torch import TorchTrainer

    return TorchTrainer(loop, torch_config=_group(backend), **parts)


def why_public() -> str:
    """Say why trainings take Ray Train's public trainer; empty where the lean one takes its place."""
    if os.environ.get(FAST_PATH) == "0":
        return f"{FAST_PATH} is 0"
    if ray.__version__.rpartition(".")[0] not in TESTED:
        return f"the lean one was tested with {', '.join(TESTED)} alone"
    try:
        _lean_trainer()
    except ImportError as error:
        return f"the lean one finds other parts than in {', '.join(TESTED)} ({error})"
    return ""


@contextmanager
def lean_trials() -> Iterator[None]:
    """Let Tune start trials with the variables that they inherit from a Ray of our own, and none besides.

    For a process that is given any, Ray starts another Python before its own, and takes none of those that it has
    ready; as for the workers of the lean trainer.
    """
    if why_public():
        yield
        return
    from ray.tune.execution import class_cache

    usual = class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = {}, set()
    try:
        yield
    finally:
        class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = usual


def _group(backend: str | None) -> Any:
    from orchestrator.cluster.process_group import GroupConfig, NoGroup  # imports torch

    return GroupConfig(backend=backend) if backend else NoGroup()


@cache
def _lean_trainer() -> Any:
    """Make the trainer of parts that are not Ray's public interface.

    Raises:
        ImportError: this Ray has others.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    needless = (
        PlacementGroupCleanerCallback,  # asks Ray's dashboard, which may be off; trial.release does its work
        DatasetsCallback,  # an actor for Ray Data sets; there are none
    )

    class FixedSize(FixedScalingPolicy):
        """Lets the placement group alone ask for the workers, without the actor that shares nodes with Ray Data."""

        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

        def _cancel_resource_request(self) -> None:
            pass

    class LeanWorkers(WorkerGroup):
        """Gives its workers no variables that they inherit; see `lean_trials`."""

        @staticmethod
        def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
            if os.environ.get(INHERITED):
                return dict(custom_runtime_env)
            return WorkerGroup._get_worker_runtime_env(custom_runtime_env)

    class LeanController(TrainController):
        worker_group_cls = LeanWorkers

    class LeanTrainer(DataParallelTrainer):
        """What TorchTrainer is, with its controller in the caller's process."""

        def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
            controller = LeanController(**parts | {"scaling_policy": FixedSize(self.scaling_config)})  # type: ignore[arg-type]
            # Ray starts a process for the controller, in which the first step of three trainings comes 3.6 s later.
            asyncio.run(controller.run())  # type: ignore[no-untyped-call]
            return controller.get_result()

        def _create_default_callbacks(self) -> list[Any]:
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, needless)]

    return LeanTrainer


# What ended a training. Errors come from torch, Ray and this project, wrapped by Ray, and are told apart by the names
# of their classes and by their words, so that nobody has to import torch or Ray to read them.

Kind = Literal["mistake", "memory", "loss"]
"""In the order in which they explain each other: a worker that fails makes the others lose their connection."""
WRAPPED_IN = ("controller_failure", "health_check_failure", "_base_exc", "cause")
"""Where Ray keeps the error that it reports."""
LOSSES = {"RayError", "RayTrainError", "RuntimeError", "OSError", "ServerAway"}
"""Classes of errors that come with lost workers, nodes, connections and servers."""
MISTAKES = {"TrainingError", "NonFiniteError"}
"""Classes of errors that come again, though their base class is one of LOSSES."""
LASTING = {errno.ENOENT, *REFUSALS} - {errno.EEXIST}  # what two at once make of one folder
"""What the operating system refuses the second time as well."""
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, and torch.OutOfMemoryError
    "defaultcpuallocator",  # torch on the CPU
    "unable to allocate",  # NumPy
    "alloc_failed",  # cuBLAS, cuDNN
    "running low on memory",  # a worker that Ray ended
)
SHARED_MEMORY = "out of shared memory"
"""What torch supposes where a loader process dies of a signal."""
MAX_CHARACTERS = 300
"""Of an error's own words within an advice."""


class TooLarge(MemoryError):
    """A worker's GPU was too small for a forward pass, and how many images it would have held."""

    def __init__(self, words: str, tried: int, largest: int | None) -> None:
        """Take the error's own words, the images of a forward pass, and how many of them fit; None if nobody knows."""
        super().__init__(words, tried, largest)  # all of them, or it would not survive the way from a worker
        self.words, self.tried, self.largest = words, tried, largest

    def __str__(self) -> str:
        """Give the words of the error behind it."""
        return self.words


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


def explain(
    failure: Failure, local_batch: int | None, gpus_per_worker: float = 0.0, *, cuda_graphs: bool = False
) -> str:
    """Say in one line what happened, and what helps against it.

    Args:
        failure: what ended the training.
        local_batch: as the resources have it.
        gpus_per_worker: as well; with a part of a GPU, a worker has that part of its memory.
        cuda_graphs: as well; they keep their memory beside that of shapes which are not recorded.
    """
    error = failure.error
    words = _last_line(error)
    if SHARED_MEMORY in str(error):
        return (
            "a loader process died, as it does where /dev/shm is full: give the container more (--shm-size=4g), or "
            f"lower resources.loader_processes ({words[:MAX_CHARACTERS]})"
        )
    if isinstance(error, OSError) and (said := refusal(error)):
        return said
    if failure.kind != "memory":
        return words
    part = ""
    if 0.0 < gpus_per_worker < 1.0:
        part = f", or raise resources.gpus_per_worker (now {gpus_per_worker:g}, of the GPU's memory as well)"
    if gpus_per_worker and cuda_graphs:
        part += ", or set resources.cuda_graphs: false, which takes less"
    now = f"now {local_batch}" if local_batch is not None else "now a worker's whole share"
    advice = f"lower resources.local_batch ({now}), which leaves the numbers as they are"
    if isinstance(error, TooLarge) and error.largest is not None:
        if error.largest >= error.tried:
            advice = (
                f"an update of {error.tried} images fits by itself, so it was the scoring, or an image of very many "
                "boxes, or something else on that GPU; end what else holds its memory, or give the training more of it"
            )
        elif error.largest == 0:
            advice = "not even one image fits; lower train.data.long_edge, or take a GPU with more memory"
        else:
            advice = advice.replace(now, f"{now}; the largest that fits is {error.largest}")
    return f"out of memory: {advice}{part}, or run fewer trainings at a time ({words[:MAX_CHARACTERS]})"


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
    if SHARED_MEMORY in text:
        return "mistake"
    if names & {"OutOfMemoryError", "MemoryError"}:
        return "memory"
    if names & MISTAKES or not names & LOSSES or (isinstance(error, OSError) and errno_of(error) in LASTING):
        return "mistake"
    return "memory" if any(words in text for words in OUT_OF_MEMORY) else "loss"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
