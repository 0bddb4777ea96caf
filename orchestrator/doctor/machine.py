"""Judges what was seen on one machine; knows nothing of the others."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.figures.table import Column, Table

Level = Literal["ok", "warn", "fail"]
COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}
SEEN_WIDTH = 80
"""Characters of what was seen that a line of a terminal has room for."""
MOST_NAMED = 4
"""Machines that are named where more were seen alike."""
EVERYWHERE = "all"
"""Where a finding belongs that is about all machines together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was seen of one thing on one machine, and the way out if it is not right."""

    check: str
    where: str
    level: Level
    seen: str
    way_out: str = ""

    def __post_init__(self) -> None:
        if self.level != "ok" and not self.way_out:
            raise ValueError(f"{self.check}, {self.where}: {self.seen!r} is {self.level} without a way out")


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if anything is red, else 0."""
    return int(any(finding.level == "fail" for finding in findings))


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Join what was seen alike on several machines; checks stay in order, the worst of each comes first."""
    alike: dict[tuple[str, Level, str, str], list[str]] = {}
    for one in findings:
        alike.setdefault((one.check, one.level, one.seen, one.way_out), []).append(one.where)
    checks = list(dict.fromkeys(one.check for one in findings))
    worst = list(COLORS)[::-1]
    joined = [
        Finding(check=check, where=_named(list(dict.fromkeys(where))), level=level, seen=seen, way_out=way_out)
        for (check, level, seen, way_out), where in alike.items()
    ]
    return sorted(joined, key=lambda one: (checks.index(one.check), worst.index(one.level)))


def findings_table(findings: Sequence[Finding], *, for_people: bool) -> Table:
    """For people what is alike stands once, and the ways out stand below; for programs every finding is a row."""
    columns = [Column(name, numeric=False) for name in ("check", "where", "state", "seen")]
    title = f"rnc doctor: {_counted(findings)}"
    if not for_people:
        rows = tuple((one.check, one.where, COLORS[one.level], one.seen, one.way_out or None) for one in findings)
        return Table(title=title, columns=(*columns, Column("way out", numeric=False)), rows=rows)
    shown = merged(findings)
    ways = [one for level in ("fail", "warn") for one in shown if one.level == level]
    return Table(
        title=title,
        columns=tuple(columns),
        rows=tuple((one.check, one.where, COLORS[one.level], _short(one.seen)) for one in shown),
        notes=tuple(map(_note, ways)),
    )


def _note(one: Finding) -> str:
    whole = f"{one.seen}\n    " if one.seen != _short(one.seen) else ""
    return f"{COLORS[one.level]}: {one.check}, {one.where}: {whole}{one.way_out}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SEEN_WIDTH else f"{line[: SEEN_WIDTH - 1]}…"


def _named(where: Sequence[str]) -> str:
    if len(where) <= MOST_NAMED:
        return ", ".join(where)
    return f"{', '.join(where[: MOST_NAMED - 1])} and {len(where) - MOST_NAMED + 1} others"


def _counted(findings: Sequence[Finding]) -> str:
    numbers = {color: sum(one.level == level for one in findings) for level, color in COLORS.items()}
    return ", ".join(f"{number} {color}" for color, number in numbers.items() if number) or "nothing was looked at"


Facts = Mapping[str, Any]
VULNERABLE = (
    ("torch", "2.10", "CVE-2026-24747: a checkpoint that is loaded can run code"),
    ("ray", "2.52", "CVE-2025-62593: a page in a browser can run code on the cluster, and there are no tokens"),
    ("mlflow", "3.17", "CVE-2026-116690"),
)
"""Packages, the first version without a vulnerability, and which it is."""
GB, MB = 1e9, 1e6
LEAST_SHM, WANTED_SHM = 100 * MB, 1 * GB
LEAST_DISK, WANTED_DISK = 1 * GB, 10 * GB
FULLEST = 0.95
"""Where Ray stops to spill objects to a disk."""
SLOWEST_MB_PER_S = 20.0
BUSY_GPU = 0.05
"""The part of a GPU's memory that others may hold without a word."""
MOST_SKEW, WANTED_SKEW = 60.0, 2.0
"""Seconds between two clocks."""


