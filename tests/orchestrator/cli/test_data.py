"""The verb data: which word is a verb of it, looking, and converting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from orchestrator.cli.data import data
from orchestrator.cli.main import cli
from tests.conftest import MakeCoco
from tests.data_folders import coco_json, picture

PHOTOS = ("aquarium", "blood")


@pytest.fixture(autouse=True)
def _home_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))


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


def test_a_split_that_cannot_be_read_hides_no_other_and_ends_with_1(make_coco: MakeCoco) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box, {**box, "id": 2, "image_id": 2}], sizes=((60, 80), (60, 80)))
    assert rnc("data", root).exit_code == 0
    (root / "val").mkdir()
    (root / "annotations" / "instances_val.json").write_text("{")
    looked = rnc("data", root)
    said = " ".join(looked.stdout.split())
    assert looked.exit_code == 1 and "instances_val.json" in said and "2 images" in said
    (root / "annotations" / "instances_train.json").write_text("{")
    assert rnc("data", root).exit_code == 2


def test_data_prints_what_is_there_and_says_where_the_sheet_lies(shapes_root: Path, tmp_path: Path) -> None:
    done = rnc("data", shapes_root)
    assert done.exit_code == 0, done.output
    first = " ".join(done.stdout.split("\n\n")[0].split())
    assert "48 + 16 images (train, val), 6 classes" in first
    assert "64 images read, decoded and hashed in" in done.stderr
    sheet = tmp_path / "home" / "reports" / "data" / shapes_root.name / "contact_sheet.png"
    assert str(sheet) in done.stderr
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(("form", "begin"), [("markdown", "**"), ("html", "<!doctype html>"), ("json", "{")])
def test_data_prints_other_formats(shapes_root: Path, tmp_path: Path, form: str, begin: str) -> None:
    done = rnc("data", shapes_root, "--quick", "--format", form, "--output", tmp_path / "out")
    assert done.exit_code == 0 and done.stdout.startswith(begin), done.output
    assert (tmp_path / "out" / "index.html").is_file() and "images were not read" in done.stderr


def test_sizes_are_those_of_the_edges_that_are_asked_for(shapes_root: Path) -> None:
    def middle(*options: object) -> float:
        done = rnc("data", shapes_root, "--quick", "--format", "json", *options)
        return float(json.loads(done.stdout)["tables"][2]["rows"][0]["50 %"])

    assert middle("--short-edge", 300) == pytest.approx(middle("--short-edge", 600, "--long-edge", 2000) / 2)


def test_a_folder_without_data_and_an_output_that_is_a_file_are_refused(shapes_root: Path, tmp_path: Path) -> None:
    assert "error: no data set was found in" in rnc("data", tmp_path).stderr
    (tmp_path / "file").write_text("")
    done = rnc("data", shapes_root, "--quick", "--output", tmp_path / "file" / "sub")
    assert done.exit_code == 2 and "error: --output: cannot write to" in done.stderr


def test_data_of_the_photographs_are_what_their_readme_says(photos_root: Path) -> None:
    counts = {}
    for name in PHOTOS:
        done = rnc("data", photos_root / name, "--format", "json")
        splits, classes, _, twins = (table["rows"] for table in json.loads(done.stdout)["tables"])
        counts[name] = ([(row["Images"], row["Boxes"], row["Learnt"]) for row in splits], len(classes), len(twins))
    assert counts["aquarium"] == ([(448, 3323, 3323), (127, 909, 909)], 7, 8)
    assert counts["blood"] == ([(1008, 18614, 18614), (288, 5334, 5334)], 3, 88)


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
