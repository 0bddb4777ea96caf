"""Tells what ended a training: a loss that another start makes good, too little memory, or a mistake that stays.

Errors come from torch, Ray and this project, wrapped by Ray, and are told apart by the names of their classes and by
their words, so that nobody has to import torch or Ray to read them.
"""

import errno
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

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
