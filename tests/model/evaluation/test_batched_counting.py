"""What is counted of a batch on the device is what is counted of each image on the CPU."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import InferenceConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.batched_counting import batch_objects, batch_part, count_candidates, with_ious
from model.evaluation.counting import Objects, image_parts, objects_of
from model.evaluation.misalignment import PER_IMAGE
from model.evaluation.parts import Part, merge
from model.evaluation.scoring import shards
from model.inference import batched
from model.inference.batched_scores import of_batch
from model.inference.postprocess import pool, shortlist, split
from model.inference.predictor import forward_passes, load_batch
from model.network.anchors import anchor_grid
from tests.detectors import SETTINGS, SIZES, SUPPRESSIONS, opinionated, with_objects_where_it_finds_some

MANY = [
    *SETTINGS,
    InferenceConfig(confidence_exponent=0.8, nms_iou=0.7),
    *SUPPRESSIONS,
]
Pairs = list[tuple[Part, Part]]


@pytest.fixture(scope="module")
def data(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    torch.set_num_threads(1)
    images = read_coco(shapes_root, "val", num_images=7)
    return with_objects_where_it_finds_some(tmp_path_factory.mktemp("data") / "placed", images)


def of_one_shape(data: CocoData) -> list[int]:
    """The places of three images that fit one batch."""
    return list(max(shards(data, SIZES), key=len)[:3])


def both_ways(data: CocoData, of_images: list[Objects]) -> Pairs:
    """Under each setting the part of three images of one shape, counted one by one and all at once."""
    chosen = of_one_shape(data)
    batch = load_batch(data, chosen, SIZES)
    with torch.inference_mode():
        detector = opinionated(len(data.category_ids))
        ((_, predictions),) = forward_passes(detector, batch, len(chosen), "float32")
        grid, scales = anchor_grid(batch.shape), batch.sizes / batch.original_sizes
        image_ids, category_ids = batch.image_ids.numpy(), np.asarray(data.category_ids)
        one_by_one = []
        for image, truth in zip(
            split(predictions, grid, batch.sizes, scales, image_ids.tolist(), data.category_ids), of_images, strict=True
        ):
            lists = [shortlist(image, setting) for setting in MANY]
            one_by_one.append(image_parts(pool(image, lists), lists, truth, 7))
        images, objects = of_batch(predictions, grid, batch.sizes, scales), batch_objects(of_images)
        together = {}
        for found in batched.detect(images, MANY, image_ids, category_ids):
            counted = count_candidates(images, found.scored, objects)
            for number, (place, table) in enumerate(zip(found.scored.places, found.tables, strict=True)):
                ends = np.cumsum([0, *found.count[:, number]])
                droppers = None
                if found.droppers is not None:
                    droppers = found.droppers[0][number], np.cumsum([0, *found.droppers[1][:, number]])
                kept = with_ious(table, ends, objects, category_ids)
                sevens = np.full(len(chosen), 7, np.int32)
                together[place] = batch_part(
                    counted, number, MANY[place], kept, ends, objects, image_ids, category_ids, sevens, droppers
                )
    return [(merge([parts[place] for parts in one_by_one]), merge([together[place]])) for place in range(len(MANY))]


@pytest.fixture(scope="module")
def pairs(data: CocoData) -> Pairs:
    return both_ways(data, [objects_of(data, place) for place in of_one_shape(data)])


def assert_same_table(one: object, other: object) -> None:
    for field in fields(one):  # type: ignore[arg-type]
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert mine.dtype == theirs.dtype, field.name
        assert theirs == pytest.approx(mine, abs=1e-4, nan_ok=True), field.name


def test_every_count_of_a_batch_is_that_of_its_images(pairs: Pairs) -> None:
    for one, other in pairs:
        assert one.misalignment is not None and other.misalignment is not None
        for name in (*PER_IMAGE, "density_before", "density_after"):
            mine, theirs = getattr(one.misalignment, name), getattr(other.misalignment, name)
            assert mine.dtype == theirs.dtype, name
            # Single precision may put a value on the border of two bins into either.
            assert np.abs(mine - theirs).sum() <= (2 if name.startswith("density") else 0), name
    first = pairs[0][0].misalignment
    assert first is not None and first.ious_before[:, 0].min() > 0 and first.scores_before[:, 1].min() > 0


def test_detections_have_their_overlaps_with_the_objects(pairs: Pairs) -> None:
    for one, other in pairs:
        assert_same_table(one.detections, other.detections)
    assert pairs[0][1].detections.ious.max() > 0.5


def test_dropped_boxes_and_the_oracle_are_the_same(pairs: Pairs) -> None:
    for one, other in pairs:
        assert one.misalignment is not None and other.misalignment is not None
        assert_same_table(one.misalignment.dropped, other.misalignment.dropped)
        assert_same_table(one.misalignment.oracle, other.misalignment.oracle)
    assert sum(len(one.misalignment.dropped) for one, _ in pairs if one.misalignment) > 10


def test_twin_objects_crowded_classes_and_images_without_any_are_counted_alike(data: CocoData) -> None:
    first = objects_of(data, of_one_shape(data)[1])
    # Each object twice, so that every overlap is a tie, and with classes that fall.
    twice = np.tile(np.argsort(-first.labels, kind="stable"), 2)
    crowded = Objects(first.boxes[twice], first.labels[twice], np.arange(len(twice)))
    nothing = Objects(first.boxes[:0], first.labels[:0], first.rows[:0])
    for one, other in both_ways(data, [nothing, crowded, nothing]):
        assert one.misalignment is not None and other.misalignment is not None
        for name in PER_IMAGE:
            assert np.array_equal(getattr(one.misalignment, name), getattr(other.misalignment, name)), name
        assert len(one.misalignment.dropped) == len(other.misalignment.dropped)
        assert other.misalignment.oracle.scores == pytest.approx(one.misalignment.oracle.scores, abs=1e-6)
    for _, other in both_ways(data, [nothing, nothing, nothing]):
        assert other.misalignment is not None and not other.detections.ious.any()
        assert other.misalignment.num_before.min() > 0 and len(other.misalignment.oracle) == 0
