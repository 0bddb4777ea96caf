"""The paper's counts of boxes: read line by line, what is wrong named; the shares are those that its text speaks of."""

from math import nan
from pathlib import Path
from statistics import fmean

import pytest

from model.evaluation.misalignment import IOUS, SCORES
from orchestrator.errors import UserError
from orchestrator.report.boxes import BOXES, CONDITIONS, LINES, Boxes, read_boxes

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
