"""The lab in a real browser, opened from a file; expected values come from a scoring pass and a hand-made scene."""

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import ConfidenceConfig, InferenceConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.scoring import score
from orchestrator.figures.lab import Lab, join, lab_section, make_lab
from orchestrator.figures.page import html_page
from tests.browser import CHROMIUM, Browser, chromium
from tests.detectors import MODEL, SIZES, opinionated, with_objects_where_it_finds_some

pytestmark = pytest.mark.slow  # starts a browser
IMAGES = (0, 2, 3)
HEADS = {"RetinaNet": None, "RetinaNet-Conf": ConfidenceConfig()}
READY = "!document.querySelector('.bench').hidden"
ROWS = "[...document.querySelectorAll('tr[data-kind={kind}]')].map((row) => row.dataset.box)"
COUNTS = "[...document.querySelectorAll('[data-count]')].map((one) => one.innerText)"
SET = """((name, value) => {
  const input = document.querySelector(`[data-setting=${name}]`);
  input.value = value;
  input.dispatchEvent(new Event("input"));
})"""
PICK = "((name, value) => document.querySelector(`[name=lab-${name}][value='${value}']`).click())"
ALL = f"{SET}('most', 100); {SET}('least', 0);"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def data(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    drawn = read_coco(shapes_root, "val", num_images=4)
    return with_objects_where_it_finds_some(tmp_path_factory.mktemp("found"), drawn)


@pytest.fixture(scope="module")
def lab(data: CocoData) -> Lab:
    labs = []
    for label, confidence in HEADS.items():
        detector = opinionated(len(data.category_ids), replace(MODEL, confidence=confidence))
        labs.append(make_lab(label, detector, data, IMAGES, SIZES))
    joined = join(labs)
    assert joined is not None
    return joined


def written(lab: Lab, folder: Path) -> str:
    (folder / "index.html").write_text(html_page("Lab", [], [], [lab_section(lab)]))
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def url(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(lab, tmp_path_factory.mktemp("page"))


def detected(data: CocoData, head: str, place: int, config: InferenceConfig) -> list[str]:
    detector = opinionated(len(data.category_ids), replace(MODEL, confidence=HEADS[head]))
    (scores,) = score(detector, data, [config], SIZES)
    own = scores.detections.take(scores.detections.image_ids == data.image_ids[IMAGES[place]])
    labels = np.searchsorted(data.category_ids, own.category_ids)
    return [f"{anchor}:{label}" for anchor, label in zip(own.anchors.tolist(), labels.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("head", "place", "exponent", "iou"),
    [
        ("RetinaNet-Conf", 0, 0.0, 0.5),
        ("RetinaNet-Conf", 1, 0.4, 0.5),
        ("RetinaNet-Conf", 2, 0.75, 0.5),
        ("RetinaNet-Conf", 2, 1.0, 0.7),
        ("RetinaNet", 1, 0.0, 0.4),
    ],
)
def test_the_page_keeps_what_the_detector_keeps(
    data: CocoData, url: str, browser: Browser, head: str, place: int, exponent: float, iou: float
) -> None:
    picks = f"{PICK}('head', {list(HEADS).index(head)}); {PICK}('image', {place});"
    moves = f"{SET}('exponent', {exponent}); {SET}('nms', {iou});"
    shown = browser.look(url, READY, then=f"{ALL} {picks} {moves} {ROWS.format(kind='kept')}")
    expected = detected(data, head, place, InferenceConfig(confidence_exponent=exponent, nms_iou=iou))
    assert sorted(shown) == sorted(expected) and len(expected) > 20


def test_the_page_counts_the_better_boxes_that_nms_dropped(data: CocoData, url: str, browser: Browser) -> None:
    count = "Number(document.querySelector('[data-count=\"better ones dropped\"] strong').textContent)"
    detector = opinionated(len(data.category_ids), replace(MODEL, confidence=HEADS["RetinaNet-Conf"]))
    chosen = [InferenceConfig(confidence_exponent=exponent) for exponent in (0.0, 1.0)]
    numbers = []
    for config, scores in zip(chosen, score(detector, data, chosen, SIZES), strict=True):
        assert scores.misalignment is not None
        dropped = scores.misalignment.dropped
        for place, index in enumerate(IMAGES):
            picks = f"{PICK}('head', {list(HEADS).index('RetinaNet-Conf')}); {PICK}('image', {place});"
            moves = f"{SET}('exponent', {config.confidence_exponent});"
            numbers.append(int(dropped.counts[dropped.image_ids == data.image_ids[index]].sum()))
            assert browser.look(url, READY, then=f"{picks} {moves} {count}") == numbers[-1]
    assert max(numbers) > 3


def test_the_table_is_in_the_order_of_the_ranking_and_moves_with_the_exponent(
    data: CocoData, url: str, browser: Browser
) -> None:
    first = f"{SET}('most', 5); {SET}('least', 0); {SET}('exponent', %s); {ROWS.format(kind='kept')}"
    for exponent in (0.25, 0.5):
        expected = detected(data, "RetinaNet-Conf", 0, InferenceConfig(confidence_exponent=exponent))
        assert browser.look(url, READY, then=first % exponent) == expected[:5]


def test_a_head_without_a_branch_disables_the_exponent_and_says_why(url: str, browser: Browser) -> None:
    told = "[document.querySelector('[data-setting=exponent]').disabled, document.querySelector('[data-why]').hidden]"
    values = "document.querySelector('[data-of=exponent]').innerText"
    then = f"{PICK}('head', %d); [...{told}, {values}]"
    assert browser.look(url, READY, then=then % 0) == [True, False, "0.00"]
    assert browser.look(url, READY, then=then % 1) == [False, True, "0.40"]


def test_layers_are_shown_and_hidden(url: str, browser: Browser) -> None:
    number = "['truth', 'kept', 'dropped'].map((kind) => document.querySelectorAll(`svg g.${kind}`).length)"
    before = browser.look(url, READY, then=f"{ALL} {number}")
    assert all(before)
    for place, layer in enumerate(("truth", "kept", "dropped")):
        after = browser.look(url, READY, then=f"{ALL} document.querySelector('[data-layer={layer}]').click(); {number}")
        assert after == [0 if other == place else count for other, count in enumerate(before)]


def test_pointing_at_a_row_lights_up_its_box_and_the_one_that_beat_it(url: str, browser: Browser) -> None:
    lit = "[...document.querySelectorAll('svg g.active, svg g.partner')].map((g) => g.dataset.kind).sort()"
    enter = "document.querySelector('%s').dispatchEvent(new Event('mouseenter'));"
    assert browser.look(url, READY, then=f"{ALL} {enter % 'tr.dropped'} {lit}") == ["dropped", "kept"]
    assert browser.look(url, READY, then=f"{ALL} {enter % 'svg g.kept'} {lit}") == ["kept"]
    said = browser.look(url, READY, then=f"{ALL} {enter % 'tr.dropped'} document.querySelector('figcaption').innerText")
    assert "which lies worse (IoU " in said


def coded(values: Any, kind: str) -> str:
    return base64.b64encode(np.array(values, kind).tobytes()).decode()


@pytest.fixture
def scene(lab: Lab) -> Lab:
    """One object of 100 by 100 and three boxes of its class, of which the best placed is least sure.

    IoU with the object: 80 * 100 / 10000 = 0.8, 0.95 and 0.9; of the first with the second 80 / 95 = 0.84, with the
    third 80 / 90 = 0.89. A box of another class lies on it, too, and one of its class elsewhere.
    """
    boxes = [[0, 0, 80, 100], [0, 0, 95, 100], [0, 0, 90, 100], [0, 0, 100, 100], [200, 0, 300, 100]]
    candidates = {
        "anchors": coded([7, 8, 9, 10, 11], "<u4"),
        "labels": coded([0, 0, 0, 1, 0], "<u2"),
        "levels": coded([3, 3, 4, 4, 4], "u1"),
        "boxes": coded(boxes, "<f4"),
        "class_scores": coded([0.9, 0.5, 0.6, 0.8, 0.7], "<f4"),
        "confidences": coded([0.2, 0.9, 0.4, 0.5, 0.5], "<f4"),
        "exponents": coded([2**21 - 1] * 5, "<u4"),
    }
    objects = {"boxes": coded([[0, 0, 100, 100]], "<f4"), "labels": coded([0], "<u2")}
    image = lab["images"][0] | objects | {"width": 300, "height": 100}
    head = {"label": "made by hand", "has_confidence": True, "candidates": [candidates]}
    return lab | {"images": [image], "heads": [head]}


def test_just_the_better_box_that_nms_drops_is_shown(scene: Lab, browser: Browser, tmp_path: Path) -> None:
    url = written(scene, tmp_path)
    then = f"{ALL} {SET}('exponent', %s); [{ROWS.format(kind='kept')}, {ROWS.format(kind='dropped')}, {COUNTS}]"
    # By class score the box of 0.8 goes first and both better ones fall to it; of these the better one is shown.
    kept, dropped, counts = browser.look(url, READY, then=then % 0)
    assert (kept, dropped) == (["7:0", "10:1", "11:0"], ["8:0"])
    assert counts == ["3 kept", "1 well placed", "2 better ones dropped", "1 of 1 objects that lost one"]
    # 0.9^.5 * 0.2^.5 = 0.42, 0.5^.5 * 0.9^.5 = 0.67, 0.6^.5 * 0.4^.5 = 0.49: the box of 0.95 goes first.
    kept, dropped, counts = browser.look(url, READY, then=then % 0.5)
    assert (kept, dropped) == (["8:0", "10:1", "11:0"], []) or (kept, dropped) == (["8:0", "11:0", "10:1"], [])
    assert counts == ["3 kept", "1 well placed", "0 better ones dropped", "0 of 1 objects that lost one"]


def test_a_line_of_the_dropped_box_says_what_beat_it(scene: Lab, browser: Browser, tmp_path: Path) -> None:
    cells = "[...document.querySelectorAll('tr.dropped td')].map((cell) => cell.innerText)"
    shown = browser.look(written(scene, tmp_path), READY, then=f"{ALL} {SET}('exponent', 0); {cells}")
    assert shown == ["1a", scene["categories"][0], "0.50", "0.90", "0.50", "0.95", "1, IoU 0.80"]


def test_heads_on_other_images_are_not_joined(lab: Lab) -> None:
    assert join([]) is None
    other = lab | {"fingerprint": "another"}
    joined = join([lab, other])
    assert joined is not None and joined["heads"] == lab["heads"]


def test_the_page_needs_nothing_from_elsewhere_and_stays_small(lab: Lab) -> None:
    html = lab_section(lab).html
    assert not any(word in html for word in ("http", "url(", "@import", "fetch("))
    for head in lab["heads"]:
        assert len(json.dumps(head)) < 2_000_000


def test_text_of_the_data_cannot_end_the_script(lab: Lab) -> None:
    named = lab | {"categories": ["</script><b>", *lab["categories"][1:]]}
    assert "</script><b>" not in lab_section(named).html


def test_an_image_id_beyond_javascripts_numbers_is_shown_to_its_last_digit(
    data: CocoData, browser: Browser, tmp_path: Path
) -> None:
    moved = replace(data, image_ids=data.image_ids + 2**53)
    lab = make_lab("RetinaNet", opinionated(len(data.category_ids), MODEL), moved, IMAGES, SIZES)
    names = "[...document.querySelectorAll('[data-images] img')].map((image) => image.alt)"
    shown = browser.look(written(lab, tmp_path), READY, then=names)
    assert shown == [f"image {2**53 + int(data.image_ids[place])}" for place in IMAGES]


def test_more_classes_than_the_page_can_count_are_refused(data: CocoData) -> None:
    many = replace(data, category_names=tuple(map(str, range(2**16 + 1))))
    with pytest.raises(ValueError, match="the page shows 65536 classes at most, and these are 65537"):
        make_lab("RetinaNet", opinionated(len(data.category_ids), MODEL), many, IMAGES, SIZES)
