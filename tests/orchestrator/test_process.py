"""Processes as they are named in tags, held against /proc and against processes that really end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.process import exists_here, this_process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no /proc")
def test_a_driver_is_named_as_in_tags_of_older_versions_and_has_ended_once_it_is_a_zombie():
    def tag(pid: int) -> str:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{socket.gethostname()} {pid} {fields[19]}"  # field 22 of proc(5), starttime in ticks since boot

    assert this_process() == tag(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as process:
        driver = tag(process.pid)
        assert exists_here(driver)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
        assert not exists_here(driver)
