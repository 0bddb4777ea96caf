"""What outlives a Ray whose driver was killed; stand-ins for its processes hold a file of its session open."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import leftover
from orchestrator.process import this_process

Agent = Callable[[Path], psutil.Process]


@pytest.fixture
def ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
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
    (session / leftover.SIGNATURE).write_text(driver)
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
    assert [text.partition(" ")[0] for text in leftover.end_leftovers()] == [str(orphan.pid)]
    assert not orphan.is_running()
    assert all(one.is_running() for one in (living, unsigned, elsewhere))
    assert leftover.orphaned_sessions() == []  # looked for once


def test_a_session_whose_name_begins_alike_is_another(ray_folder: Path, agent: Agent) -> None:
    signed(ray_folder / "session_1", dead_driver())
    other = agent(signed(ray_folder / "session_12", this_process()))
    assert leftover.end_leftovers() == []
    assert other.is_running()


def test_a_driver_takes_its_own_signature_back(ray_folder: Path) -> None:
    mine, other = ray_folder / "session_1", signed(ray_folder / "session_2", "other 12 345")
    mine.mkdir()
    leftover.sign(mine)
    leftover.withdraw()
    assert not (mine / leftover.SIGNATURE).exists()
    assert (other / leftover.SIGNATURE).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_what_another_user_signed_is_left_alone(ray_folder: Path, agent: Agent) -> None:
    session = signed(ray_folder / "session_1", dead_driver())
    os.chown(session / leftover.SIGNATURE, 12345, -1)
    process = agent(session)
    assert leftover.end_leftovers() == []
    assert process.is_running()
