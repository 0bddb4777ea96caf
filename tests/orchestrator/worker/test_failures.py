"""What ended a training, told from what Ray reports; the errors are the real classes of torch, Ray and this project."""

import pickle

import numpy as np
import pytest
import torch
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from model.data.faults import DataError
from model.training.loop import TrainingError
from orchestrator.errors import UserError
from orchestrator.tracking.rest import Refused, ServerAway
from orchestrator.worker.trainer import TooLarge, explain, failure_of

LOST_PEER = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:43210")
KILLED = WorkerHealthCheckFailedError(
    "The worker's health check failed",
    failure=RayActorError(error_msg="Worker unexpectedly exits: (1) The process is killed by SIGKILL by OOM killer"),
)


def of_workers(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("workers failed", dict(enumerate(errors)))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KILLED, "loss"),
        (LOST_PEER, "loss"),
        (ConnectionResetError("connection reset"), "loss"),
        (ServerAway("MLflow does not answer"), "loss"),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), "loss"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "memory"),
        (
            WorkerHealthCheckFailedError("failed", failure=OutOfMemoryError("the node is running low on memory")),
            "memory",
        ),
        (MemoryError(), "memory"),
        (ValueError("epochs is 0, expected at least 1"), "mistake"),
        (DataError("annotations: no images"), "mistake"),
        (TrainingError("the loss is nan at update 3"), "mistake"),
        (UserError("RNC_WEIGHTS: no such folder"), "mistake"),
        (Refused("MLflow refuses", "INVALID_PARAMETER_VALUE"), "mistake"),
        (FileNotFoundError(2, "No such file or directory"), "mistake"),
        (TypeError("expected Tensor as element 0"), "mistake"),
    ],
)
def test_the_kind_of_a_workers_error_decides_whether_another_start_helps(error: Exception, kind: str):
    failure = failure_of(of_workers(error))
    assert (failure.kind, failure.rank) == (kind, 0)


def test_what_torch_and_numpy_raise_where_memory_is_too_small_is_a_matter_of_memory():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**50)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**50)
    assert failure_of(of_torch.value).kind == failure_of(of_numpy.value).kind == "memory"


@pytest.mark.parametrize("cause", [DataError("image 7 is torn"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_the_error_behind_the_others_is_found_on_whichever_worker_it_was(cause: Exception):
    failure = failure_of(of_workers(LOST_PEER, KILLED, cause, LOST_PEER))
    assert (failure.error, failure.rank) == (cause, 2)


def test_workers_that_do_not_start_in_time_are_a_loss_and_a_broken_controller_is_not():
    assert failure_of(ControllerError(WorkerGroupStartupTimeoutError(2))).kind == "loss"
    broken = failure_of(ControllerError(AttributeError("no such hook")))
    assert (broken.kind, broken.rank, str(broken.error)) == ("mistake", None, "no such hook")


def test_a_lack_of_memory_comes_with_advice_and_with_the_number_to_lower():
    failure = failure_of(of_workers(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")))
    advice = explain(failure, local_batch=8)
    assert advice.startswith("out of memory: lower resources.local_batch (now 8), which leaves the numbers as they are")
    assert advice.endswith("(CUDA out of memory. Tried to allocate 2.00 GiB.)")
    assert "now a worker's whole share" in explain(failure, local_batch=None)


@pytest.mark.parametrize(
    ("local_batch", "tried", "largest", "advice"),
    [
        (8, 8, 5, "lower resources.local_batch (now 8; the largest that fits is 5), which leaves the numbers as"),
        (None, 16, 5, "lower resources.local_batch (now a worker's whole share; the largest that fits is 5), which"),
        (8, 8, None, "lower resources.local_batch (now 8), which leaves the numbers as they are, or run fewer"),
        (
            8,
            8,
            8,
            "an update of 8 images fits by itself, so it was the scoring, or an image of very many boxes, or ",
        ),
        (8, 8, 0, "not even one image fits; lower train.data.long_edge, or take a GPU with more memory, or run"),
    ],
)
def test_a_gpu_that_is_too_small_comes_with_the_largest_batch_that_fits(
    local_batch: int | None, tried: int, largest: int | None, advice: str
):
    error = pickle.loads(pickle.dumps(TooLarge("CUDA out of memory. Tried to allocate 2 GiB", tried, largest)))
    failure = failure_of(of_workers(LOST_PEER, error))
    assert (failure.kind, failure.rank) == ("memory", 1)
    said = explain(failure, local_batch, gpus_per_worker=1.0)
    assert said.startswith(f"out of memory: {advice}")
    assert said.endswith("(CUDA out of memory. Tried to allocate 2 GiB)")


def test_a_worker_with_a_part_of_a_gpu_is_told_that_it_has_that_part_of_its_memory():
    failure = failure_of(of_workers(torch.OutOfMemoryError("CUDA out of memory.")))
    said = "or raise resources.gpus_per_worker (now 0.5, of the GPU's memory as well), or run fewer trainings"
    assert said in explain(failure, local_batch=8, gpus_per_worker=0.5)
    assert "gpus_per_worker" not in explain(failure, local_batch=8, gpus_per_worker=1.0)


def test_a_gpu_that_holds_recorded_graphs_has_more_room_without_them():
    failure = failure_of(of_workers(torch.OutOfMemoryError("CUDA out of memory.")))
    said = "as they are, or set resources.cuda_graphs: false, which takes less, or run fewer trainings"
    assert said in explain(failure, local_batch=8, gpus_per_worker=1.0, cuda_graphs=True)
    for gpus_per_worker, cuda_graphs in ((1.0, False), (0.0, True)):
        told = explain(failure, local_batch=8, gpus_per_worker=gpus_per_worker, cuda_graphs=cuda_graphs)
        assert "cuda_graphs" not in told


def test_a_full_shared_memory_is_a_mistake_of_its_own_and_not_a_lost_worker():
    torn = RuntimeError(
        "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit."
    )
    failure = failure_of(of_workers(torn))
    assert failure.kind == "mistake"
    said = explain(failure, local_batch=8)
    assert said.startswith("a loader process died, as it does where /dev/shm is full: give the container more (--shm-")
    assert "lower resources.loader_processes (DataLoader worker (pid 77)" in said


def test_any_other_error_is_told_by_its_own_last_line():
    assert explain(failure_of(of_workers(DataError("torn:\n  image 7\n"))), local_batch=8) == "image 7"
    assert explain(failure_of(KeyError()), local_batch=8) == "KeyError()"


def test_errors_of_the_server_arrive_from_a_worker_as_they_were():
    refused = pickle.loads(pickle.dumps(Refused("no", "RESOURCE_DOES_NOT_EXIST")))
    assert (str(refused), refused.code) == ("no", "RESOURCE_DOES_NOT_EXIST")