def judge_machine(where: str, facts: Facts) -> list[Finding]:
    """Judge all that one machine has told of itself."""
    judges: dict[str, Callable[[str, Facts], Iterator[Finding]]] = {
        "versions": judge_versions,
        "gpus": judge_gpus,
        "shm": judge_shm,
        "disks": judge_disks,
        "storage": judge_storage,
        "data": judge_data,
        "weights": judge_weights,
        "mlflow": judge_mlflow,
        "listeners": judge_listeners,
    }
    found: list[Finding] = []
    for name, judge in judges.items():
        seen = facts.get(name, {})
        if "error" in seen:
            way_out = f"mend what the message says on {where}; without it this cannot be judged"
            found.append(Finding(check=name, where=where, level="fail", seen=str(seen["error"]), way_out=way_out))
        else:
            found += judge(where, seen)
    return found


def is_older(version: str, bound: str) -> bool:
    """Whether a version comes before another; what is behind its numbers does not count."""
    return _numbers(version) < _numbers(bound)


def _numbers(version: str) -> list[int]:
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = part[: next((place for place, letter in enumerate(part) if not letter.isdigit()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return numbers


def judge_versions(where: str, facts: Facts) -> Iterator[Finding]:
    """No package is missing, and none has a known vulnerability."""
    faults = []
    for name, bound, why in VULNERABLE:
        if not facts.get(name):
            faults.append(f"{name} is not installed")
        elif is_older(facts[name], bound):
            faults.append(f"{name} {facts[name]} is older than {bound} ({why})")
    seen = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "ray", "mlflow") if facts.get(name))
    yield _finding("versions", where, "fail" if faults else "ok", "; ".join(faults) or seen, _install())


def _install() -> str:
    return "install requirements.lock of this checkout there, or use the image that is built from it"


def judge_gpus(where: str, facts: Facts) -> Iterator[Finding]:
    """GPUs are free, and torch can use them; none at all is no fault."""
    devices = facts["devices"]
    if not devices:
        yield _finding("gpus", where, "ok", "no GPU: trainings run on the CPU")
        return
    names = sorted({device["name"] for device in devices})
    seen = f"{len(devices)} x {' and '.join(names)}, driver {facts['driver']}"
    if not facts["torch_sees"]:
        way_out = "install a torch that is built for CUDA, and a driver that is new enough for it"
        yield _finding("gpus", where, "fail", f"{seen}, but torch can use none", way_out)
        return
    busy = [place for place, device in enumerate(devices) if device["used"] > BUSY_GPU * device["total"]]
    if busy:
        held = ", ".join(f"GPU {place}: {devices[place]['used'] / GB:.1f} GB{_by(devices[place])}" for place in busy)
        way_out = "end the processes that hold the memory, or leave these GPUs out with CUDA_VISIBLE_DEVICES"
        yield _finding("gpus", where, "warn", f"{seen}; in use by others: {held}", way_out)
        return
    yield _finding("gpus", where, "ok", seen)


def _by(device: Facts) -> str:
    return f" (process {', '.join(map(str, device['pids']))})" if device["pids"] else ""


def judge_shm(where: str, facts: Facts) -> Iterator[Finding]:
    """Shared memory is large enough for Ray's objects and for loader processes."""
    if not facts:
        yield _finding("/dev/shm", where, "ok", "this system has none")
        return
    level: Level = "fail" if facts["free"] < LEAST_SHM else "warn" if facts["total"] < WANTED_SHM else "ok"
    seen = f"{facts['free'] / GB:.2f} of {facts['total'] / GB:.2f} GB free"
    way_out = "give the container more: --shm-size=4g, shm_size in compose, an emptyDir of medium Memory in Kubernetes"
    yield _finding("/dev/shm", where, level, seen, way_out)


def judge_disks(where: str, facts: Facts) -> Iterator[Finding]:
    """No disk is full, or soon will be."""
    for name, disk in facts.items():
        free, total = disk["free"], disk["total"]
        is_tight = free < WANTED_DISK or free < (1 - FULLEST) * total
        level: Level = "fail" if free < LEAST_DISK else "warn" if is_tight else "ok"
        setting = {"Ray": "RAY_TMPDIR"}.get(name, name)
        seen = f"{disk['path']}: {free / GB:.0f} of {total / GB:.0f} GB free"
        yield _finding(f"disk of {name}", where, level, seen, f"free some, or set {setting} to another disk")


def judge_storage(where: str, facts: Facts) -> Iterator[Finding]:
    """What is written in the storage can be read, listed and deleted, quickly, and is seen by everybody."""
    broken = [name for name in ("same", "listed", "deleted") if not facts[name]]
    write, read = facts["write_mb_per_s"], facts["read_mb_per_s"]
    seen = f"{facts['path']}: write {write:.0f} MB/s, read {read:.0f} MB/s"
    if broken:
        words = {"same": "read back with other content", "listed": "not listed", "deleted": "not deleted"}
        yield _finding(
            "storage",
            where,
            "fail",
            f"{facts['path']}: a file of 16 MB was {', '.join(words[name] for name in broken)}",
            "set RNC_HOME to storage that keeps what is written: NFS, Lustre, a mounted volume",
        )
    elif min(write, read) < SLOWEST_MB_PER_S:
        way_out = f"below {SLOWEST_MB_PER_S:.0f} MB/s checkpoints hold trainings up; set RNC_HOME to faster storage"
        yield _finding("storage", where, "warn", seen, way_out)
    else:
        yield _finding("storage", where, "ok", seen)
    if facts["shared"] is False:
        yield _finding(
            "storage is shared",
            where,
            "fail",
            f"a file that the driver wrote to {facts['path']} is not there",
            "mount the same storage on all nodes, under the same path, and set RNC_HOME to it",
        )
    elif facts["shared"]:
        yield _finding("storage is shared", where, "ok", "the driver's file is there")


def judge_data(where: str, facts: Facts) -> Iterator[Finding]:
    """All splits are there."""
    for name, split in facts.items():
        if "missing" in split:
            way_out = "set RNC_COCO_ROOT to a folder that holds the data on every node, under the same path"
            yield _finding("data", where, "fail", f"{split['missing']} is not there", way_out)
        else:
            yield _finding("data", where, "ok", f"{name}: {split['images']} images, annotations {split['sha256']}")


def judge_weights(where: str, facts: Facts) -> Iterator[Finding]:
    """All files of first weights are there."""
    for name, file in facts.items():
        if "missing" in file:
            way_out = "put the file there, or set RNC_WEIGHTS to a folder that holds it on every node"
            yield _finding("weights", where, "fail", f"{file['missing']} is not there", way_out)
        else:
            yield _finding("weights", where, "ok", f"{name}: sha256 {file['sha256']}")


def judge_mlflow(where: str, facts: Facts) -> Iterator[Finding]:
    """The server is reached, and takes the key that this machine has."""
    if not facts:
        return
    if problem := facts.get("away"):
        way_out = "start the server, correct MLFLOW_TRACKING_URI, or open the way to it for this machine"
        yield _finding("mlflow", where, "fail", problem, way_out)
        return
    if problem := facts.get("refused"):
        way_out = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here as the server knows them"
        yield _finding("mlflow", where, "fail", problem, way_out)
    else:
        yield _finding("mlflow", where, "ok", f"{facts['uri']} answers")
    if facts.get("version") and is_older(facts["version"], VULNERABLE[2][1]):
        seen = f"the server is MLflow {facts['version']}, older than {VULNERABLE[2][1]} ({VULNERABLE[2][2]})"
        yield _finding("mlflow version", where, "fail", seen, "update the server; back up its database before")
    if "skew" in facts:
        yield judge_skew("clock of MLflow", where, facts["skew"])


def judge_skew(check: str, where: str, skew: float) -> Finding:
    """Two clocks agree: signatures, tokens and signs of life carry times."""
    level: Level = "fail" if skew > MOST_SKEW else "warn" if skew > WANTED_SKEW else "ok"
    return _finding(check, where, level, f"{skew:.1f} s off", "run an NTP client (chrony) on all machines")


def judge_listeners(where: str, facts: Facts) -> Iterator[Finding]:
    """What listens to the world asks for a key."""
    open_ones = [f"{one['service']} on {address}" for address, one in facts.items() if one["open"]]
    if open_ones:
        way_out = "switch its password or token on, or let it listen on 127.0.0.1; then see who has used it already"
        yield _finding("ports", where, "fail", f"open to the world without a key: {', '.join(open_ones)}", way_out)
        return
    kinds = sorted({one["service"] for one in facts.values()})
    seen = f"beyond localhost: {', '.join(kinds)}; none of those that were asked works without a key"
    yield _finding("ports", where, "ok", seen if kinds else "nothing of ours listens beyond localhost")


def _finding(check: str, where: str, level: Level, seen: str, way_out: str = "") -> Finding:
    return Finding(check=check, where=where, level=level, seen=seen, way_out="" if level == "ok" else way_out)
