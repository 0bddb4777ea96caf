"""One pass for many settings, on any number of processes, gives the same bits as one pass for each."""

import pickle
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import model.evaluation.batch_scoring
import model.evaluation.scoring
from model.config import CALIBRATION, METRICS, DataConfig, InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.images import Sample, collate, load_sample, normalize, padded_shape, resize_shape
from model.data.split import CocoData
from model.evaluation.calibration.errors import calibration
from model.evaluation.scoring import Scores, score
from model.inference.postprocess import detect
from model.inference.predictor import detect_batch
from model.inference.table import TYPES, DetectionTable
from model.network.anchors import anchor_grid
from model.network.checkpoint import save_checkpoint
from model.network.retinanet import RetinaNetConf, build_detector, load_detector
from model.parallel import map_in_order
from model.settings import differences, inference_key
from tests import detectors
from tests.detectors import MODEL
from tests.processes import run_processes

SIZES = DataConfig(short_edge=64, long_edge=128)
SETTINGS = [
    InferenceConfig(),
    InferenceConfig(confidence_exponent=0.0),
    InferenceConfig(fusion="product"),
    InferenceConfig(confidence_exponent=0.0, min_confidence=0.5),
    InferenceConfig(fuse_small_levels=False, nms_pre=60),
    InferenceConfig(confidence_exponent=0.8, max_detections=3, nms_iou=0.3),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=7)


@pytest.fixture(scope="module")
def together(data: CocoData) -> list[Scores]:
    torch.set_num_threads(1)
    return score(opinionated(data), data, SETTINGS, SIZES)


def opinionated(data: CocoData) -> RetinaNetConf:
    return detectors.opinionated(len(data.category_ids))


def same_bits(one: DetectionTable, other: DetectionTable) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in TYPES]
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_every_setting_gets_the_detections_of_a_pass_of_its_own(data: CocoData, together: list[Scores]) -> None:
    for setting, joint in zip(SETTINGS, together, strict=True):
        (alone,) = score(opinionated(data), data, [setting], SIZES)
        assert joint.inference == alone.inference == setting
        assert same_bits(joint.detections, alone.detections)
        assert joint.metrics == alone.metrics
        assert joint.calibration == alone.calibration == calibration(data, alone.detections)
        assert len(alone.detections.scores) > 10
    for place, one in enumerate(together):
        assert not any(same_bits(one.detections, other.detections) for other in together[:place])


def score_here(rank: int, shapes_root: Path, folder: Path, batch_size: int | None) -> None:
    data = read_coco(shapes_root, "val", num_images=7)
    detector = opinionated(data)
    shown: list[int] = []
    detector.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    scores = score(detector, data, SETTINGS, SIZES, batch_size=batch_size)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps((shown, scores)))


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "batch_size"), [(2, None), (2, 3), (3, None), (3, 2), (3, 8)])
def test_any_number_of_processes_gives_the_detections_and_numbers_of_one(
    shapes_root: Path, together: list[Scores], tmp_path: Path, num_processes: int, batch_size: int | None
) -> None:
    run_processes(num_processes, score_here, shapes_root, tmp_path, batch_size)
    shares = []
    for rank in range(num_processes):
        shown, apart = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        shares.append(sum(shown))
        for one, two in zip(together, apart, strict=True):
            assert same_bits(one.detections, two.detections)
            assert one.metrics == two.metrics
            assert one.calibration == two.calibration
    assert shares == ([4, 3] if num_processes == 2 else [3, 2, 2])  # ragged, and no image twice


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_any_batch_size_and_number_of_threads_gives_the_same_bits(
    data: CocoData, together: list[Scores], num_threads: int
) -> None:
    torch.set_num_threads(num_threads)
    for batch_size in (1, 2, 3, 8):
        other = score(opinionated(data), data, SETTINGS, SIZES, batch_size=batch_size)
        assert all(same_bits(mine.detections, theirs.detections) for mine, theirs in zip(together, other, strict=True))
        assert [scores.metrics for scores in together] == [scores.metrics for scores in other]
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize("num_threads", [1, 3])
def test_results_come_in_the_order_of_the_items_whichever_is_ready_first(num_threads: int) -> None:
    def slow(place: int) -> int:
        time.sleep(0.02 * (3 - place % 4))
        return place

    assert list(map_in_order(slow, range(9), num_threads)) == list(range(9))


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 9])
def test_every_image_is_decoded_and_scored_exactly_once(
    data: CocoData, monkeypatch: pytest.MonkeyPatch, num_processes: int, batch_size: int | None
) -> None:
    decoded: list[int] = []
    tables: list[DetectionTable] = []

    def load(data: CocoData, index: int, short_edge: int, long_edge: int, flip: bool) -> Sample:
        decoded.append(index)
        return load_sample(data, index, short_edge, long_edge, flip)

    monkeypatch.setattr("model.inference.predictor.load_sample", load)
    detector, shown = opinionated(data), []
    detector.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    for rank in range(num_processes):
        monkeypatch.setattr(model.evaluation.scoring, "world", lambda rank=rank: (rank, num_processes))
        monkeypatch.setattr(model.evaluation.scoring, "gather", lambda value: [[{}] if value is None else value])
        (scores,) = score(detector, data, SETTINGS[:1], SIZES, batch_size=batch_size)
        tables.append(scores.detections)
    assert sorted(decoded) == list(range(7))
    assert shown == [1] * 7
    ids = [image_id for table in tables for image_id in set(table.image_ids.tolist())]
    assert sorted(ids) == data.image_ids.tolist()


