"""The processes of Ray.

Stand-ins with their names are killed, or hold a file of a session open; a socket stands for a cluster.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from orchestrator.cluster import ray_processes
from orchestrator.cluster.ray_processes import PARTS, RayWatch
from orchestrator.process import this_process

Agent = Callable[[Path], psutil.Process]


@pytest.fixture
def ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Not by RAY_TMPDIR: where the path is too long for sockets, sessions lie elsewhere.
    monkeypatch.setattr(ray_processes, "sessions_folder", lambda: tmp_path / "ray")
    return tmp_path / "ray"


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Starts what writes to the log of a session, as Ray's agents do after their names have replaced their words."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(session: Path) -> psutil.Process:
        (session / "logs").mkdir(parents=True, exist_ok=True)
        with (session / "logs" / "agent.log").open("w") as log:
            begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=log))
        return psutil.Process(begun[-1].pid)

    yield start
    for process in begun:
        process.kill()
        process.wait()


def signed(session: Path, driver: str) -> Path:
    session.mkdir(parents=True)
    (session / ray_processes.SIGNATURE).write_text(driver)
    return session


def dead_driver() -> str:
    """A process of this host that has ended."""
    code = "from orchestrator.process import this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_processes_of_a_dead_driver_are_ended_and_no_others(ray_folder: Path, agent: Agent) -> None:
    dead = dead_driver()
    orphan, living = (
        agent(signed(ray_folder / "session_1", dead)),
        agent(signed(ray_folder / "session_2", this_process())),
    )
    unsigned, elsewhere = agent(ray_folder / "session_3"), agent(signed(ray_folder / "session_4", "other 12 345"))
    (ray_folder / "session_latest").symlink_to(ray_folder / "session_1")
    assert [text.partition(" ")[0] for text in ray_processes.end_leftovers()] == [str(orphan.pid)]
    assert not orphan.is_running()
    assert all(one.is_running() for one in (living, unsigned, elsewhere))
    assert ray_processes.orphaned_sessions() == []  # looked for once


def test_somebody_who_looks_at_the_logs_of_a_dead_driver_is_left_alone(ray_folder: Path) -> None:
    session = signed(ray_folder / "session_1", dead_driver())
    log = session / "agent.log"
    log.write_text("")
    reads = [sys.executable, "-c", f"import time; file = open({str(log)!r}); time.sleep(60)"]
    with log.open("a") as file:
        at_it = [subprocess.Popen(reads), subprocess.Popen([str(shutil.which("sleep")), "60"], stdout=file)]
    time.sleep(0.5)
    try:
        assert ray_processes.end_leftovers() == []
        assert [process.poll() for process in at_it] == [None, None]
    finally:
        for process in at_it:
            process.kill()
            process.wait()


def test_a_session_whose_name_begins_alike_is_another(ray_folder: Path, agent: Agent) -> None:
    signed(ray_folder / "session_1", dead_driver())
    other = agent(signed(ray_folder / "session_12", this_process()))
    assert ray_processes.end_leftovers() == []
    assert other.is_running()


def test_a_driver_takes_its_own_signature_back_once_nothing_is_left(ray_folder: Path, agent: Agent) -> None:
    mine, other = ray_folder / "session_1", signed(ray_folder / "session_2", "other 12 345")
    mine.mkdir()
    ray_processes.sign(mine)
    left = agent(mine)
    ray_processes.withdraw()
    assert (mine / ray_processes.SIGNATURE).exists()
    left.kill()
    left.wait()
    ray_processes.withdraw()
    assert not (mine / ray_processes.SIGNATURE).exists()
    assert (other / ray_processes.SIGNATURE).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_what_another_user_signed_is_left_alone(ray_folder: Path, agent: Agent) -> None:
    session = signed(ray_folder / "session_1", dead_driver())
    os.chown(session / ray_processes.SIGNATURE, 12345, -1)
    process = agent(session)
    assert ray_processes.end_leftovers() == []
    assert process.is_running()


def test_signatures_that_are_no_text_or_no_file_are_left_alone_and_not_waited_for(ray_folder: Path) -> None:
    file = signed(ray_folder / "session_1", "") / ray_processes.SIGNATURE
    file.write_bytes(b"\xff\xfe")
    os.mkfifo(signed(ray_folder / "session_2", "") / "pipe")
    os.replace(ray_folder / "session_2" / "pipe", ray_folder / "session_2" / ray_processes.SIGNATURE)
    assert ray_processes.orphaned_sessions() == []
    ray_processes.withdraw()
    assert file.exists()


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
    monkeypatch.setattr(ray_processes, "LOOK_SECONDS", 0.05)
    looking = RayWatch(is_local=True)
    is_interrupted = False
    try:
        with looking.interrupting():
            assert looking.why == ""
            part.kill()
            time.sleep(60)
    except KeyboardInterrupt:
        is_interrupted = True
    assert is_interrupted
    name = Path(str(part.args[0])).name  # type: ignore[index]
    assert looking.why.startswith(f"Ray has ended: its {name}, process {part.pid}, was killed or died")


@pytest.mark.usefixtures("part")
def test_a_ray_that_is_there_interrupts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_processes, "LOOK_SECONDS", 0.01)
    looking = RayWatch(is_local=True)
    with looking.interrupting():
        time.sleep(0.1)
    assert looking.why == ""


def test_a_joined_cluster_may_be_silent_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        looking = RayWatch(is_local=False)
        assert looking.why == ""
    assert looking.why == ""  # its GCS may be starting again
    monkeypatch.setattr(ray_processes, "SILENT_SECONDS", 0.0)
    assert looking.why.startswith(f"the Ray cluster at {address} went away (")


def test_a_cluster_that_is_out_of_reach_from_the_beginning_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.setattr(ray_processes, "SILENT_SECONDS", 0.0)
    assert RayWatch(is_local=False).why == ""
