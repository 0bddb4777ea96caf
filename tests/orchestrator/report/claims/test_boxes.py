"""The paper's counts of boxes: read line by line, what is wrong named; the shares are those that its text speaks of."""

from dataclasses import replace
from math import nan
from pathlib import Path
from statistics import fmean

import pytest

from model.evaluation.misalignment import IOUS, SCORES
from model.network.anchors import NUM_ANCHORS, level_sizes
from orchestrator.errors import UserError
from orchestrator.figures.table import Table
from orchestrator.report.claims.boxes import (
    BOXES,
    CONDITIONS,
    COUNTED_AT,
    LINES,
    Boxes,
    counted,
    image_table,
    line_table,
    papers_table,
    read_boxes,
    share_table,
)
from tests.misalignments import misalignment

PAPERS = read_boxes()


def changed(tmp_path: Path, old: str, new: str) -> Path:
    content = BOXES.read_text(encoding="utf-8")
    assert content.count(old) == 1
    file = tmp_path / "boxes.csv"
    file.write_text(content.replace(old, new), encoding="utf-8")
    return file


def refused(file: Path, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_boxes(file)
    for text in (str(file), *said):
        assert text in str(caught.value)


def rounded(numbers: tuple[float, ...]) -> list[float]:
    return [round(number, 2) for number in numbers]


def test_the_paper_counts_23_lines_in_ten_images():
    assert PAPERS.images[0] == "Image1" and len(PAPERS.images) == 10 and len(LINES) == 23
    counts = [PAPERS.positive_anchors, *PAPERS.before_nms.values(), *PAPERS.after_nms.values()]
    assert [len(line) for line in counts] == [10] * 23


def test_the_conditions_are_the_thresholds_at_which_boxes_are_counted():
    assert list(CONDITIONS) == [f"cls>{one:g}" for one in SCORES] + [f"iou>{one:g}" for one in IOUS]


def test_before_nms_well_placed_boxes_outnumber_positive_anchors_and_confident_ones_seldom_do():
    pairs = {condition: PAPERS.before_nms[condition] for condition in ("iou>0.5", "cls>0.5")}
    anchors = PAPERS.positive_anchors
    above = {one: [n > a for n, a in zip(counts, anchors, strict=True)] for one, counts in pairs.items()}
    assert (sum(above["iou>0.5"]), sum(above["cls>0.5"])) == (10, 3)


def test_nms_lowers_the_share_of_well_placed_boxes_as_the_text_says():
    changes = PAPERS.changes("iou>0.5")
    assert max(changes) < 0
    # The text gives the first of them to Image1, where it is 11.34.
    assert rounded(changes)[:2] == [-11.34, -31.50] and rounded(changes)[5] == -39.84
    assert round(fmean(changes), 2) == -19.52


def test_nms_raises_the_share_of_confident_boxes_in_three_images_as_the_text_says():
    changes = PAPERS.changes("cls>0.5")
    raised = {place: change for place, change in enumerate(rounded(changes), start=1) if change > 0}
    assert raised == {2: 1.32, 3: 1.55, 8: 0.02}
    assert round(fmean(changes), 2) == -1.09


def test_shares_are_of_the_boxes_of_their_stage():
    boxes = Boxes(
        images=("first", "empty"),
        positive_anchors=(1, 0),
        num_before=(20, 0),
        num_after=(4, 0),
        before_nms=dict.fromkeys(CONDITIONS, (5, 0)),
        after_nms=dict.fromkeys(CONDITIONS, (3, 0)),
    )
    assert boxes.shares("before_nms", "iou>0.7") == pytest.approx((25.0, nan), nan_ok=True)
    assert boxes.shares("after_nms", "iou>0.7") == pytest.approx((75.0, nan), nan_ok=True)
    assert boxes.changes("iou>0.7") == pytest.approx((50.0, nan), nan_ok=True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("stage,condition,image1", "stage,image1", "line 1"),
        ("anchors,positive,331", "anchors,positive,33l", "line 2, image1: is '33l', expected a whole number"),
        ("cls>0.05,7213,", "cls>0.05,-7213,", "line 3, image1: is '-7213'"),
        ("before_nms,cls>0.9,", "before_nms,cls>0.95,", "line 8: begins 'before_nms,cls>0.95', expected"),
        ("before_nms,cls>0.9,3,", "before_nms,cls>0.9,", "line 8: has 9 counts, expected 10"),
        ("after_nms,iou>0.9,4,4,5,1,0,1,0,0,9,2\n", "", "has 22 lines below its header, expected 23"),
        (
            ",28,324,68",
            ",28,824,68",
            "before_nms,iou>0.9, image9: is 824, expected at most the 816 of before_nms,iou>0.8",
        ),
        (
            "after_nms,iou>0.5,16,",
            "after_nms,iou>0.5,1600,",
            "is 1600, expected at most the 1087 of before_nms,iou>0.5",
        ),
        ("after_nms,cls>0.05,429,", "after_nms,cls>0.05,0,", "after_nms,cls>0.5, image1: is 5, expected at most the 0"),
    ],
)
def test_a_wrong_line_is_named_with_its_value(tmp_path: Path, old: str, new: str, said: str):
    refused(changed(tmp_path, old, new), said)


