"""The identity of a process, by host, id and start, as tags and locks keep it; and whether it still exists."""

import os
import socket

import psutil


def exists_here(driver: str) -> bool | None:
    """Say whether a process that `this_process` named still exists; None if it is one of another host."""
    host, _, process = driver.partition(" ")
    if host != socket.gethostname():
        return None
    pid = process.partition(" ")[0]
    # A tag of MLflow may hold anything; a process's id has seven digits at most.
    return pid.isascii() and pid.isdigit() and len(pid) < 10 and process == identity(int(pid))


def this_process() -> str:
    """Name this process by host, id and start, so that a later process with the same id is told apart."""
    return f"{socket.gethostname()} {identity(os.getpid())}"


def identity(pid: int) -> str | None:
    """Return a process's id and its start in clock ticks since boot, or None if it has ended."""
    if not psutil.LINUX:  # elsewhere the start as psutil tells it moves whenever the clock is set
        return f"{pid} ?" if psutil.pid_exists(pid) else None
    try:
        booted = psutil.boot_time()  # first: releases before 7.1 add the boot time that was last asked for
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        # Ticks, since seconds of the calendar would change with the clock, and older drivers' tags hold ticks.
        return f"{pid} {round((process.create_time() - booted) * os.sysconf('SC_CLK_TCK'))}"
    except psutil.Error:
        return None
