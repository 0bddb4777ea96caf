"""The verb data: which word is a verb of it, and converting."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from orchestrator.cli.data import data
from orchestrator.cli.main import cli
from tests.data_folders import coco_json, picture


def rnc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def photos(root: Path) -> Path:
    for place in range(5):
        picture(root / "images" / f"{place}.jpg")
    coco_json(root / "photos.json", [f"{place}.jpg" for place in range(5)])
    return root


def test_a_first_word_that_is_no_verb_is_the_data(tmp_path: Path) -> None:
    root = photos(tmp_path)
    assert rnc("data", root).stdout == rnc("data", "audit", root).stdout
    assert rnc("data", root).exit_code == 0
    refused = rnc("data", tmp_path / "none")
    assert (refused.exit_code, "does not exist" in refused.stderr) == (2, True)
    for help in (["-h"], ["--help"]):
        assert "convert" in rnc("data", *help).stdout
    assert "OUT must be new or empty" in rnc("data", "convert", "--help").stdout
    assert set(data.commands) >= {"audit", "convert"}


def test_convert_prints_the_folder_and_says_what_is_in_it(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "in"), tmp_path / "out"
    done = rnc("data", "convert", root, out, "--format", "yolo")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}\n"
    assert done.stderr.splitlines()[:2] == ["train: 4 images, 4 boxes", "val: 1 images, 1 boxes"]
    assert (out / "data.yaml").is_file()
    again = rnc("data", "convert", root, out)
    assert (again.exit_code, again.stderr.startswith(f"error: {out}: exists already")) == (2, True)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, orchestrator.cli.data, model.data.layout; print(*{'numpy', 'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
