"""Programs that tests of deploy/ start, found or skipped with a reason."""

import glob
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str) -> str:
    """Return the path of a program; skip the test where there is none (tests/deploy/programs.sh installs them)."""
    beside_python = Path(sys.executable).with_name(name)
    places = [str(beside_python), f"/usr/sbin/{name}", *sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))]
    for place in (shutil.which(name), *places):
        if place is not None and Path(place).is_file():
            return place
    pytest.skip(f"{name} is not installed, and tests/deploy/programs.sh could not install it here")