def test_a_pass_of_fixed_size_is_filled_up_and_what_fills_it_is_dropped(data: CocoData) -> None:
    detector, shown = opinionated(data), []
    detector.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    samples = [load_sample(data, 0, SIZES.short_edge, SIZES.long_edge, flip=False) for _ in range(3)]
    batch = collate(samples, pad_to=padded_shape(*samples[0].size))
    found = list(detect_batch(detector, batch, data.category_ids, SETTINGS[:2], images_per_pass=2))
    assert shown == [2, 2]
    assert [len(detections) for detections in found] == [2, 2, 2]
    for detections in found[1:]:  # the same image three times: second in a pass, then first beside a filler
        for one, other in zip(detections, found[0], strict=True):
            assert np.array_equal(one.scores, other.scores) and np.array_equal(one.boxes, other.boxes)


def test_each_detection_is_what_the_image_alone_gives(data: CocoData, together: list[Scores]) -> None:
    detector = opinionated(data)
    for index in range(len(data)):
        sample = load_sample(data, index, SIZES.short_edge, SIZES.long_edge, flip=False)
        batch = collate([sample], pad_to=padded_shape(*sample.size))
        with torch.no_grad():
            images = normalize(batch.images, batch.sizes).contiguous(memory_format=torch.channels_last)
            predictions = detector(images)
        grid = anchor_grid(padded_shape(*sample.size))
        (found,) = detect(predictions, grid, batch.sizes, batch.sizes / batch.original_sizes, SETTINGS[0])
        table = together[0].detections
        rows = table.image_ids == data.image_ids[index]
        assert np.array_equal(table.boxes[rows], found.boxes)
        assert np.array_equal(table.scores[rows], found.scores)
        assert np.array_equal(table.anchors[rows], found.anchors)
        assert table.category_ids[rows].tolist() == [data.category_ids[label] for label in found.category_ids]
        height, width = data.sizes[index].tolist()
        assert (table.boxes[rows] >= 0).all()
        assert (table.boxes[rows] <= np.array([width, height] * 2) * 1.00001).all()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_images_are_padded_to_their_own_size(data: CocoData, batch_size: int) -> None:
    detector = opinionated(data)
    shapes: list[tuple[int, int]] = []

    def see(_: object, inputs: tuple[torch.Tensor]) -> None:
        shapes.extend([(inputs[0].shape[2], inputs[0].shape[3])] * len(inputs[0]))

    detector.register_forward_pre_hook(see)
    score(detector, data, SETTINGS[:1], SIZES, batch_size=batch_size)
    own = [padded_shape(*resize_shape(height, width, 64, 128)) for height, width in data.sizes.tolist()]
    assert sorted(shapes) == sorted(own)
    assert len(set(own)) == 2


def test_decoding_in_other_processes_changes_nothing(data: CocoData, together: list[Scores]) -> None:
    (apart,) = score(opinionated(data), data, SETTINGS[:1], SIZES, num_loader_processes=2)
    assert same_bits(apart.detections, together[0].detections)


