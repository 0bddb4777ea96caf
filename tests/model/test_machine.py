"""Limits of control groups as fake files have them, and of a real taskset; expected numbers follow from the files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model import machine
from model.machine import core_quota, memory_limit, short_folder, usable_cores, usable_memory

V2 = "40 23 0:28 {root} {mounted} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
V1 = "40 23 0:28 {root} {mounted} rw - cgroup cgroup rw,{controllers}\n"


def fake(tmp_path: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write what /proc/self and /sys/fs/cgroup would hold, and return the former."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text(groups)
    (tmp_path / "proc" / "mountinfo").write_text(mounts)
    return tmp_path / "proc"


def test_limits_of_a_container_with_a_namespace_of_its_own_are_those_at_the_mount(tmp_path: Path) -> None:
    files = {"fs/cpu.max": "150000 100000\n", "fs/memory.max": "4294967296\n"}
    proc = fake(tmp_path, "0::/\n", V2.format(root="/", mounted=tmp_path / "fs"), files)
    assert core_quota(proc) == 1.5
    assert memory_limit(proc) == 4 * 2**30


def test_the_smallest_limit_of_all_groups_around_a_process_counts(tmp_path: Path) -> None:
    files = {
        "fs/user.slice/cpu.max": "200000 100000\n",
        "fs/user.slice/a.scope/cpu.max": "max 100000\n",
        "fs/user.slice/memory.max": "max\n",
        "fs/user.slice/a.scope/memory.max": "1000000000\n",
        "fs/other.slice/memory.max": "1000\n",
    }
    proc = fake(tmp_path, "0::/user.slice/a.scope\n", V2.format(root="/", mounted=tmp_path / "fs"), files)
    assert (core_quota(proc), memory_limit(proc)) == (2.0, 1e9)


def test_version_1_has_a_mount_for_each_controller(tmp_path: Path) -> None:
    files = {
        "cpu/slurm/job/cpu.cfs_quota_us": "250000\n",
        "cpu/slurm/job/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/slurm/job/memory.limit_in_bytes": "2000000000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",  # what the kernel shows where there is no limit
    }
    groups = "9:name=systemd:/elsewhere\n4:memory:/slurm/job\n2:cpu,cpuacct:/slurm/job\n0::/\n"
    mounts = V1.format(root="/", mounted=tmp_path / "cpu", controllers="cpu,cpuacct")
    mounts += V1.format(root="/", mounted=tmp_path / "memory", controllers="memory")
    proc = fake(tmp_path, groups, mounts, files)
    assert (core_quota(proc), memory_limit(proc)) == (2.5, 2e9)


def test_a_container_without_a_namespace_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    mounts = V1.format(root="/docker/0123", mounted=tmp_path / "a\\040b", controllers="memory")
    files = {"a b/memory.limit_in_bytes": "3000000000\n"}
    assert memory_limit(fake(tmp_path, "4:memory:/docker/0123\n", mounts, files)) == 3e9


@pytest.mark.parametrize("text", ["", "many\n", "100000\n", "100000 0\n", "-1 x\n", "\0"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, text: str) -> None:
    files = {"fs/cpu.max": text, "fs/memory.max": text}
    proc = fake(tmp_path, "0::/\nodd\n", "odd\n\n" + V2.format(root="/", mounted=tmp_path / "fs"), files)
    assert core_quota(proc) is None
    assert memory_limit(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.5, 1), (2.0, 2), (3.999, 3), (16.0, 8)])
def test_a_quota_leaves_whole_cores_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "core_quota", lambda: quota)
    assert usable_cores() == cores


def test_memory_is_that_of_the_machine_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, expected in ((None, there), (1e9, 10**9), (1e18, there)):
        monkeypatch.setattr(machine, "memory_limit", lambda limit=limit: limit)
        assert usable_memory() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_bound_to_one_core_counts_one_everywhere() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from model.machine import usable_cores\n"
        "from orchestrator.cluster.capacity import local_cluster\n"
        "from orchestrator.doctor.surroundings import limits\n"
        "print(usable_cores(), local_cluster().total('CPU'), limits()['cores'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1.0", "1"]


def test_a_quota_alone_holds_torchs_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "core_quota", lambda: None)
    machine.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(machine, "core_quota", lambda: 1.0)
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    machine.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_short_folder_is_private_and_never_that_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = short_folder(40)
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert short_folder(3) is None
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 12345)
    squatted = [Path(parent) / f"rnc-{os.getuid()}" for parent in ("/tmp", "/var/tmp")]
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    try:
        for one in squatted:
            one.mkdir()  # by this user, who is another than the one who asks
        assert short_folder(40) is None
    finally:
        for one in squatted:
            one.rmdir()


def test_loader_processes_hand_over_images_under_a_long_tmpdir(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "import tempfile, torch; from torch.utils.data import DataLoader; from model.machine import shorten_sockets\n"
        "shorten_sockets()\n"
        "print(sum(len(one) for one in DataLoader([torch.ones(3)] * 4, batch_size=None, num_workers=1)))\n"
        "print(tempfile.gettempdir())"
    )
    # Without the shorter path the loader's process fails beside its queue, and the loader waits for ever.
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["12", str(folder)], done.stderr
    assert not list(folder.iterdir())
