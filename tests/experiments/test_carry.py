"""carry.sh and travel.py as a user runs them, without a network."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
LOCK = """\
# made by hand
hotcoco==1.3.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:cc
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:dd
pywin32==312 ; sys_platform == 'win32' \\
    --hash=sha256:ee
torch==2.15.0 \\
    --hash=sha256:ff
nvidia-cublas==13.4.1.3 ; sys_platform == 'linux' \\
    --hash=sha256:00
nvidia-ml-py==13.615.71 \\
    --hash=sha256:11
mlflow-skinny==3.17.2 \\
    --hash=sha256:22
"""
WHEEL = {
    "ray/__init__.py": "",
    "ray/core/raylet": "#!/bin/sh\n",
    "ray/jars/ray_dist.jar": "java",
    "ray/jarsmith.py": "",
    "ray/other/aiosignal-1.4.0.dist-info/RECORD": "ray/jars,,\n",
    "ray/rllib/__init__.py": "",
    "ray/llm/__init__.py": "",
    "ray/dashboard/client/index.html": "",
    "ray-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ray\nVersion: 1.0\n",
    "ray-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
MIB = 2**20


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, cwd=ROOT)


def travel(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, BENCHMARKS / "travel.py", *words)


def carry(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run("env", f"PYTHON={sys.executable}", "bash", BENCHMARKS / "carry.sh", *words)


def sized(folder: Path, **mebibytes: float) -> None:
    """Sparse files, which take no room."""
    for name, size in mebibytes.items():
        with (folder / name).open("wb") as file:
            file.truncate(int(size * MIB))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pins(answer: subprocess.CompletedProcess[str]) -> list[str]:
    assert answer.returncode == 0, answer.stderr
    return [line.removesuffix(" \\") for line in answer.stdout.splitlines() if not line.startswith(" ")]


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "lock.txt").write_text(LOCK)
    return tmp_path / "lock.txt"


def test_carried_is_what_the_lock_file_pins_for_that_python_and_the_machine_lacks(lock: Path, tmp_path: Path):
    (tmp_path / "there.txt").write_text("NVIDIA_ML.py\npip\n")
    assert pins(travel("missing", lock)) == ["hotcoco==1.3.0", "numpy==2.5.5", "nvidia-ml-py==13.615.71"]
    assert pins(travel("missing", lock, "--python", "3.11"))[1] == "numpy==2.4.6"
    assert pins(travel("missing", lock, "--there", tmp_path / "there.txt")) == ["hotcoco==1.3.0", "numpy==2.5.5"]
    assert pins(travel("missing", lock, "--only", "hotcoco torch")) == ["hotcoco==1.3.0"]
    assert "--hash=sha256:aa \\\n    --hash=sha256:bb\n" in travel("missing", lock).stdout


def test_a_package_that_no_lock_file_has_is_named(lock: Path):
    refused = travel("missing", lock, "--only", "hotcoco hotcocoa")
    assert (refused.returncode, refused.stderr) == (1, "error: the lock file has no hotcocoa\n")


def test_a_wheel_without_its_superfluous_parts_is_installed_by_pip(tmp_path: Path):
    before, after, site = (tmp_path / name for name in ("before", "after", "site"))
    before.mkdir()
    after.mkdir()
    (after / "ray-0.9-py3-none-any.whl").touch()  # of the last time; pip refuses two versions
    (after / "ray-1.0-py3-none-any.whl.part").touch()
    record = "".join(f"{name},,\n" for name in (*WHEEL, "ray-1.0.dist-info/RECORD"))
    with zipfile.ZipFile(before / "ray-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in {**WHEEL, "ray-1.0.dist-info/RECORD": record}.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o100755 if name.endswith("raylet") else 0o100644) << 16
            wheel.writestr(member, content)
    assert travel("shrink", before, after).returncode == 0
    assert names(after) == {"ray-1.0-py3-none-any.whl"}
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
    installed = run(*pip, site, after / "ray-1.0-py3-none-any.whl")
    assert installed.returncode == 0, installed.stderr
    assert names(site / "ray") == {"__init__.py", "core", "jarsmith.py", "other"}
    assert (site / "ray" / "core" / "raylet").stat().st_mode & 0o111
    with zipfile.ZipFile(after / "ray-1.0-py3-none-any.whl") as wheel:
        listed = wheel.read("ray-1.0.dist-info/RECORD").decode().splitlines()
        assert {line.partition(",")[0] for line in listed} == set(wheel.namelist())
        assert wheel.read("ray/other/aiosignal-1.4.0.dist-info/RECORD") == b"ray/jars,,\n"


def test_a_wheel_of_another_layout_is_refused(tmp_path: Path):
    (tmp_path / "after").mkdir()
    with zipfile.ZipFile(tmp_path / "mlflow-9.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mlflow/server/web/index.html", "")
    refused = travel("shrink", tmp_path, tmp_path / "after")
    assert refused.returncode == 1
    assert "mlflow-9.0-py3-none-any.whl has no mlflow/server/js/build" in refused.stderr
    assert names(tmp_path / "after") == set()


def test_what_travels_is_sorted_into_as_few_turns_as_it_fits(tmp_path: Path):
    sized(tmp_path, a=30, b=25, c=20, d=10, e=5)
    assert travel("sort", tmp_path, str(45 * MIB)).returncode == 0
    assert names(tmp_path) == {"turn1", "turn2"}  # by hand: 30 + 10 + 5 and 25 + 20
    assert names(tmp_path / "turn1") == {"a", "d", "e"}
    assert names(tmp_path / "turn2") == {"b", "c"}


def test_what_fits_into_no_turn_is_named_and_nothing_is_moved(tmp_path: Path):
    sized(tmp_path, a=30, b=5)
    refused = travel("sort", tmp_path, str(20 * MIB))
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: a has 30.0 MiB, a turn at most 20.0 MiB; raise --limit\n",
    )
    assert names(tmp_path) == {"a", "b"}


def test_turns_are_sorted_anew_for_another_limit_and_their_commands_are_printed(tmp_path: Path):
    sized(tmp_path, **{"net.pth": 40, "fish.tar": 30, "ray.whl": 20})
    wide = carry("--offline", "--into", tmp_path, "--limit", "500")
    assert wide.returncode == 0, wide.stderr
    assert names(tmp_path) == {"turn1"}
    narrow = carry("--offline", "--into", tmp_path, "--limit", "64", "--to", "/srv/kept")
    assert narrow.returncode == 0, narrow.stderr
    assert names(tmp_path) == {"turn1", "turn2"}  # the tree leaves less than 60 MiB
    assert names(tmp_path / "turn1") == {"net.pth"}
    assert "turn1/*.pth /srv/kept/weights/" in narrow.stdout
    assert "tar -C /srv/kept/photos -xf" in narrow.stdout
    assert "--target /srv/kept/site" in narrow.stdout
    assert "PYTHONPATH=/srv/kept/site:$PWD" in narrow.stdout


def test_the_help_names_every_option_and_a_wrong_one_is_refused(tmp_path: Path):
    told = carry("--help")
    assert told.returncode == 0
    for option in ("--there", "--only", "--limit", "--into", "--to", "--python", "--glibc", "--offline"):
        assert f"  {option} " in told.stdout
    refused = carry("--limt", "3")
    assert (refused.returncode, refused.stderr) == (2, "error: --limt is no option; --help lists them\n")
    tight = carry("--limit", "1", "--offline", "--into", tmp_path)
    assert (tight.returncode, "the tree alone has" in tight.stderr) == (2, True)
