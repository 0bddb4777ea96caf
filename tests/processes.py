"""Run a function in several processes of one torch.distributed group on this machine."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import start_processes

multiprocessing.set_forkserver_preload(["model.training"])  # imported once, not by every process


def run_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call function(rank, *arguments) in `count` gloo processes of one thread each; an error in any is raised."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        arguments = (count, rendezvous, function, arguments)
        start_processes(_enter, arguments, nprocs=count, start_method="forkserver")


def _enter(rank: int, count: int, rendezvous: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=count, timeout=timedelta(seconds=120)
    )
    try:
        function(rank, *arguments)
    finally:
        distributed.destroy_process_group()
