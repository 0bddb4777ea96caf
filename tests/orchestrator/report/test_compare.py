"""What decides between two rows: contributions worked out by hand, or by a COCO evaluation without the image."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from model.config import DataConfig, TrainConfig
from model.evaluation.coco.matches import match, write_matches
from model.evaluation.coco.metrics import evaluate
from model.evaluation.coco.reweighted import precision_and_recall
from orchestrator.api import OpenSuite
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, row_keys
from orchestrator.experiment.rows import Row, SeedRule
from orchestrator.report import compare as module
from orchestrator.report.compare import Comparison, compare, contributions
from orchestrator.site import Site
from orchestrator.tracking.rest import ServerAway
from tests.detections import matches_of, random_scene, table, write
from tests.orchestrator.ledgers import experiment

ALL = matches_of([[0.9], [0.8], [0.7]], [[1023], [1023], [1023]], [1, 1, 1])
TWO = matches_of([[0.9], [0.8], [0.95]], [[1023], [1023], [0]], [1, 1, 1])
TRAIN = TrainConfig(data=DataConfig(dataset="coco", train_split="train", val_split="val"))
GOOD = Row(label="good", train=TRAIN, split="val")
BAD = Row(label="bad", train=replace(TRAIN, global_batch=8), split="val")

ELSEWHERE = replace(BAD, label="elsewhere", split="train")


def test_the_planted_image_decides() -> None:
    """Three images of one object. One detector finds all; the other errs on the third, at its highest score.

    All images:    100 against wrong, true, true, precision 2/3 up to recall 2/3, 67 of 101 points.
    Without the 3rd both have 100. Without another, wrong and true, precision 1/2 up to recall 1/2: 51 points.
    """
    whole = 100 - 100 * 67 * (2 / 3) / 101
    without_another = 100 - 100 * 51 * (1 / 2) / 101
    by_hand = [whole - without_another, whole - without_another, whole]
    assert contributions([ALL], [TWO]) == pytest.approx(by_hand)
    assert contributions([TWO], [ALL], "AP50") == pytest.approx([-one for one in by_hand])


def test_several_seeds_count_by_their_mean() -> None:
    both = contributions([ALL, TWO], [TWO])
    assert both == pytest.approx(contributions([ALL], [TWO]) / 2)
    assert contributions([ALL, TWO], [TWO, ALL]).tolist() == [0.0, 0.0, 0.0]


def test_the_only_image_with_an_object_is_the_whole_difference() -> None:
    found, missed = matches_of([[0.9], []], [[1023], []], [1, 0]), matches_of([[], []], [[], []], [1, 0])
    assert contributions([found], [missed]).tolist() == [100.0, 0.0]


def test_contributions_are_those_of_an_evaluation_without_the_image(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    others = random_scene(1)[1]
    (tmp_path / "all").mkdir()
    data, _ = write(tmp_path / "all", annotations, num_images=8)
    ours, theirs = (match(data, table(boxes)) for boxes in (found, others))
    whole = precision_and_recall(ours, np.ones((8, 1)))[0, 0] - precision_and_recall(theirs, np.ones((8, 1)))[0, 0]
    got = contributions([ours], [theirs])
    for image in range(1, 9):
        root = tmp_path / str(image)
        root.mkdir()
        rest, _ = write(root, [row for row in annotations if row["image_id"] != image], num_images=8)
        aps = [evaluate(rest, table([row for row in boxes if row[0] != image]))["AP"] for boxes in (found, others)]
        assert aps[0] is not None and aps[1] is not None
        assert got[image - 1] == pytest.approx(whole - (aps[0] - aps[1]), abs=1e-9)


@pytest.fixture
def suite_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenSuite]:
    """Makes a suite of which MLflow holds two rows, scored on seven images of one category, ids 1 to 7."""
    box = [0.0, 0.0, 50.0, 50.0]
    annotation = {"category_id": 2, "bbox": box, "area": 2500.0, "iscrowd": 0}
    annotations = [{"id": image, "image_id": image, **annotation} for image in range(1, 8)]
    (tmp_path / "coco").mkdir()
    data, _ = write(tmp_path / "coco", annotations, num_images=7)
    boxes = {
        "good": [(image, 2, box, 1 - image / 100) for image in range(1, 8)],
        "bad": [(image, 2, box if image != 5 else [200.0, 200.0, 9.0, 9.0], 1 - image / 100) for image in range(1, 8)],
    }
    trainings, evaluations = {}, {}
    for row in (GOOD, BAD):
        ((_, trained, scored),) = row_keys(row)
        detections = table(boxes[row.label])
        write_matches(match(data, detections), tmp_path / row.label)
        trainings[trained] = Record(status="FINISHED", run_id="training")
        evaluations[scored] = Record(
            status="FINISHED",
            run_id=row.label,
            metrics={name: value for name, value in evaluate(data, detections).items() if value is not None},
            matches=hashlib.sha256((tmp_path / row.label).read_bytes()).hexdigest(),
            data_fingerprint=data.fingerprint,
        )

    def fetch(run_id: str, into: Path) -> Path:
        return Path(shutil.copy(tmp_path / run_id, into))

    monkeypatch.setattr(module, "matches_from", lambda uri: fetch)

    def make(
        *rows: Row, changed: Mapping[str, Mapping[str, object]] | None = None, rule: SeedRule | None = None
    ) -> OpenSuite:
        held = dict(evaluations)
        for row in rows:
            if row.split == ELSEWHERE.split:
                ((_, _, here),), ((_, _, there),) = row_keys(BAD), row_keys(row)
                held[there] = held[here]
        for label, values in (changed or {}).items():
            ((_, _, scored),) = row_keys({"good": GOOD, "bad": BAD}[label])
            held[scored] = replace(held[scored], **values)  # type: ignore[arg-type]
        attributes = {"ledger": Ledger(trainings=trainings, evaluations=held), "uri": "http://none"}
        tables: list[Experiment] = [replace(experiment("table", rows or (GOOD, BAD)), reference="bad", seed_rule=rule)]
        site = Site(home=tmp_path / "home", coco_root=tmp_path / "coco")
        return cast(OpenSuite, type("Held", (OpenSuite,), attributes)(tables, site))

    return make


def test_two_rows_are_compared_with_the_image_that_decides_first(suite_of: Callable[..., OpenSuite]) -> None:
    """On image 5 the one row is wrong: precision 1 up to recall 4/7, then 6/7 up to recall 6/7; 58 and 28 points."""
    found = compare(suite_of(), ("good", "bad"))
    ap = 100 * (58 + 28 * 6 / 7) / 101
    assert found.labels == ("good", "bad") and found.metric == "AP"
    assert found.values == pytest.approx((100.0, ap)) and found.difference == pytest.approx(100 - ap)
    assert found.low < found.difference < found.high
    assert "*‡" in str(found) and "‡ On fewer than 10 images with an object" in str(found)
    assert found.images[0][0] == 5 and found.images[0][1] == pytest.approx(100 - ap)
    assert found.file_names[5] == "5.jpg" and set(found.file_names) == set(range(1, 8))
    assert len(found.images) == 7 and all(contribution < 0 for _, contribution in found.images[1:])
    assert compare(suite_of(), ("good", "bad"), images=False) == replace(found, images=())
    back = compare(suite_of(), ("bad", "good"), "AP75")
    assert back.difference == pytest.approx(ap - 100) and back.images[0][1] == pytest.approx(ap - 100)
    same = compare(suite_of(), ("good", "good"))
    assert (same.difference, same.low, same.high, same.images) == (0.0, 0.0, 0.0, ())


def test_where_seeds_are_added_until_decided_a_comparison_says_that_its_interval_is_a_plain_one(
    suite_of: Callable[..., OpenSuite],
) -> None:
    ruled = compare(suite_of(rule=SeedRule(until="decided", at_least=2, most=3)), ("good", "bad"))
    assert "This interval is a plain one of all seeds. In table seeds are added until decided" in ruled.note
    listed = compare(suite_of(), ("good", "bad"))
    assert "plain" not in listed.note and (ruled.low, ruled.high) == (listed.low, listed.high)


def test_rows_of_other_seeds_are_compared_on_those_that_both_have_and_say_so(
    suite_of: Callable[..., OpenSuite],
) -> None:
    """Seed 1 of the better row found nothing, and is not compared: the values are those of seed 0 alone."""
    several = replace(GOOD, seeds=(0, 1))
    (_, (_, trained, scored)) = row_keys(several)
    alone = suite_of()
    suite = suite_of(several, BAD)
    ((_, _, bad),) = row_keys(BAD)
    suite.ledger.trainings[trained] = Record(status="FINISHED", run_id="training")  # type: ignore[index]
    suite.ledger.evaluations[scored] = replace(suite.ledger.evaluations[bad], metrics={"AP": 0.0})  # type: ignore[index]
    found, usual = compare(suite, ("good", "bad")), compare(alone, ("good", "bad"))
    assert (found.values, found.difference, found.images) == (usual.values, usual.difference, usual.images)
    assert "Compared are the seeds that both have: 0." in found.note and "Compared" not in usual.note
    waits = compare(suite_of(replace(GOOD, seeds=(0, 2)), BAD), ("good", "bad"), images=False)
    assert "good is not complete: " in waits.note


def test_a_comparison_is_shown_as_a_table_with_the_weightiest_images() -> None:
    found = Comparison(
        labels=("good", "bad"),
        metric="AP",
        values=(40.0, 38.5),
        difference=1.5,
        low=0.5,
        high=2.5,
        note="[95 % interval] by resamples.",
        images=((7, 0.5), (3, -0.25), (9, 0.125)),
        file_names={3: "b/three.jpg"},
    )
    lines = [" ".join(line.split()) for line in str(found).splitlines()]
    assert {"good 40.0 +1.50 [+0.50, +2.50]*", "bad 38.5 —", "image 7 +0.50", "image 3, b/three.jpg -0.25"} <= set(
        lines
    )
    assert (
        len(found.to_table(most=2).rows) == 4 and "of 3 that change it, the 2 that" in found.to_table(most=2).notes[-1]
    )
    assert "<td>image 7</td>" in found._repr_html_()
    unsure = replace(found, low=-0.5, images=())
    assert "*" not in str(unsure) and "image 7" not in str(unsure) and len(unsure.to_table().notes) == 1


def test_what_cannot_be_compared_says_why(suite_of: Callable[..., OpenSuite], tmp_path: Path) -> None:
    def refused(suite: OpenSuite, *words: str, labels: tuple[str, str] = ("good", "bad"), metric: str = "AP") -> None:
        with pytest.raises(UserError) as raised:
            compare(suite, labels, metric)
        for word in words:
            assert word in str(raised.value)

    refused(suite_of(), "has no row 'god'", "did you mean good?", labels=("god", "bad"))
    refused(suite_of(), "metric is 'APs', expected one of: AP, AP50, AP75", metric="APs")
    new = replace(BAD, label="new", train=replace(TRAIN, global_batch=4))
    refused(suite_of(GOOD, new), "new is not measured yet (not run)", labels=("good", "new"))
    refused(suite_of(changed={"bad": {"metrics": {}}}), "bad has no AP")
    refused(suite_of(changed={"bad": {"matches": ""}}), "MLflow has no matches of bad")
    refused(suite_of(changed={"bad": {"matches": "0" * 64}}), "MLflow has no matches of bad")
    refused(suite_of(changed={"bad": {"data_fingerprint": "x"}}), "different data", "(the files differ)")
    refused(suite_of(GOOD, ELSEWHERE), "elsewhere on coco train", "good on coco val", labels=("good", "elsewhere"))
    everywhere = {label: {"data_fingerprint": "x"} for label in ("good", "bad")}
    refused(suite_of(changed=everywhere), "is not what good was measured on", "recorded is x")


def test_while_mlflow_is_away_a_comparison_says_so_and_advises_to_delete_nothing(
    suite_of: Callable[..., OpenSuite], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run_id: str, into: Path) -> Path:
        raise ServerAway("the MLflow server does not answer")

    suite = suite_of()
    with monkeypatch.context() as patch:
        patch.setattr(module, "matches_from", lambda uri: away)
        with pytest.raises(ServerAway, match=r"does not answer$"):
            compare(suite, ("good", "bad"))
    compare(suite, ("good", "bad"), images=False)
    monkeypatch.setattr(module, "matches_from", lambda uri: away)
    with pytest.raises(ServerAway, match=r"does not answer$"):  # of what was resampled, the images alone are missing
        compare(suite, ("good", "bad"))


def test_a_label_that_means_two_rows_asks_for_the_table(suite_of: Callable[..., OpenSuite]) -> None:
    suite = suite_of()
    other = replace(BAD, label="good")
    tables = [*suite.experiments, experiment("second", [other, BAD])]
    with pytest.raises(
        UserError, match="'good' is another row in each of table, second; name the file of one alone, or"
    ):
        compare(type(suite)(tables, suite.site), ("good", "bad"))
    opened = type(suite)(tables, suite.site)
    assert opened.compare("good", "bad", table="tab").images[0][0] == 5
    with pytest.raises(UserError, match="has no table 'third'"):
        opened.compare("good", "bad", table="third")
    again = [*suite.experiments, experiment("second", [GOOD])]
    assert compare(type(suite)(again, suite.site), ("good", "bad")).images[0][0] == 5
