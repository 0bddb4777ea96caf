"""The numbers that claims rest on: slopes of losses by hand, counts of boxes from files, losses of trainings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.evaluation.misalignment import BINS, DroppedTable, Misalignment, write_misalignment
from model.inference.table import DetectionTable
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.report.claims import evidence
from orchestrator.report.claims.evidence import counts_from, slope_by_autograd, slope_by_equation
from orchestrator.report.results.rows import measure_row
from orchestrator.tracking.rest import Refused, ServerAway

ROW = Row(label="RetinaNet")
(KEYS,) = row_keys(ROW)
LEDGER = Ledger(
    trainings={
        KEYS.train_key: Record(
            status="FINISHED", run_id="t", metrics={"train/loss_class": 0.3, "train/loss_box": 0.2, "train/lr": 0.01}
        )
    },
    evaluations={
        KEYS.evaluation_key: Record(
            status="FINISHED", run_id="e", metrics={"AP": 35.0}, misalignment={"misalignment/ece": 9.0}
        )
    },
)


def test_slopes_at_a_saturated_output_follow_eqs_6_to_8() -> None:
    """At a logit of 10 and a target of 0 the sigmoid h is 0.9999546: h (1 - h), h^2 (1 - h) and h."""
    assert slope_by_equation("l1") == pytest.approx(4.5396e-5, rel=1e-4)
    assert slope_by_equation("l2") == pytest.approx(4.5394e-5, rel=1e-4)
    assert slope_by_equation("ce") == pytest.approx(0.9999546)


@pytest.mark.parametrize(("loss", "factor"), [("l1", 1.0), ("l2", 2.0), ("ce", 1.0)])
def test_our_losses_have_the_slopes_of_the_equations(loss: str, factor: float) -> None:
    # Eq. 7 halves the square, our L2 does not.
    assert slope_by_autograd(loss) == pytest.approx(factor * slope_by_equation(loss), rel=1e-3)


def test_a_row_has_the_losses_of_its_training_beside_its_own_numbers() -> None:
    found = measure_row(ROW, LEDGER, {})
    assert found.by_seed == {
        0: {"AP": 35.0, "misalignment/ece": 9.0, "train/loss_class": 0.3, "train/loss_box": 0.2}  # no learning rate
    }
    bare = replace(LEDGER, trainings={KEYS.train_key: replace(LEDGER.trainings[KEYS.train_key], metrics={})})
    assert measure_row(ROW, bare, {}).mean("train/loss_class") is None


def stored(folder: Path) -> Path:
    """The files of two images; of four boxes at IoU > 0.7 three have a fused score up to 0.5."""
    zeros = np.zeros((2, 6), np.int32)
    density = np.zeros((BINS, BINS), np.int64)
    density[5, 40], density[24, 35] = 2, 1  # scores 0.1 and 0.48, IoUs 0.8 and 0.7
    density[25, 45] = 1  # score 0.5 and above
    density[40, 34] = 7  # IoU up to 0.7
    no_boxes: dict[str, Any] = {"image_ids": np.zeros(0, np.int64), "boxes": np.zeros((0, 4), np.float32)}
    empty = {name: np.zeros(0, kind) for name, kind in DetectionTable.types.items() if name not in no_boxes}
    more = {name: np.zeros(0, kind) for name, kind in DroppedTable.types.items() if name not in no_boxes}
    found = Misalignment(
        image_ids=np.array([7, 9]),
        num_objects=np.array([1, 2], np.int32),
        num_positive_anchors=np.array([4, 15], np.int32),
        num_before=np.array([10, 20], np.int32),
        num_after=np.array([2, 2], np.int32),
        scores_before=zeros + 3,
        scores_after=zeros,
        ious_before=zeros[:, :5] + 5,
        ious_after=zeros[:, :5],
        density_before=density,
        density_after=np.zeros_like(density),
        dropped=DroppedTable(**no_boxes, **more),
        oracle=DetectionTable(**no_boxes, **empty),
    )
    folder.mkdir()
    write_misalignment(folder, found, {})
    return folder


def test_counts_come_from_the_files_of_the_rows_evaluation_and_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = stored(tmp_path / "files")
    asked: list[tuple[str, str]] = []

    def download(uri: str, run_id: str, path: str, into: Path) -> Path:
        asked.append((run_id, path))
        target = into / Path(path).name
        target.write_bytes((files / target.name).read_bytes())
        return target

    monkeypatch.setattr(evidence, "download", download)
    fetch = counts_from("http://mlflow", LEDGER)
    counts = fetch(ROW)
    assert counts is not None and fetch(ROW) is counts
    assert {run_id for run_id, _ in asked} == {"e"} and len(asked) == len(set(asked)) == 4
    assert counts.unsure == pytest.approx(75.0)
    assert counts.boxes.positive_anchors == (4, 15)
    assert counts.boxes.before_nms["iou>0.5"] == (5, 5) and counts.boxes.before_nms["cls>0.5"] == (3, 3)
    assert counts_from(None, LEDGER)(ROW) is None and counts_from("http://mlflow", Ledger())(ROW) is None


def test_lost_or_damaged_counts_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: object) -> Path:
        raise UserError("no such file")

    def damaged(uri: str, run_id: str, path: str, into: Path) -> Path:
        (into / Path(path).name).write_bytes(b"PAR1")
        return into / Path(path).name

    for download in (lost, damaged):
        monkeypatch.setattr(evidence, "download", download)
        assert counts_from("http://mlflow", LEDGER)(ROW) is None


@pytest.mark.parametrize("error", [ServerAway("it does not answer"), Refused("403")])
def test_counts_that_mlflow_does_not_give_now_or_to_this_user_are_not_lost_ones(
    monkeypatch: pytest.MonkeyPatch, error: UserError
) -> None:
    def away(*args: object) -> Path:
        raise error

    monkeypatch.setattr(evidence, "download", away)
    with pytest.raises(type(error), match=str(error)):
        counts_from("http://mlflow", LEDGER)(ROW)
