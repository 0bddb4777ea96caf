"""The numbers of other detectors' own losses and assigners, where the folder with them is at hand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_NUMBERS = 24
"""Values, gradients and assignments that the folder holds."""


@pytest.mark.slow
def test_every_number_of_other_detectors_code_is_reproduced(ladder_root: Path) -> None:
    script = [str(ladder_root / "check.py"), str(ladder_root)]
    command = [sys.executable, *script, "--adapter", "tests.golden.ladder_adapter", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (last,) = [line for line in done.stdout.splitlines() if line.startswith("TOTAL")]
    totals = {name: int(count) for name, count in re.findall(r"'(\w+)': (\d+)", last)}
    assert totals == {"ok": NUM_NUMBERS, "bad": 0}, done.stdout
    assert last.endswith("missing in the adapter: []")
