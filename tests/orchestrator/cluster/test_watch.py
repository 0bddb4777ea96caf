"""The watch over Ray; stand-ins with the names of its processes are killed, and a socket stands for a cluster."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cluster import watch
from orchestrator.cluster.watch import PARTS, RayWatch


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    program = tmp_path / request.param
    shutil.copy(str(shutil.which("sleep")), program)
    process = subprocess.Popen([program, "60"])
    time.sleep(0.2)  # until then it has the name of this process
    yield process
    process.kill()
    process.wait()


def test_the_death_of_a_part_of_our_own_ray_interrupts_what_waits_for_it(
    part: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.05)
    looking = RayWatch(is_local=True)
    is_interrupted = False
    started = time.monotonic()
    try:
        with looking.interrupting():
            assert looking.why == ""
            part.kill()
            time.sleep(20)
    except KeyboardInterrupt:
        is_interrupted = True
    assert is_interrupted
    assert time.monotonic() - started < 10
    name = Path(str(part.args[0])).name  # type: ignore[index]
    assert looking.why.startswith(f"Ray has ended: its {name}, process {part.pid}, was killed or died")


@pytest.mark.usefixtures("part")
def test_a_ray_that_is_there_interrupts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    looking = RayWatch(is_local=True)
    with looking.interrupting():
        time.sleep(0.1)
    assert looking.why == ""


def test_a_joined_cluster_may_be_silent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        monkeypatch.setattr(watch.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        looking = RayWatch(is_local=False)
        assert looking.why == ""
    assert looking.why == ""  # its GCS may be starting again
    monkeypatch.setattr(watch, "SILENT_SECONDS", 0.0)
    assert looking.why.startswith(f"the Ray cluster at {address} went away (")
