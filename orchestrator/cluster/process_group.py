"""The process group of a training's workers, which talk over the addresses by which Ray knows their nodes."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil
import ray.util
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from orchestrator.cluster.gpus import require_cuda

TorchBackend: Any = TorchConfig().backend_cls  # its class has no public name
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class _Config(TorchConfig):
    """TorchConfig of workers that choose their device themselves."""

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
        """Return what a worker's function is called in: nothing."""
        # Ray's own sets the current GPU, also for workers without any, which then hold memory of the first; and where
        # its GPU is hidden from a worker, it fails with "not in list".
        return nullcontext


class GroupConfig(_Config):
    """The group of several, on nodes whose name may stand for 127.0.0.1 in their own /etc/hosts, as Debian has it."""

    @property
    def backend_cls(self) -> type["_Backend"]:
        """What starts the group."""
        return _Backend


class NoGroup(_Config):
    """A single worker, for whom no group is started."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What starts nothing."""
        return Backend


class _Backend(TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        # On every worker before the group starts, which reads the variable, and whose own words for a GPU that cannot
        # be used would pass for a lost connection.
        worker_group.execute(_name_interface)
        if backend_config.backend == "nccl":
            worker_group.execute(require_cuda)
        super().on_start(worker_group, backend_config)


def _name_interface() -> None:
    """Tell gloo where to listen, unless the node tells it; it would take the address of the host's name."""
    if not os.environ.get(GLOO_INTERFACE):
        name = interface_of(_address_of_node(), psutil.net_if_addrs())
        if name is not None:
            os.environ[GLOO_INTERFACE] = name


def _address_of_node() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def interface_of(address: str, interfaces: Mapping[str, Iterable[Any]]) -> str | None:
    """Return the name of the interface that has an address, or None if none has.

    Args:
        address: of the node.
        interfaces: their addresses by name, as psutil gives them.
    """
    return next((name for name, owned in interfaces.items() if any(one.address == address for one in owned)), None)
