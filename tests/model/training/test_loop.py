"""Training gives the same weights on any number of processes, in any micro-batches, interrupted or not."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from model.config import METRICS, DataConfig, ScheduleConfig, TrainConfig
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.images import Sample, load_sample
from model.data.split import CocoData
from model.network.backbone import Backbone
from model.network.checkpoint import load_resume, load_weights, read_card
from model.network.retinanet import build_detector
from model.training.batches import epoch_batches, flips
from model.training.loop import Progress, TrainingError, train
from tests.conftest import MakeCoco
from tests.processes import run_processes
from tests.trainings import CONFIG, MODEL, SPEEDS, last, norm, run, same, without_speed

ONE_UPDATE = replace(
    CONFIG,
    data=replace(CONFIG.data, num_train_images=8),
    schedule=ScheduleConfig(epochs=1, lr_drop_epochs=(), warmup_iterations=0, learning_rate=0.02),
)
LOSSES = {"train/loss", "train/loss_class", "train/loss_box", "train/loss_confidence"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def alone(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Progress]]:
    """CONFIG trained by one process in one piece: its folder and its reports."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(CONFIG, shapes_root, folder)


@pytest.fixture(scope="module")
def one_update(narrow_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONE_UPDATE made by one process in one piece."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("one_update")
    assert [report.step for report in run(ONE_UPDATE, narrow_root, folder)] == [1, 1]
    return folder


def assert_agree(one: Path, other: Path, config: TrainConfig) -> None:
    """What two trainings changed is equal to 1e-4, and to 1e-3 for each tensor; weights are then equal to 1e-6."""
    first = build_detector(config.model, num_classes=6, seed=config.seed).state_dict()
    weights, others = load_weights(last(one)), load_weights(last(other))
    assert read_card(last(one)).step == read_card(last(other)).step
    changes = {name: weights[name] - first[name] for name in first}
    differences = {name: weights[name] - others[name] for name in first}
    for name, change in changes.items():
        assert change.norm() > 0 and differences[name].norm() <= 1e-3 * change.norm(), name
    assert norm(differences) <= 1e-4 * norm(changes)
    assert norm(differences) <= 1e-6 * norm(weights)


def test_a_validation_split_of_other_classes_is_refused_before_the_first_update(
    make_coco: MakeCoco, tmp_path: Path
) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box])
    (root / "val").symlink_to("train")
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    (root / "annotations" / "instances_val.json").write_text(
        json.dumps(content | {"categories": [{"id": 3, "name": "dog"}]})
    )
    with pytest.raises(DataError, match="need the same categories, but 8 is 'cat' in train and missing in val"):
        run(replace(CONFIG, data=DataConfig(train_split="train", val_split="val")), root, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("local_batch", [4, 3, 1])
def test_accumulating_an_update_from_parts_gives_the_same_weights(
    one_update: Path, narrow_root: Path, tmp_path: Path, local_batch: int
) -> None:
    run(ONE_UPDATE, narrow_root, tmp_path, local_batch=local_batch)
    assert_agree(one_update, tmp_path, ONE_UPDATE)


def test_accumulating_a_whole_training_from_parts_gives_the_same_weights_and_losses(
    alone: tuple[Path, list[Progress]], shapes_root: Path, tmp_path: Path
) -> None:
    reports = run(CONFIG, shapes_root, tmp_path, local_batch=4)
    assert_agree(alone[0], tmp_path, CONFIG)
    for mine, theirs in zip(reports, alone[1], strict=True):
        losses = {name: value for name, value in theirs.metrics.items() if name in LOSSES}
        assert {name: mine.metrics[name] for name in losses} == pytest.approx(losses, rel=1e-5)


def train_here(rank: int, jobs: list[tuple[TrainConfig, Path, Path, int | None]]) -> None:
    for config, root, folder, local_batch in jobs:
        reports = run(config, root, folder, local_batch=local_batch)
        (folder / f"rank{rank}.json").write_text(json.dumps([asdict(report) for report in reports], default=str))


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "local_batch"), [(2, None), (4, 1)])
def test_any_number_of_processes_gives_the_weights_and_reports_of_one(
    alone: tuple[Path, list[Progress]],
    one_update: Path,
    shapes_root: Path,
    narrow_root: Path,
    tmp_path: Path,
    num_processes: int,
    local_batch: int | None,
) -> None:
    sizes = {len(batch) for batch in epoch_batches(read_coco(shapes_root, "train", num_images=24), CONFIG, 0)}
    assert sizes == {8, 5, 3}  # not all divide evenly; 3 leave one of four processes without an image
    for folder in ("whole", "update"):
        (tmp_path / folder).mkdir()
    jobs = [
        (CONFIG, shapes_root, tmp_path / "whole", local_batch),
        (ONE_UPDATE, narrow_root, tmp_path / "update", local_batch),
    ]
    run_processes(num_processes, train_here, jobs)
    assert_agree(one_update, tmp_path / "update", ONE_UPDATE)
    assert_agree(alone[0], tmp_path / "whole", CONFIG)
    for rank in range(num_processes):
        reports = json.loads((tmp_path / "whole" / f"rank{rank}.json").read_text())
        assert len(reports) == len(alone[1])
        for report, expected in zip(reports, alone[1], strict=True):
            assert (report["step"], report["num_steps"]) == (expected.step, expected.num_steps)
            assert report["end_of_epoch"] == expected.end_of_epoch
            assert (report["checkpoint"] is not None) == (rank == 0 and expected.end_of_epoch)
            assert report["metrics"].keys() == expected.metrics.keys()
            losses = {name: value for name, value in expected.metrics.items() if name.startswith("train/")}
            assert {name: report["metrics"][name] for name in losses} == pytest.approx(losses, rel=1e-5)


