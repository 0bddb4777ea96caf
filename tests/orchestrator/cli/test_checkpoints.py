"""The verbs that take a checkpoint: what is misspelt is told in a line, and soon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.parametrize("verb", ["evaluate", "misalignment", "sweep", "predict"])
def test_a_checkpoint_that_is_not_there_is_told_before_torch_is_imported(verb: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    words = [verb, "./nowhere", *([str(tmp_path / "photo.png")] if verb == "predict" else [])]
    code = (
        "import sys; from orchestrator.cli.main import cli\n"
        f"try: cli({words!r})\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    environment = os.environ | {"RNC_HOME": str(tmp_path / "home")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ran.stdout.split() == ["2", "False"]
    assert ran.stderr.startswith("error: ./nowhere: no checkpoint, as ") and ran.stderr.count("\n") == 1
    assert not (tmp_path / "home").exists()
