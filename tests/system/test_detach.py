"""A submit that goes on without its terminal: who comes second is told, and the log of a row can be followed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiment_files import one_short_training

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("detach")
    (folder / "heads.yaml").write_text(one_short_training("away"))
    yield folder
    rnc(folder, "submit", "heads.yaml")  # looks on until the detached one, which a failed test leaves, has ended
    rnc(folder, "ui", "--stop")


def rnc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW_", "RAY_"))
    }
    command = [sys.executable, "-m", "orchestrator.cli.main", *arguments]
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_detached_submit_is_seen_by_others_and_its_row_can_be_followed_to_the_end(folder: Path):
    early = rnc(folder, "logs", "heads.yaml", "--row", "RetinaNet")
    assert (early.returncode, "has written nothing" in early.stderr) == (2, True)

    first = rnc(folder, "submit", "heads.yaml", "--detach")
    assert first.returncode == 0, first.stderr
    found = re.search(r"Submitted as process (\d+)", first.stderr)
    assert found is not None
    second = rnc(folder, "submit", "heads.yaml", "--detach")
    assert second.returncode == 0
    assert f"Suite away is being run by process {found[1]} on " in second.stderr

    followed = rnc(folder, "logs", "heads.yaml", "--row", "RetinaNet", "--follow")
    assert followed.returncode == 0, followed.stderr
    said = [line[21:] for line in followed.stdout.splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert [line.partition(",")[0] for line in said if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert "begins 2 epochs" in said[0]
    assert "finished; its checkpoint is recorded" in said
    assert said[-2:] == ["scoring: 8 of 8 images of val, 1 setting", "scored under 1 setting on val"]

    third = rnc(folder, "submit", "heads.yaml", "--format", "json")  # looks on for as long as the first one runs
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout)[0]["rows"][0]["AP"] is not None
    assert "Nothing is missing" in third.stderr
    (log,) = (folder / "runs" / "submits" / "away").glob("*.log")
    assert "To do: 1 of 1 trainings" in log.read_text()

    late = rnc(folder, "logs", "heads.yaml", "--row", "RetinaNet").stdout
    assert re.search(r"step \d+: .*train/loss", late)
    assert rnc(folder, "submit", "heads.yaml", "--detach").stderr.count("nothing is missing, nothing was started") == 1