def test_a_file_that_is_absent_or_empty_is_refused(tmp_path: Path):
    refused(tmp_path / "none.csv", "cannot be read")
    empty = tmp_path / "empty.csv"
    empty.touch()
    refused(empty, "line 1: is ''")


def shown(table: Table, place: int) -> list[object]:
    return [cell.value for cell in table.cells()[place]]


def widest(table: Table) -> int:
    """Columns that the lines take, but for the notes."""
    return max(map(len, replace(table, notes=()).to_text().splitlines()))


def test_what_a_scoring_pass_counts_is_read_in_the_papers_lines():
    boxes = counted(misalignment((2, 0)))  # 900, 890, ... scores before and 50, 40, ... IoUs after of the first image
    assert (boxes.images, boxes.positive_anchors) == (("1", "2"), (11, 12))
    assert (boxes.num_before, boxes.num_after) == ((1000, 1001), (100, 101))
    assert boxes.before_nms["cls>0.6"] == (880, 881) and boxes.after_nms["iou>0.9"] == (10, 11)
    assert boxes.take([1]).images == ("2",) and boxes.take([1]).before_nms["cls>0.05"] == (901,)
    assert boxes.take([1]).num_after == (101,)


def test_images_stand_one_by_one_and_then_as_sums():
    table = image_table("Boxes", counted(misalignment((2, 0, 1))), [2, 0], ["a note"])
    assert [cells[0].value for cells in table.cells()[::2]] == ["3", "1", "these 2", "all 3"]
    assert shown(table, 0)[:4] == ["3", "before", 13, 902] and shown(table, 1)[1:4] == ["after", None, 92]
    assert shown(table, 4)[2:4] == [24, 1802] and shown(table, 6)[2:4] == [36, 2703]
    assert table.begins_group(4) and table.notes == ("a note",)
    assert not any(cell.soft for row in table.cells() for cell in row)


def test_the_papers_images_stand_in_grey_with_what_sets_them_apart():
    table = papers_table(PAPERS, 100)
    assert all(cell.soft for row in table.cells() for cell in row)
    assert shown(table, 0)[:4] == ["Image1", "before", 331, 7213] and len(table.rows) == 22
    said = "Image1 (429), Image2 (113), Image4 (188), Image8 (836), Image9 (224)"
    assert f"More than the 100 boxes that are kept here: {said};" in table.notes[-1]
    assert "600 x 1000" in papers_table(PAPERS, 1000).notes[-1]
    assert widest(table) <= 120


def test_the_anchors_that_the_text_counts_are_those_of_other_inputs_than_the_experiments():
    def anchors(size: tuple[int, int]) -> int:
        return sum(height * width for height, width in level_sizes(size)) * NUM_ANCHORS

    assert {image: anchors(size) for image, (_, size) in COUNTED_AT.items()} == {
        image: told for image, (told, _) in COUNTED_AT.items()
    }
    # A short edge of 600 is padded to 608, a long one of up to 1000 to 1024 at most.
    at_600 = {anchors((608, width)) for width in range(608, 1025, 32)}
    assert not at_600 & {told for told, _ in COUNTED_AT.values()}


def test_each_line_of_the_paper_has_mean_and_range_of_either_side():
    table = line_table({"head": counted(misalignment((2, 0)))}, PAPERS)
    assert len(table.rows) == 23 and [column.name for column in table.columns][2:] == ["head", "the paper"]
    ours, papers = table.cells()[1][2:]
    assert (ours.value, ours.interval, papers.value, papers.interval) == (900.5, (900, 901), 3906.7, (364, 13480))
    assert papers.soft and not ours.soft
    assert [row[1].value for row in table.cells()[:3]] == ["positive anchors", "p>.05", "p>.5"]
    assert [place for place in range(23) if table.begins_group(place)] == [1, 12]
    assert [row[0].value for row in table.cells() if row[0].value] == ["before", "after"]
    three = {f"a head, exponent 0.{place}": counted(misalignment((2, 0))) for place in range(3)}
    assert widest(line_table(three, PAPERS)) <= 120


def test_shares_stand_image_by_image_and_an_image_without_boxes_has_none():
    one = counted(misalignment((2, 0)))
    boxes = replace(one, num_before=(1000, 0), num_after=(100, 0))
    table = share_table({"head": boxes}, PAPERS, ["a note"])
    assert shown(table, 0) == ["head", "1", 50.0, 50.0, 0.0, 89.0, 80.0, -9.0]
    assert shown(table, 1)[2:] == [None] * 6 and "n/a" in table.to_text()
    assert shown(table, 2) == ["", "mean", 50.0, 50.0, 0.0, 89.0, 80.0, -9.0], "of the images that have any"
    assert shown(table, 13)[1] == "mean" and shown(table, 13)[4] == pytest.approx(-19.52, abs=0.005)
    assert all(cell.soft for cell in table.cells()[5]) and not any(cell.soft for cell in table.cells()[0])
    assert widest(table) <= 120
