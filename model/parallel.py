"""Processes and threads: collective operations, which do nothing where a process is alone, and an ordered map."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")
R = TypeVar("R")


def world() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def total(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank, on every process."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def share(items: list[int], rank: int, num_processes: int) -> list[int]:
    """The contiguous part of a list that belongs to a rank; parts differ by one item at most."""
    start, stop = (len(items) * place // num_processes for place in (rank, rank + 1))
    return items[start:stop]


def wrap(model: torch.nn.Module, compression: Literal["none", "bfloat16"] = "none") -> torch.nn.Module:
    """The model with its gradients averaged over all processes after each backward pass, sent in this precision."""
    if not distributed.is_initialized():
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a new name from torch 2.15 on
        # No buffer ever changes (batch norms are frozen); as views of DDP's buckets, gradients need no second copy.
        wrapped = torch.nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    if compression == "bfloat16":
        # Not at the top: it brings all other hooks with it, and hardly any training asks for one.
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


class FlatGradients:
    """The gradients of a model side by side in one tensor: their addresses stay, and they are shared in one call."""

    def __init__(self, model: torch.nn.Module, compression: Literal["none", "bfloat16"] = "none") -> None:
        """Give each parameter that learns a gradient of 0, in its own memory order; they are sent in this precision."""
        self.compression = compression
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in parameters]
        self.values = torch.zeros(sum(sizes), device=parameters[0].device)
        for parameter, part in zip(parameters, torch.split(self.values, sizes), strict=True):
            parameter.grad = part.as_strided(parameter.shape, parameter.stride())

    def zero(self) -> None:
        """Set all to 0."""
        self.values.zero_()

    def share(self) -> None:
        """Add up those of all processes, on each of them."""
        if self.compression == "bfloat16" and distributed.is_initialized():
            self.values.copy_(total(self.values.to(torch.bfloat16)))
        else:
            total(self.values)


_uses_lock = Lock()
_uses: list[tuple[int, int]] = []
"""Of each use of `one_thread_each` that goes on: the thread that began it, and how many torch has otherwise."""


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let torch compute with one thread, and yield how many it has otherwise; uses may overlap, in several threads."""
    # Two threads sum in another order than one, which is worth 7e-5 AP. torch keeps its setting by thread, and new
    # threads, as those of a server's requests, begin with the last one of any: within a use of another, that is 1.
    with _uses_lock:
        otherwise = _one_thread()
        count = _uses[0][1] if _uses else otherwise
        use = get_ident(), count
        _uses.append(use)
    try:
        yield count
    finally:
        with _uses_lock:
            _uses.remove(use)
            if use not in _uses:
                torch.set_num_threads(count)


def map_in_order(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Yield function(item) for each item, in their order; so many threads work on them, each with one for torch."""
    # A pool's own map would read all items at once: decoded images, as many as the data set has.
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads, initializer=_one_thread) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _one_thread() -> int:
    """Let torch compute with one thread in this one, and return how many it had."""
    # Asked first: torch sets a thread's number anew when that is first asked for, to what any thread set last.
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    return count
