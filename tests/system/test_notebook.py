"""The notebook in experiments/ runs from its top to its bottom, on Ray and MLflow, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path):
    cells = json.loads((ROOT / "experiments" / "notebook.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    script = tmp_path / "notebook.py"
    end = "\nassert suite.make_plan().is_complete\nassert len(suite.runs()) == 5  # two, two, and the table\n"
    script.write_text(code + end)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RNC_", "MLFLOW_"))}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    rnc = Path(sys.executable).parent / "rnc"
    home = {**environment, "RNC_HOME": str(tmp_path / "runs" / "notebook")}
    subprocess.run([rnc, "ui", "--stop"], env=home, check=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "RetinaNet-Conf" in done.stdout
