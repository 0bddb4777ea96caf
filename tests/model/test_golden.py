"""The numbers of the released implementation, where the folder with them is at hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_number_of_the_released_implementation_is_reproduced(vectors_root: Path) -> None:
    script = [str(vectors_root / "check.py"), str(vectors_root)]
    adapter = ["--adapter", "tests.golden.vectors_adapter", "--strict"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as the numbers were made
    command = [sys.executable, *script, *adapter]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    totals = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", done.stdout.split("TOTAL")[-1])}
    assert totals.pop("ok") > 3000
    assert totals == {"bad": 0, "skip": 0}, done.stdout


@pytest.mark.slow
def test_batches_of_a_gpu_keep_what_the_released_implementation_keeps(vectors_root: Path) -> None:
    script = [str(vectors_root / "check.py"), str(vectors_root), "--only", "det_"]
    command = [sys.executable, *script, "--adapter", "tests.golden.batched_adapter", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    totals = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", done.stdout.split("TOTAL")[-1])}
    assert totals.pop("ok") > 200
    assert totals == {"bad": 0, "skip": 0}, done.stdout
