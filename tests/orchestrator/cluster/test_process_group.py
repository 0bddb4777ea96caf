"""Over which interface the workers of a training talk."""

from collections import namedtuple

import pytest
import torch
from ray.train.torch import TorchConfig

from orchestrator.cluster.process_group import GroupConfig, NoGroup, interface_of

Address = namedtuple("Address", "address")
INTERFACES = {
    "lo": [Address("127.0.0.1"), Address("::1")],
    "eth0": [Address("192.0.2.2"), Address("fd00::2")],
    "docker0": [Address("172.17.0.1")],
}


def test_the_interface_is_the_one_that_has_the_address_of_the_node():
    assert interface_of("192.0.2.2", INTERFACES) == "eth0"
    assert interface_of("fd00::2", INTERFACES) == "eth0"
    assert interface_of("127.0.0.1", INTERFACES) == "lo"
    assert interface_of("192.0.2.3", INTERFACES) is None


def test_the_group_is_started_by_a_backend_that_names_it_first():
    assert GroupConfig(backend="gloo").backend_cls.on_start.__module__ == "orchestrator.cluster.process_group"


@pytest.mark.parametrize("config", [NoGroup(), GroupConfig(backend="gloo"), GroupConfig(backend="nccl")])
def test_a_worker_for_cpus_on_a_node_with_gpus_takes_none_of_them(config: TorchConfig, monkeypatch: pytest.MonkeyPatch):
    taken: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cuda", 0))
    with TorchConfig().train_func_context():
        assert taken  # as Ray itself has it
    taken.clear()
    with config.train_func_context():
        assert not taken
