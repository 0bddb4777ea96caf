"""Processes that average their gradients, in two of gloo's; what they should get is computed here by hand."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from model.parallel import FlatGradients, one_thread_each, wrap
from tests.processes import run_processes

Run = Callable[[Callable[[], Any]], Any]
INPUTS = (torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.1, -0.7, 5.3]]))
AVERAGE = torch.tensor([[0.55, 0.65, 4.15]])
"""Of both, which are the gradients of a sum of w * x."""


def average_here(rank: int, folder: Path) -> None:
    for compression in ("none", "bfloat16"):
        model = torch.nn.Linear(3, 1, bias=False)
        wrapped = wrap(model, compression)
        wrapped(INPUTS[rank]).sum().backward()
        torch.save(model.weight.grad, folder / f"{compression}-{rank}.pt")
        flat = FlatGradients(model, compression)
        model(INPUTS[rank]).sum().backward()
        flat.share()
        torch.save(flat.values[None] / 2, folder / f"flat-{compression}-{rank}.pt")
    distributed.barrier()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged")
    run_processes(2, average_here, folder)
    return folder


@pytest.mark.parametrize("way", ["", "flat-"])  # DistributedDataParallel's, and that of CUDA
def test_gradients_are_averaged_exactly_or_as_bfloat16_when_asked(averaged: Path, way: str) -> None:
    exact, rounded = (
        [torch.load(averaged / f"{way}{name}-{rank}.pt") for rank in (0, 1)] for name in ("none", "bfloat16")
    )
    assert torch.equal(exact[0], exact[1]) and torch.equal(rounded[0], rounded[1])
    torch.testing.assert_close(exact[0], AVERAGE, atol=1e-6, rtol=0)
    # Eight bits of precision: each of the two rounded, and their sum, by up to 2^-9 of it.
    torch.testing.assert_close(rounded[0], AVERAGE, atol=0, rtol=3 * 2.0**-9)
    assert not torch.equal(rounded[0], exact[0])
    assert torch.equal(rounded[0], rounded[0].bfloat16().float())  # what arrives was sent as bfloat16


def test_a_process_that_is_alone_sends_nothing_and_compresses_nothing() -> None:
    model = torch.nn.Linear(3, 1)
    assert wrap(model, "bfloat16") is model
    flat = FlatGradients(model, "bfloat16")
    flat.values.fill_(1.001)
    flat.share()
    assert torch.equal(flat.values, torch.full((4,), 1.001))


@pytest.mark.parametrize("num_threads", [0, 1, 2])  # beside this one: uses overlap in one, in two, in three
def test_overlapping_uses_of_one_thread_give_back_the_threads_that_torch_had(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    uses = [one_thread_each() for _ in range(3)]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        there: list[Run] = [lambda work: one.submit(work).result(), lambda work: two.submit(work).result()]
        threads = [*there[:num_threads], *3 * [lambda work: work()]][:3]
        assert [run(use.__enter__) for run, use in zip(threads, uses, strict=True)] == [3, 3, 3]
        for run, use in zip(threads, uses, strict=True):
            assert run(torch.get_num_threads) == 1
            run(partial(use.__exit__, None, None, None))
        assert [run(torch.get_num_threads) for run in threads] == [3, 3, 3]
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == 3
    torch.set_num_threads(before)