def test_scoring_tells_of_its_progress_and_leaves_the_mode_of_the_detector(data: CocoData) -> None:
    detector, seen = opinionated(data), []
    for training in (True, False):
        detector.train(training)
        score(detector, data, SETTINGS[:1], SIZES, progress=lambda done, total: seen.append((done, total)))
        assert detector.training is training
    assert seen == [(done, 7) for done in range(1, 8)] * 2


def test_a_detector_that_finds_nothing_scores_zero(data: CocoData) -> None:
    (scores,) = score(opinionated(data), data, [InferenceConfig(score_threshold=1.0)], SIZES)
    assert len(scores.detections.scores) == 0
    assert tuple(scores.metrics) == METRICS
    assert scores.metrics["AP"] == 0.0
    assert tuple(scores.calibration) == CALIBRATION
    assert scores.calibration["LaECE"] is None and scores.calibration["oLRP"] == 100.0


def test_without_a_branch_only_class_scores_can_be_had(data: CocoData) -> None:
    plain = build_detector(replace(MODEL, confidence=None), len(data.category_ids), seed=0)
    assert score(plain, data, [InferenceConfig(confidence_exponent=0.0)], SIZES)
    with pytest.raises(ValueError, match=r"set inference\.confidence_exponent: 0"):
        score(plain, data, [InferenceConfig()], SIZES)


def saved(detector: RetinaNetConf, data: CocoData, folder: Path) -> Path:
    return save_checkpoint(
        folder,
        weights=detector.state_dict(),
        config=TrainConfig(model=MODEL),
        epoch=1,
        step=1,
        categories=(data.category_ids, data.category_names),
        data_fingerprint=data.fingerprint,
        optimizer={},
    )


def test_a_checkpoints_detector_predicts_as_the_one_that_was_saved(data: CocoData, tmp_path: Path) -> None:
    detector = opinionated(data)
    folder = saved(detector, data, tmp_path / "one")
    loaded = load_detector(folder)
    assert not loaded.training
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = detector(images), loaded(images)
    for kind in ("class_logits", "box_deltas", "confidence_logits"):
        assert all(torch.equal(*pair) for pair in zip(getattr(one, kind), getattr(other, kind), strict=True))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("batch_size", [2, None])
