"""Checks of what surrounds the processes: limits of cores, memory and files, temporary folders, stale variables."""

import os
import resource
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from requests.utils import get_netrc_auth

from model.machine import LONGEST_SOCKET, MULTIPROCESSING_SOCKET, core_quota, short_folder, usable_cores, usable_memory
from orchestrator.cluster.environment import overruled, ray_folder
from orchestrator.doctor.finding import DRIVER, Finding, Level, finding
from orchestrator.errors import UserError
from orchestrator.site import Site
from orchestrator.tracking import rest, server

Facts = Mapping[str, Any]
GB = 1e9
LEAST_MEMORY, WANTED_MEMORY = 1 * GB, 4 * GB
"""A Ray of our own takes some 0.6 GB, and each process that has imported torch some 0.3 GB."""
LEAST_FILES, WANTED_FILES = 256, 1024
"""Open files of a process; Ray's own hold some hundreds."""


def limits() -> Facts:
    """What this process may use of the machine."""
    return {
        "cores": usable_cores(),
        "all_cores": os.cpu_count() or 1,
        "quota": core_quota(),
        "memory": usable_memory(),
        "all_memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def judge_limits(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether cores, memory and open files suffice for trainings."""
    seen = f"{facts['cores']} of {facts['all_cores']}"
    if facts["cores"] < facts["all_cores"]:
        quota = facts["quota"]
        by = "the affinity of the process" if quota is None else f"the limit of a control group, {quota:g}"
        seen += f", by {by}"
    starved = facts["quota"] is not None and facts["quota"] < 1.0
    way_out = "give the container a core or more: --cpus, cpus in compose, limits.cpu in Kubernetes"
    yield finding("cores", where, "warn" if starved else "ok", seen, way_out)
    memory = facts["memory"]
    level: Level = "fail" if memory < LEAST_MEMORY else "warn" if memory < WANTED_MEMORY else "ok"
    seen = f"{memory / GB:.1f} GB"
    if memory < facts["all_memory"]:
        seen += f" by the limit of a control group, of {facts['all_memory'] / GB:.1f} GB"
    way_out = "raise the limit: --memory, mem_limit in compose, limits.memory in Kubernetes, --mem in Slurm"
    yield finding("memory", where, level, seen, way_out)
    files = facts["files"]
    level = "ok" if files < 0 or files >= WANTED_FILES else "fail" if files < LEAST_FILES else "warn"
    seen = "no limit" if files < 0 else f"{files} at once"
    yield finding("open files", where, level, seen, "raise the limit: ulimit -n 4096, --ulimit nofile in Docker")


def temporary() -> Facts:
    """Where sockets and temporary files go; a path may be too long for sockets."""
    folder = tempfile.gettempdir()
    most = LONGEST_SOCKET - MULTIPROCESSING_SOCKET
    found: dict[str, Any] = {"folder": folder, "loaders": True}
    if len(os.fsencode(folder)) > most:
        found["loaders"] = short_folder(most) is not None
    try:
        ray = ray_folder(os.environ)
        return found | {"ray": None if ray is None else str(ray)}
    except UserError as error:
        return found | {"problem": str(error)}


def judge_temporary(where: str, facts: Facts) -> Iterator[Finding]:
    """Judge whether sockets find a folder whose path is short enough."""
    check, way_out = "temporary folder", "set TMPDIR to a folder of your own with a short path, such as /tmp"
    if problem := facts.get("problem"):
        yield finding(check, where, "fail", problem, "as it says")
    elif not facts["loaders"]:
        yield finding(check, where, "fail", f"{facts['folder']} is too long a path for sockets", way_out)
    else:
        moved = f"; Ray's session goes to {facts['ray']}, as there it would not work" if facts["ray"] else ""
        yield finding(check, where, "ok", f"{facts['folder']}{moved}")


def judge_variables(site: Site, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Judge what shells have set for other work, and which is done without here."""
    # Without their values, which may be passwords.
    names = [*overruled(environ, is_local=site.ray_address is None)]
    if site.tracking_uri is None:
        names += [name for name in environ if name.startswith(server.MISLEADING)]
    way_out = "nothing has to be done; to be rid of this line, unset them where the shell sets them"
    seen = (
        f"set for other work, and not used by rnc: {', '.join(names)}" if names else "none that is left by other work"
    )
    yield finding("variables", DRIVER, "warn" if names else "ok", seen, way_out)
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not environ.get("RAY_AUTH_TOKEN") and not os.access(path, os.R_OK):
        is_needed = site.ray_address is not None
        seen = f"RAY_AUTH_TOKEN_PATH names {Path(path).absolute()}, which cannot be read"
        way_out = "name the file with the cluster's token, or unset it"
        yield finding("ray token", DRIVER, "fail" if is_needed else "warn", seen, way_out)
    if site.tracking_uri is not None and get_netrc_auth(site.tracking_uri):
        host = urlsplit(site.tracking_uri).hostname
        if rest.is_named_key():
            seen = f"~/.netrc has a password for {host}, too; what MLFLOW_TRACKING_* names is used"
            yield finding(
                "netrc", DRIVER, "warn", seen, "remove the line from ~/.netrc, if the server wants no such key"
            )
        else:
            yield finding("netrc", DRIVER, "ok", f"~/.netrc has the password for {host}")
