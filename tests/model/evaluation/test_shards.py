"""Shards of a pass on storage: nothing is scored twice, whatever was killed, and the whole is that of one pass."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import model.evaluation.counting
import model.evaluation.scoring
from model.config import InferenceConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation import shards as scored
from model.evaluation.misalignment import DroppedTable, Misalignment
from model.evaluation.parts import Part, read_about, read_part, write_parts
from model.evaluation.scoring import Scores, score
from model.evaluation.shards import Pass, Team, free, score_missing, scores_of
from model.inference import postprocess
from model.inference.table import DetectionTable
from model.network.retinanet import RetinaNetConf, load_detector
from orchestrator.checkpoint.inputs import ScoringInputs, read_checkpoint
from tests import detections, misalignments
from tests.detectors import SIZES, opinionated, save_opinionated
from tests.processes import run_processes, start_process

SETTINGS = (InferenceConfig(), InferenceConfig(confidence_exponent=0.0), InferenceConfig(nms_iou=0.3))
SHARD = 2
"""Images; of 7, so that there are four shards."""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(model.evaluation.scoring, "SHARD", SHARD)


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=7)


@pytest.fixture(scope="module")
def at_once(data: CocoData) -> list[Scores]:
    torch.set_num_threads(1)
    return score(opinionated(len(data.category_ids)), data, SETTINGS, SIZES)


def pass_of(data: CocoData, keep: Path, settings: Sequence[InferenceConfig] = SETTINGS) -> tuple[Pass, list[int]]:
    """A pass, and the number of images of each of its forward passes."""
    detector, shown = opinionated(len(data.category_ids)), []
    detector.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    return Pass(
        detector=detector, weights_sha256="5" * 64, data=data, config=SIZES, settings=settings, keep=keep
    ), shown


def same(one: object, other: object) -> bool:
    """Whether tables and counts are equal bit for bit."""
    if isinstance(one, DetectionTable | Misalignment | DroppedTable):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)
        )
    mine, theirs = np.asarray(one), np.asarray(other)
    return mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=True)


def assert_same(found: Sequence[Scores], expected: Sequence[Scores]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.inference == other.inference
        assert one.metrics == other.metrics
        assert one.calibration == other.calibration and one.calibration["LaECE"] is not None
        assert same(one.detections, other.detections)
        assert same(one.misalignment, other.misalignment)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_parts_of_a_shard_come_back_from_their_file_bit_for_bit(tmp_path: Path) -> None:
    found = detections.table([(1, 2, [1.0, 2.0, 3.0, 4.0], 0.5), (2, 5, [0.5, 0.0, 8.0, 8.0], 0.25)])
    rich = Part(found, misalignments.misalignment(lost=misalignments.dropped([0, 1], [1, 3]), oracle=found))
    empty = Part(detections.table([]), misalignments.misalignment([0]))
    write_parts(tmp_path / "a", [rich, empty], {"settings": ["x", "y"]})
    for row, part in enumerate((rich, empty)):
        again = read_part(tmp_path / "a", row)
        assert same(again.detections, part.detections)
        assert same(again.misalignment, part.misalignment)
    assert read_about(tmp_path / "a", whole=True) == {"settings": ["x", "y"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("left", [0.0, 0.2, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, left: float) -> None:
    write_parts(tmp_path / "a", [Part(detections.table([]), misalignments.misalignment())], {})
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: int(left * len(content))])
    for read in (lambda: read_about(tmp_path / "a"), lambda: read_part(tmp_path / "a", 0)):
        with pytest.raises(ValueError, match="cut off or damaged"):
            read()


def test_shards_make_the_whole_of_one_pass_and_of_no_second_one(
    data: CocoData, at_once: list[Scores], tmp_path: Path
) -> None:
    work, shown = pass_of(data, tmp_path)
    told: list[tuple[int, int]] = []
    score_missing(work, progress=lambda done, total: told.append((done, total)))
    assert sum(shown) == 7
    assert told[0] == (0, 7)
    assert told[-1] == (7, 7)
    assert told == sorted(told)
    assert_same(list(scores_of(work, SETTINGS)), at_once)
    again, shown = pass_of(data, tmp_path)
    score_missing(again)
    assert shown == []
    assert_same(list(scores_of(again, SETTINGS)), at_once)
    for one, other in zip(scores_of(again, SETTINGS, calibrating=False), at_once, strict=True):
        assert one.calibration == {} != other.calibration and one.metrics == other.metrics


def test_settings_that_are_added_cost_a_pass_for_themselves_and_others_none(
    data: CocoData, at_once: list[Scores], tmp_path: Path
) -> None:
    score_missing(pass_of(data, tmp_path, SETTINGS[:2])[0])
    asked: list[InferenceConfig] = []
    real = postprocess.suppress_one

    def suppress_one(pool: postprocess.Pool, one: postprocess.Shortlist) -> postprocess.Suppressed:
        asked.append(one.config)
        return real(pool, one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.evaluation.counting, "suppress_one", suppress_one)
        work, shown = pass_of(data, tmp_path, SETTINGS[1:])
        score_missing(work)
    assert asked == [SETTINGS[2]] * 7
    assert sum(shown) == 7
    assert_same(list(scores_of(work, SETTINGS)), at_once)


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_shard_that_is_cut_off_or_damaged_is_scored_again_and_no_other(
    data: CocoData, at_once: list[Scores], tmp_path: Path, left: float
) -> None:
    work, _ = pass_of(data, tmp_path)
    score_missing(work)
    damaged, flipped = sorted(work.folder.iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[: int(left * damaged.stat().st_size)])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 1
    flipped.write_bytes(content)
    lost = sum(len(read_about(flipped)["images"]) if file == flipped else 0 for file in work.folder.iterdir())
    again, shown = pass_of(data, tmp_path)
    score_missing(again)
    assert sum(shown) == lost + len(read_about(damaged)["images"])
    assert_same(list(scores_of(again, SETTINGS)), at_once)


def test_other_weights_data_code_or_sizes_do_not_share_shards(
    data: CocoData, shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _ = pass_of(data, tmp_path)
    fewer = read_coco(shapes_root, "val", num_images=3)
    others = [
        replace(work, weights_sha256="6" * 64),
        replace(work, data=fewer),
        replace(work, config=replace(SIZES, short_edge=96)),
    ]
    folders = {one.folder for one in [work, *others]}
    monkeypatch.setattr(scored, "_code", lambda: "other")
    assert len(folders | {work.folder}) == 5


def test_freeing_leaves_what_is_not_recorded(data: CocoData, tmp_path: Path) -> None:
    both, _ = pass_of(data, tmp_path, SETTINGS[:2])
    score_missing(both)
    third, _ = pass_of(data, tmp_path, SETTINGS[2:])
    score_missing(third)
    free(both, lambda setting: setting == SETTINGS[0])
    assert len(list(both.folder.iterdir())) == 8
    free(third, lambda setting: setting == SETTINGS[2])
    assert len(list(both.folder.iterdir())) == 4
    free(both, lambda setting: True)
    assert not both.folder.exists()


def score_share(rank: int, shapes_root: Path, keep: Path) -> None:
    from torch import distributed

    model.evaluation.scoring.SHARD = SHARD

    def agree(todo: scored.Todo) -> scored.Todo:
        told = [todo]
        distributed.broadcast_object_list(told)
        return told[0]

    def wait() -> None:
        distributed.barrier()

    work, shown = pass_of(read_coco(shapes_root, "val", num_images=7), keep)
    score_missing(work, Team(rank=rank, size=2, agree=agree, wait=wait))
    (keep / f"shown-{rank}").write_text(str(sum(shown)))


@pytest.mark.slow
def test_two_processes_share_a_pass_and_equal_one_bit_for_bit(
    data: CocoData, at_once: list[Scores], shapes_root: Path, tmp_path: Path
) -> None:
    run_processes(2, score_share, shapes_root, tmp_path)
    assert [int((tmp_path / f"shown-{rank}").read_text()) for rank in range(2)] == [4, 3]
    work, shown = pass_of(data, tmp_path)
    score_missing(work)
    assert shown == []
    assert_same(list(scores_of(work, SETTINGS)), at_once)


def score_slowly(shapes_root: Path, keep: Path) -> None:
    model.evaluation.scoring.SHARD = SHARD
    work, _ = pass_of(read_coco(shapes_root, "val", num_images=7), keep)
    work.detector.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    score_missing(work)


@pytest.mark.slow
def test_a_pass_that_was_killed_goes_on_without_scoring_an_image_twice(
    data: CocoData, at_once: list[Scores], shapes_root: Path, tmp_path: Path
) -> None:
    process = start_process(score_slowly, shapes_root, tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("*/*.parquet"))) >= 2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*.parquet")}
    work, shown = pass_of(data, tmp_path)
    score_missing(work)
    held = sum(len(read_about(file)["images"]) for file in there)
    assert 0 < held < 7
    assert sum(shown) == 7 - held
    assert {file: file.stat().st_mtime_ns for file in there} == there
    assert_same(list(scores_of(work, SETTINGS)), at_once)


def test_a_checkpoint_scored_again_makes_no_forward_pass_where_its_shards_are_kept(
    data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_opinionated(tmp_path / "checkpoint", (data.category_ids, data.category_names))
    plain = score(load_detector(folder), data, SETTINGS, SIZES)
    checkpoint = read_checkpoint(folder)
    inputs = ScoringInputs(checkpoint=checkpoint, data=data, config=SIZES, scored=tmp_path / "scored")
    assert_same(inputs.score(SETTINGS), plain)

    def refuse(*_: object) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(RetinaNetConf, "forward", refuse)
    told: list[tuple[int, int]] = []
    again = inputs.score(SETTINGS, lambda done, total: told.append((done, total)))
    assert_same(again, plain)
    assert told[-1] == (7, 7)
