"""Run a function in other processes: in several of one torch.distributed group, or in one that may be killed."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import start_processes

multiprocessing.set_forkserver_preload(
    ["model.training.loop", "pytest", "tests.warm"]
)  # imported once, not by every process


def run_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call function(rank, *arguments) in `count` gloo processes of one thread each; an error in any is raised."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        arguments = (count, rendezvous, function, arguments)
        start_processes(_enter, arguments, nprocs=count, start_method="forkserver")


def start_process(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Begin function(*arguments) in a process of its own, with one thread for torch."""
    context: Any = multiprocessing.get_context("forkserver")
    process: BaseProcess = context.Process(target=_alone, args=(function, arguments), daemon=True)
    process.start()
    return process


def _alone(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def _enter(rank: int, count: int, rendezvous: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=count, timeout=timedelta(seconds=120)
    )
    try:
        function(rank, *arguments)
    finally:
        distributed.destroy_process_group()
