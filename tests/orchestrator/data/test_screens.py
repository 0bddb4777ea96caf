import json
import re
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.data.audit import audit
from orchestrator.data.screens import MOST_CLASSES, SCREENS, speed, tables, write
from tests.orchestrator.data.conftest import MakeSplit, photo

EDGES = (600, 1000)
BOX = [10, 10, 30, 20]


@pytest.fixture
def root(make_split: MakeSplit) -> Path:
    """Two splits that share a picture, whose file has a long name; a class with a long name, a crowd, a faulty box."""
    long = "a class of which the name is longer than any column has room for"
    rows = [(1, "cat", BOX), (2, "cat", BOX), (2, long, BOX), (2, "cat", BOX, {"iscrowd": 1}), (1, "cat", [1, 1, 0, 2])]
    make_split("train", {"1.png": photo(1), "2.png": photo(2)}, rows, ["cat", long])
    name = f"{'frame_' * 20}7.png"
    return make_split("val", {name: photo(2), "3.png": photo(3)}, [(1, "cat", BOX)], ["cat", long])


def test_the_verdict_comes_first_then_what_is_suspicious_then_tables(root: Path) -> None:
    text = SCREENS["text"](audit(root, EDGES))
    verdict = "2 + 2 images (train, val), 2 classes, 3 of 4 boxes of train are learnt; 1 fault is left out; "
    assert " ".join(text.split("\n\n")[0].split()).startswith(f"{root}: {verdict}")
    assert text.index("! ") < text.index("-> ") < text.index("\nSplits\n") < text.index("\nClasses\n")
    assert text.index("\nClasses\n") < text.index("\nSizes\n") < text.index("\nImages that occur twice\n")


def test_what_is_read_otherwise_is_told_in_every_format(make_split: MakeSplit) -> None:
    root = make_split("train", {"1.png": photo(1)}, [(1, "cat", BOX, {"area": 0}), (1, "dog", BOX)])
    found = audit(root, EDGES)
    (note,) = json.loads(SCREENS["json"](found))["notes"]
    assert note.startswith("train: annotations.area of 1 of 2 rows")
    assert note in " ".join(SCREENS["text"](found).split())
    assert "- train: annotations.area of 1" in SCREENS["markdown"](found)


def test_an_error_message_keeps_its_lines(root: Path) -> None:
    for image in (root / "val").iterdir():
        image.unlink()
    lines = SCREENS["text"](audit(root, EDGES)).splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("! split val cannot be read:"))
    assert any(line.startswith("  images missing (2)") for line in lines[first : first + 4])


def test_tables_fit_80_columns_and_people_see_thousands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audit(root, EDGES)
    lines = [line for table in tables(found) for line in table.to_text(80).splitlines()]
    assert max(map(len, lines)) <= 80
    monkeypatch.setattr("orchestrator.data.screens.double_boxes", lambda data: range(1234))
    assert re.search(
        r"Learnt  Crowd  Double  Left out\n.*\ntrain +coco +2 +0 +4 +3 +1 +1,234 +1\n", SCREENS["text"](found)
    )


def test_programs_get_every_column_and_numbers_as_numbers(root: Path) -> None:
    content = json.loads(SCREENS["json"](audit(root, EDGES)))
    assert content["data"] == str(root) and content["images_per_second"] > 0
    splits, classes, sizes, twins = (table["rows"] for table in content["tables"])
    assert splits[0] == {
        "Split": "train",
        "Format": "coco",
        "Images": 2,
        "No box": 0,
        "Boxes": 4,
        "Learnt": 3,
        "Crowd": 1,
        "Area 0": 0,
        "Under a pixel": 0,
        "Outside": 0,
        "Small image": 0,
        "Double": 0,
        "Left out": 1,
    }
    cat, long = classes
    assert cat == {
        "Class": "cat",
        "Part, %": 80.0,
        "train boxes": 3,
        "train images": 2,
        "val boxes": 1,
        "val images": 1,
    }
    assert long["Class"].endswith("has room for") and long["val boxes"] == 0
    # 30 x 20 at five times the size: the root of 15,000.
    assert sizes[0]["50 %"] == pytest.approx(15000**0.5) and sizes[0]["Images"] == "160 x 120"
    assert sizes[0]["Small"] == 3 and sizes[0]["Medium"] == sizes[0]["Large"] == 0
    (twin,) = twins
    assert twin["Image"].endswith("frame_7.png") and twin["Is like"] == "train/2.png" and twin["Bits apart"] is None
    assert [warning["way_out"] != "" for warning in content["warnings"]] == [True] * len(content["warnings"])


def test_of_many_classes_people_see_the_most_frequent(make_split: MakeSplit) -> None:
    classes = [f"c{number}" for number in range(MOST_CLASSES + 5)]
    rows = [(1, name, [1, 1 + row, 20, 20]) for number, name in enumerate(classes) for row in range(number + 1)]
    found = audit(make_split("train", {"1.png": photo(1)}, rows, classes), EDGES)
    table = tables(found)[1]
    assert len(table.rows) == len(classes)
    text = table.to_text(80)
    assert f"\n{classes[-1]} " in text and "\nc4 " not in text and "\nc5 " in text
    assert text.endswith("5 rarer classes are not shown: --format json has all.")


def test_markdown_and_latex_hold_the_tables(root: Path) -> None:
    found = audit(root, EDGES)
    markdown = SCREENS["markdown"](found)
    assert markdown.startswith("**") and "| Split | Format |" in markdown and "\n- images" not in markdown
    assert "\n- train: boxes of zero or negative size" in markdown
    assert SCREENS["latex"](found).count(r"\begin{table}") == 4


def test_sheet_and_page_are_written_and_the_page_holds_the_sheet(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "deep"
    page, told = write(audit(root, EDGES), folder)
    assert told.splitlines() == [
        f"images with their boxes: {folder / 'contact_sheet.png'}",
        f"all of it as a page: {folder / 'index.html'}",
    ]
    assert (folder / "index.html").read_text(encoding="utf-8") == page
    assert "data:image/webp;base64," in page and "of val is a copy of train" in page and "images/s" in page
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 1000


def test_classes_that_the_sheet_does_not_show_are_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.data.contact_sheet.MOST", 0)
    page, told = write(audit(root, EDGES, read_images=False), tmp_path / "out")
    assert told.splitlines()[2].startswith("2 classes are not shown: cat, a class of which")
    assert "2 classes are not shown" in page


def test_the_speed_is_named_only_where_images_were_read(root: Path) -> None:
    assert re.fullmatch(r"4 images read, decoded and hashed in [\d.]+ s \([\d,]+ images/s\)", speed(audit(root, EDGES)))
    assert "not read" in speed(audit(root, EDGES, read_images=False))
