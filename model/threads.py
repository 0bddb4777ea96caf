"""Work of the CPU with one thread an image: a sum's last bits depend on how many threads share it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let torch compute with one thread, and yield how many it has otherwise."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield count
    finally:
        torch.set_num_threads(count)


def map_in_order(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Yield function(item) for each item, in their order; so many threads work on them, each with one for torch."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