def test_the_same_seed_gives_the_same_bits(
    alone: tuple[Path, list[Progress]], shapes_root: Path, tmp_path: Path
) -> None:
    reports = run(CONFIG, shapes_root, tmp_path)
    assert same(load_weights(last(tmp_path)), load_weights(last(alone[0])))
    assert without_speed(reports) == without_speed(alone[1])


def test_another_seed_gives_other_weights(
    alone: tuple[Path, list[Progress]], shapes_root: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, seed=2)
    run(replace(config, schedule=ScheduleConfig(epochs=1, lr_drop_epochs=())), shapes_root, tmp_path)
    others = load_weights(last(tmp_path))
    weights = load_weights(alone[0] / "epoch-0001")
    different = {name for name, weight in weights.items() if not torch.equal(weight, others[name])}
    assert different == weights.keys()


def test_decoding_in_other_processes_changes_no_bit(
    alone: tuple[Path, list[Progress]], shapes_root: Path, tmp_path: Path
) -> None:
    run(CONFIG, shapes_root, tmp_path, num_loader_processes=2)
    assert same(load_weights(last(tmp_path)), load_weights(last(alone[0])))


def test_each_epoch_has_its_own_order_and_flips_and_shows_every_image_once(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    def load(data: CocoData, index: int, short_edge: int, long_edge: int, flip: bool) -> Sample:
        seen.append((index, flip))
        return load_sample(data, index, short_edge, long_edge, flip)

    monkeypatch.setattr("model.training.batches.load_sample", load)
    run(CONFIG, shapes_root, tmp_path)
    data = read_coco(shapes_root, "train", num_images=24)
    for epoch in range(3):
        order = [index for batch in epoch_batches(data, CONFIG, epoch) for index in batch]
        expected = [(index, flips(CONFIG, epoch, int(data.image_ids[index]))) for index in order]
        assert seen[24 * epoch : 24 * (epoch + 1)] == expected
        assert sorted(order) == list(range(24))
    assert len({tuple(seen[start : start + 24]) for start in (0, 24, 48)}) == 3


class Interruption(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_training_resumes_to_the_bits_of_one_that_was_not(
    shapes_root: Path, tmp_path: Path, optimizer: Literal["sgd", "adamw"]
) -> None:
    schedule = replace(CONFIG.schedule, optimizer=optimizer, validate_every=1, learning_rate=1e-3)
    config = replace(CONFIG, schedule=schedule)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reports = run(config, shapes_root, whole)
    early: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        early.append(progress)
        if progress.end_of_epoch:
            raise Interruption

    with pytest.raises(Interruption):
        train(config, data_root=shapes_root, folder=parts, report=interrupt)
    assert early[-1].checkpoint == parts / "epoch-0001"
    late = run(config, shapes_root, parts, resume=early[-1].checkpoint)
    assert same(load_weights(last(whole)), load_weights(last(parts)))
    data = read_coco(shapes_root, "train", num_images=24)
    categories = data.category_ids, data.category_names
    states = [load_resume(last(folder), config, categories, data.fingerprint) for folder in (whole, parts)]
    assert states[0]["optimizer"]["state"]
    assert same(*states)
    assert without_speed([*early, *late]) == without_speed(reports)


def test_a_checkpoint_of_another_training_is_not_resumed(
    alone: tuple[Path, list[Progress]], shapes_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"train\.seed was 1, now 7"):
        run(replace(CONFIG, seed=7), shapes_root, tmp_path, resume=alone[0] / "epoch-0001")
    other_images = replace(CONFIG, data=replace(CONFIG.data, num_train_images=23))
    with pytest.raises(ValueError, match=r"train\.data\.num_train_images was 24, now 23"):
        run(other_images, shapes_root, tmp_path, resume=alone[0] / "epoch-0001")


def test_reports_come_after_the_first_update_and_at_the_end_of_each_epoch(alone: tuple[Path, list[Progress]]) -> None:
    folder, reports = alone
    assert [(r.step, r.end_of_epoch) for r in reports] == [
        (1, False),
        (4, False),
        (4, True),
        (8, False),
        (8, True),
        (12, False),
        (12, True),
    ]
    assert {r.num_steps for r in reports} == {12}
    assert [r.epoch for r in reports] == [0.25, 1, 1, 2, 2, 3, 3]
    for report in reports:
        if report.end_of_epoch:
            assert report.checkpoint == folder / f"epoch-{report.epoch:04.0f}"
            assert read_card(report.checkpoint).step == report.step
        else:
            assert report.checkpoint is None
            assert report.metrics.keys() == LOSSES | SPEEDS | {"train/lr"}
            parts = [report.metrics[name] for name in LOSSES - {"train/loss"}]
            assert report.metrics["train/loss"] == pytest.approx(sum(parts))
            assert all(part > 0 for part in parts)
    assert [bool(r.metrics) for r in reports if r.end_of_epoch] == [False, False, True]  # validate_every is 3
    assert [r.validation is not None for r in reports] == [False] * (len(reports) - 1) + [True]
    assert reports[-1].metrics.keys() <= {f"val/{name}" for name in METRICS}
    assert {"val/AP", "val/AR100"} <= reports[-1].metrics.keys()
    # 6 updates of warm-up from a tenth; a drop from the third epoch
    assert [r.metrics["train/lr"] for r in reports if not r.end_of_epoch] == pytest.approx(
        [0.001, 0.01 * (0.1 + 0.9 / 2), 0.01, 0.001]
    )


def test_ten_updates_pass_from_one_report_to_the_next(shapes_root: Path, tmp_path: Path) -> None:
    small = replace(CONFIG, global_batch=1, schedule=replace(CONFIG.schedule, epochs=1, lr_drop_epochs=()))
    reports = run(small, shapes_root, tmp_path)
    assert [(r.step, round(r.epoch, 4)) for r in reports] == [
        (1, 0.0417),
        (10, 0.4167),
        (20, 0.8333),
        (24, 1.0),
        (24, 1.0),
    ]


def test_the_loss_falls(narrow_root: Path, tmp_path: Path) -> None:
    schedule = ScheduleConfig(
        epochs=15, lr_drop_epochs=(), warmup_iterations=0, validate_every=99, optimizer="adamw", learning_rate=3e-3
    )
    reports = run(replace(ONE_UPDATE, schedule=schedule), narrow_root, tmp_path)
    losses = [report.metrics["train/loss"] for report in reports if not report.end_of_epoch]
    assert len(losses) == 15
    assert losses[-1] < 0.7 * losses[0]


def test_an_absurd_learning_rate_ends_in_advice(shapes_root: Path, tmp_path: Path) -> None:
    schedule = replace(CONFIG.schedule, learning_rate=1e6, warmup_iterations=0)
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at update \d+: lower train\.schedule\.learning_rate"
    ):
        run(replace(CONFIG, schedule=schedule), shapes_root, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_bfloat16_may_have_spoilt_names_the_precision_as_well(shapes_root: Path, tmp_path: Path) -> None:
    schedule = replace(CONFIG.schedule, learning_rate=1e6, warmup_iterations=0)
    ways_out = r"gradient_clip, or train\.precision: float32 \(it is bfloat16\)$"
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at update \d+: lower .*" + ways_out):
        run(replace(CONFIG, schedule=schedule, precision="bfloat16"), shapes_root, tmp_path)


def test_a_gradient_clip_bounds_the_update(narrow_root: Path, one_update: Path, tmp_path: Path) -> None:
    schedule = replace(ONE_UPDATE.schedule, gradient_clip=1e-3, weight_decay=0.0)
    run(replace(ONE_UPDATE, schedule=schedule), narrow_root, tmp_path)
    first = build_detector(MODEL, num_classes=6, seed=1).state_dict()

    def moved(folder: Path) -> float:
        weights = load_weights(last(folder))
        return norm({name: weights[name] - first[name] for name in first})

    assert moved(one_update) > 1e-3
    assert moved(tmp_path) == pytest.approx(0.02 * 1e-3, rel=1e-2)


def test_plain_retinanet_trains_without_a_confidence_loss(narrow_root: Path, tmp_path: Path) -> None:
    reports = run(replace(ONE_UPDATE, model=replace(MODEL, confidence=None)), narrow_root, tmp_path)
    assert reports[0].metrics["train/loss_confidence"] == 0.0
    assert not any("confidence" in name for name in load_weights(last(tmp_path)))
    assert "val/AP" in reports[-1].metrics


def test_a_frozen_backbone_stays_as_its_file_has_it(narrow_root: Path, tmp_path: Path) -> None:
    model = replace(MODEL, backbone_norm="frozen_batch", frozen_stages=4, backbone_weights="backbone.pth")
    stored = Backbone(model).body.state_dict()
    torch.save(stored, tmp_path / "backbone.pth")
    run(replace(ONE_UPDATE, model=model), narrow_root, tmp_path / "out", weights_file=tmp_path / "backbone.pth")
    trained = load_weights(last(tmp_path / "out"))
    assert all(torch.equal(trained[f"backbone.body.{name}"], tensor) for name, tensor in stored.items())
    first = build_detector(model, num_classes=6, seed=1).state_dict()
    assert not torch.equal(trained["pyramid.p6.weight"], first["pyramid.p6.weight"])


def test_a_training_starts_from_the_whole_detector_of_its_file(narrow_root: Path, tmp_path: Path) -> None:
    model = replace(MODEL, detector_weights="retinanet.pth")
    stored = build_detector(model, num_classes=6, seed=7).state_dict()
    torch.save(stored, tmp_path / "retinanet.pth")
    schedule = replace(ONE_UPDATE.schedule, learning_rate=1e-12)
    config = replace(ONE_UPDATE, model=model, schedule=schedule)
    run(config, narrow_root, tmp_path / "out", weights_file=tmp_path / "retinanet.pth")
    for name, tensor in load_weights(last(tmp_path / "out")).items():
        torch.testing.assert_close(tensor, stored[name], rtol=0, atol=1e-6)
