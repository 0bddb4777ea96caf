"""One cluster for all tests that need one, and one suite that was submitted to it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.deploy.leaks import watched_command_lines
from tests.deploy.processes import StartError
from tests.deploy.stack import ROOT, Stack, stack

TABLE = f"""
suite: stack
extends: {ROOT}/experiments/miniature/table5_exponents.yaml
only: ["RetinaNet-Conf, alpha 0.0", "RetinaNet-Conf, alpha 0.4"]
seeds: [0]
defaults:
  split: val
  train:
    data: {{num_train_images: 48, num_val_images: 16}}
    schedule: {{epochs: 2, lr_drop_epochs: [1], validate_every: 1}}
resources: {{num_workers: 2, num_nodes: 2, cpus_per_worker: 1}}
"""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A suite that a user sent to the cluster from elsewhere, and saw to its end."""

    stack: Stack
    out: str
    err: str
    seconds: float
    command_lines: frozenset[bytes]
    """Of all processes of the machine meanwhile."""


@pytest.fixture(scope="session")
def services() -> Iterator[Stack]:
    """The whole cluster."""
    try:
        with stack() as running:
            yield running
    except StartError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def submitted(services: Stack) -> Submitted:
    """A table of two rows and one training, over both nodes."""
    (services.folder / "table.yaml").write_text(TABLE)
    started = time.monotonic()
    with watched_command_lines() as seen:
        done = services.rnc("submit", "table.yaml", "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = time.monotonic() - started
    return Submitted(stack=services, out=done.stdout, err=done.stderr, seconds=seconds, command_lines=frozenset(seen))
