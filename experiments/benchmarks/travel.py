"""What carry.sh decides: the wheels of the lock file that a machine lacks, how they shrink, and what travels together.

Everything works by names, sizes and the wheels' own lists; nothing is installed or imported.
"""

import argparse
import csv
import io
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement

LEFT_OUT = {
    "ray": ("ray/jars", "ray/rllib", "ray/llm", "ray/dashboard/client"),  # 76 MiB without: 30
    "mlflow": ("mlflow/server/js/build",),  # the pages of its UI
}
"""Folders of wheels that no training, scoring or report reads."""
NEVER = {
    *("mlflow-skinny", "mlflow-tracing"),  # file for file in mlflow's own wheel
    *("virtualenv", "distlib", "platformdirs", "python-discovery", "py-spy"),  # Ray's, to install packages, to profile
    *("ruff", "mypy", "mypy-extensions", "librt", "ast-serialize", "pathspec", "types-pyyaml"),
}
"""Packages that no program imports which runs there."""
SHRUNK_FROM = 2**20
"""Bytes of a wheel from which it is worth the seconds to compress it anew."""
MIB = 2**20


def missing(lock: str, there: Iterable[str], python: str, only: Sequence[str] = ()) -> str:
    """Return the part of a lock file, hashes included, that a Linux machine lacks.

    Args:
        lock: the text of a requirements file.
        there: the packages that the machine has, in whatever version; PyTorch and its CUDA are taken for granted.
        python: its version of Python, as 3.12.
        only: if not empty, the only packages to think of.

    Raises:
        ValueError: the lock file has not all of `only`.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    has, asked = {_canonical(name) for name in there} | NEVER, {_canonical(name) for name in only}
    kept = {}
    for requirement, hashes in _requirements(lock):
        name = _canonical(requirement.name)
        is_meant = requirement.marker is None or requirement.marker.evaluate(environment)
        if is_meant and name not in has and not _is_torchs(name) and (not asked or name in asked):
            kept[name] = " \\\n    ".join([f"{requirement.name}{requirement.specifier}", *hashes])
    if unknown := asked - {_canonical(requirement.name) for requirement, _ in _requirements(lock)}:
        raise ValueError(f"the lock file has no {', '.join(sorted(unknown))}")
    return "".join(f"{text}\n" for text in kept.values())


def repack(wheel: Path, folder: Path, left_out: Sequence[str] = ()) -> Path:
    """Write a wheel into another folder, without what lies under some of its paths, and return where.

    Members are compressed by LZMA, which pip reads: binaries take 70 % of what they take by deflate. RECORD, the
    wheel's list of its files, lacks what is left out.

    Raises:
        ValueError: nothing lies under one of the paths; the wheel may have another layout than it had.
    """
    target, unfinished = folder / wheel.name, folder / f"{wheel.name}.part"
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        if absent := [path for path in left_out if not any(_is_under(name, (path,)) for name in names)]:
            raise ValueError(f"{wheel.name} has no {', '.join(absent)}; correct LEFT_OUT in {Path(__file__).name}")
        with zipfile.ZipFile(unfinished, "w") as packed:
            for member in source.infolist():
                if not _is_under(member.filename, left_out):
                    content = source.read(member)
                    if re.fullmatch(r"[^/]+\.dist-info/RECORD", member.filename):  # Ray's holds those of others, too
                        content = _without(content, left_out)
                    # Given as it was, a member keeps its mode: Ray's servers have to be executable.
                    packed.writestr(member, content, zipfile.ZIP_LZMA)
    return unfinished.rename(target)


def turns(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Sort things into as few turns as first fit, largest first, makes of them.

    Args:
        sizes: bytes of each.
        room: bytes that a turn may have.

    Raises:
        ValueError: one thing alone is larger.
    """
    sorted_out: list[list[str]] = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if sizes[name] > room:
            raise ValueError(
                f"{name} has {sizes[name] / MIB:.1f} MiB, a turn at most {room / MIB:.1f} MiB; raise --limit"
            )
        for turn in sorted_out:
            if sum(sizes[other] for other in turn) + sizes[name] <= room:
                turn.append(name)
                break
        else:
            sorted_out.append([name])
    return sorted_out


def _requirements(lock: str) -> Iterator[tuple[Requirement, list[str]]]:
    for line in lock.replace("\\\n", " ").splitlines():
        stated, *hashes = re.split(r"\s+(?=--hash=)", line.partition("#")[0].strip())
        if stated:
            yield Requirement(stated), hashes


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _is_under(name: str, paths: Iterable[str]) -> bool:
    return any(name == path or name.startswith(f"{path}/") for path in paths)


def _without(record: bytes, left_out: Sequence[str]) -> bytes:
    kept = io.StringIO()
    rows = csv.reader(io.StringIO(record.decode()))
    csv.writer(kept, lineterminator="\n").writerows(row for row in rows if row and not _is_under(row[0], left_out))
    return kept.getvalue().encode()


def _is_torchs(name: str) -> bool:
    return name in ("torch", "torchvision", "triton") or (
        name.startswith(("nvidia-", "cuda-")) and name != "nvidia-ml-py"
    )


def print_missing(asked: argparse.Namespace) -> None:
    there = asked.there.read_text(encoding="utf-8").split() if asked.there else []
    print(missing(asked.lock.read_text(encoding="utf-8"), there, asked.python, asked.only.split()), end="")


def shrink(asked: argparse.Namespace) -> None:
    wheels = sorted(asked.wheels.glob("*.whl"))
    for old in asked.into.glob("*.whl*"):
        if old.name not in {wheel.name for wheel in wheels}:  # pip refuses two versions, and a part is no wheel
            old.unlink()
    for wheel in wheels:
        left_out = LEFT_OUT.get(_canonical(wheel.name.partition("-")[0]), ())
        if (asked.into / wheel.name).exists():
            continue
        if left_out or wheel.stat().st_size >= SHRUNK_FROM:
            small = repack(wheel, asked.into, left_out)
            print(f"{small.name}: {wheel.stat().st_size / MIB:.1f} MiB -> {small.stat().st_size / MIB:.1f} MiB")
        else:
            shutil.copyfile(wheel, asked.into / wheel.name)


def sort(asked: argparse.Namespace) -> None:
    sizes = {path.name: path.stat().st_size for path in asked.folder.iterdir() if path.is_file()}
    for number, names in enumerate(turns(sizes, asked.room), start=1):
        turn = asked.folder / f"turn{number}"
        turn.mkdir()
        for name in names:
            (asked.folder / name).rename(turn / name)


def main() -> None:
    """Do one of the things that carry.sh asks for; what a user can mend is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("missing", help="print the part of a lock file that a machine lacks")
    verb.add_argument("lock", type=Path)
    verb.add_argument("--there", type=Path, help="a file with the names of the packages that it has")
    verb.add_argument("--python", default="3.12", help="its version of Python (default: 3.12)")
    verb.add_argument("--only", default="", metavar="NAMES", help="the only packages to think of")
    verb.set_defaults(do=print_missing)
    verb = verbs.add_parser(
        "shrink", help="write the wheels of a folder into another, smaller, which keeps no other wheel"
    )
    verb.add_argument("wheels", type=Path)
    verb.add_argument("into", type=Path)
    verb.set_defaults(do=shrink)
    verb = verbs.add_parser("sort", help="move the files of a folder into turn1/, turn2/ ... in it")
    verb.add_argument("folder", type=Path)
    verb.add_argument("room", type=int, help="bytes that a turn may have")
    verb.set_defaults(do=sort)
    asked = parser.parse_args()
    try:
        asked.do(asked)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