def test_batches_of_a_gpu_get_the_numbers_of_the_cpu(
    data: CocoData, together: list[Scores], batch_size: int | None
) -> None:
    detector, shown, seen = opinionated(data), [], []
    detector.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    batches = score(detector, data, SETTINGS, SIZES, batch_size=batch_size, progress=lambda done, _: seen.append(done))
    assert set(shown) == {batch_size or 16} and seen[-1] == 7 and seen == sorted(seen)
    for alone, batched in zip(together, batches, strict=True):
        assert batched.inference == alone.inference
        one, other = alone.detections, batched.detections
        # Convolutions of more images at once round otherwise, which moves some pairs past each other.
        keys = [set(zip(table.image_ids, table.anchors, table.category_ids, strict=True)) for table in (one, other)]
        assert len(keys[0] ^ keys[1]) <= 0.02 * len(one) and np.array_equal(one.image_ids, other.image_ids)
        assert other.scores == pytest.approx(one.scores, abs=1e-5)
        assert batched.metrics == pytest.approx(alone.metrics, abs=1e-3)
        assert alone.misalignment is not None and batched.misalignment is not None
        for name in ("image_ids", "num_objects", "num_positive_anchors", "num_after"):
            assert np.array_equal(getattr(alone.misalignment, name), getattr(batched.misalignment, name)), name
        assert batched.misalignment.num_before == pytest.approx(alone.misalignment.num_before, abs=3)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_batches_of_a_gpu_count_nothing_where_it_is_not_asked_for(
    data: CocoData, together: list[Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(model.evaluation.scoring, "calibration")
    for name in ("count_candidates", "batch_part", "assign"):
        monkeypatch.delattr(model.evaluation.batch_scoring, name)
    (one,) = score(opinionated(data), data, SETTINGS[:1], SIZES, counting=False)
    assert one.misalignment is None and one.calibration == {}
    assert one.detections.ious == pytest.approx(together[0].detections.ious, abs=1e-3)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_batches_of_a_gpu_do_not_depend_on_the_number_of_processes(
    data: CocoData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_processes(num: int) -> DetectionTable:
        tables = []
        for rank in range(num):
            monkeypatch.setattr(model.evaluation.scoring, "world", lambda rank=rank: (rank, num))
            monkeypatch.setattr(model.evaluation.scoring, "gather", lambda value: [[{}] if value is None else value])
            tables.append(score(opinionated(data), data, SETTINGS[:1], SIZES, batch_size=4)[0].detections)
        return DetectionTable.concatenate(tables)

    alone, shared = of_processes(1), of_processes(3)
    assert len(alone) == 700
    for name in ("image_ids", "category_ids", "anchors"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name)), name
    # Here torch's last bits depend on where a number stands in an array; a GPU's do not.
    assert shared.scores == pytest.approx(alone.scores, abs=2e-7)
    assert shared.boxes == pytest.approx(alone.boxes, abs=1e-4)


@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_each_precision_has_a_forward_pass_of_its_own_and_shares_the_images(
    data: CocoData, together: list[Scores], monkeypatch: pytest.MonkeyPatch, on_a_gpu: bool
) -> None:
    if on_a_gpu:
        monkeypatch.setattr(model.evaluation.scoring, "_on_cuda", lambda _: True)
        monkeypatch.setattr(model.evaluation.scoring, "DataLoader", lambda *a, pin_memory, **k: DataLoader(*a, **k))
    rounded = [replace(SETTINGS[0], precision="bfloat16"), SETTINGS[1], replace(SETTINGS[1], precision="bfloat16")]
    decoded: list[int] = []

    def load(data: CocoData, index: int, short_edge: int, long_edge: int, flip: bool) -> Sample:
        decoded.append(index)
        return load_sample(data, index, short_edge, long_edge, flip)

    monkeypatch.setattr("model.inference.predictor.load_sample", load)
    detector, types = opinionated(data), []
    detector.register_forward_hook(lambda _, __, output: types.append(output.class_logits[0].dtype))
    scores = score(detector, data, rounded, SIZES, counting=False, batch_size=8 if on_a_gpu else 1)
    assert sorted(decoded) == list(range(7))
    assert types.count(torch.bfloat16) == types.count(torch.float32) > 0
    assert [one.inference for one in scores] == rounded
    if not on_a_gpu:
        assert same_bits(scores[1].detections, together[1].detections)
    for one, exact in zip((scores[0], scores[2]), together[:2], strict=True):
        assert one.detections.scores.dtype == np.float32
        assert not np.array_equal(one.detections.scores, exact.detections.scores)
        assert one.detections.scores == pytest.approx(exact.detections.scores, abs=0.05)


@pytest.mark.parametrize(
    ("gib", "part", "lanes"), [(80, 1.0, 2), (80, 0.5, 2), (80, 0.25, 1), (40, 1.0, 2), (16, 1.0, 1)]
)
def test_a_part_of_a_gpu_works_on_as_many_batches_at_once_as_fit_its_memory(
    gib: int, part: float, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
    monkeypatch.setattr("torch.cuda.get_per_process_memory_fraction", lambda _: part)
    assert model.evaluation.scoring._lanes_that_fit(torch.device("cuda")) == lanes


def test_precision_is_no_part_of_the_key_of_a_setting_that_leaves_it_out() -> None:
    assert differences(InferenceConfig()) == differences(InferenceConfig(precision="float32")) == {}
    keys = {inference_key(setting) for setting in (InferenceConfig(), InferenceConfig(precision="bfloat16"))}
    assert len(keys) == 2


def test_weights_in_the_memory_order_of_a_gpu_score_the_same_on_the_cpu(
    data: CocoData, together: list[Scores], tmp_path: Path
) -> None:
    trained = opinionated(data).to(memory_format=torch.channels_last)  # as a training on a GPU leaves them
    folder = saved(trained, data, tmp_path / "one")
    (scores,) = score(load_detector(folder), data, SETTINGS[:1], SIZES)
    assert same_bits(scores.detections, together[0].detections)
    assert scores.metrics == together[0].metrics
