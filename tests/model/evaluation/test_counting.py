"""What a pass counts, against a slow recount of all candidates with torchvision's IoU and NMS."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou, nms

from model.config import DataConfig, InferenceConfig
from model.data.coco import read_coco
from model.data.images import collate, load_sample, padded_shape
from model.data.split import CocoData
from model.evaluation.counting import Objects, image_parts
from model.evaluation.misalignment import BINS, IOUS, PER_IMAGE, SCORES, Misalignment
from model.evaluation.parts import Part, merge
from model.evaluation.scoring import score, score_shards, shards
from model.inference.postprocess import pool, rank, shortlist
from model.inference.predictor import predict_batch
from model.inference.table import DetectionTable
from tests.detectors import SETTINGS, SUPPRESSIONS, opinionated
from tests.model.inference.suppression import references

SIZES = DataConfig(short_edge=64, long_edge=128)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """One image under one setting, with all its candidates."""

    setting: InferenceConfig
    candidates: DetectionTable
    objects: Objects
    categories: NDArray[np.int64]
    """[G] of the objects."""
    part: Part

    @property
    def counts(self) -> Misalignment:
        assert self.part.misalignment is not None
        return self.part.misalignment

    def overlaps(self, boxes: DetectionTable) -> Floats:
        """[n, G] IoU with the objects of a box's class, 0 with others."""
        iou = box_iou(torch.from_numpy(boxes.boxes), torch.from_numpy(self.objects.boxes)).nan_to_num().numpy()
        same: Floats = np.where(boxes.category_ids[:, None] == self.categories, iou, 0).astype(np.float32)
        return same


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=7)


@pytest.fixture(scope="module")
def examples(data: CocoData) -> list[Example]:
    return list(_examples(data, SETTINGS, len(data)))


def _examples(data: CocoData, settings: Sequence[InferenceConfig], num_images: int) -> Iterator[Example]:
    detector = opinionated(len(data.category_ids))
    for index in range(num_images):
        sample = load_sample(data, index, SIZES.short_edge, SIZES.long_edge, flip=False)
        batch = collate([sample], pad_to=padded_shape(*sample.size))
        for image in predict_batch(detector, batch, data.category_ids, 1):
            lists = [shortlist(image, setting) for setting in settings]
            gathered = pool(image, lists)
            some = rank(gathered, lists[0], 400).take(np.arange(25, 400, 25))
            labels = np.searchsorted(data.category_ids, some.category_ids)
            objects = Objects(some.boxes + np.float32(1.5), labels, np.arange(15))  # near boxes, but not on them
            parts = image_parts(gathered, lists, objects, 0)
            for setting, one, part in zip(settings, lists, parts, strict=True):
                yield Example(setting, rank(gathered, one, 10**9), objects, some.category_ids, part)


def test_candidates_and_detections_are_counted_by_class_score_and_by_iou(examples: list[Example]) -> None:
    for example in examples:
        counts, kept = example.counts, example.part.detections
        before, after = example.overlaps(example.candidates).max(axis=1), example.overlaps(kept).max(axis=1)
        assert counts.num_before.tolist() == [len(example.candidates)]
        assert counts.scores_before[0].tolist() == [
            (example.candidates.class_scores > np.float32(t)).sum() for t in SCORES
        ]
        assert counts.ious_before[0].tolist() == [(before > np.float32(t)).sum() for t in IOUS]
        assert counts.scores_after[0].tolist() == [(kept.class_scores > np.float32(t)).sum() for t in SCORES]
        assert counts.ious_after[0].tolist() == [(after > np.float32(t)).sum() for t in IOUS]
        assert example.part.detections.ious == pytest.approx(after, abs=1e-6)
        for scores, ious, density in (
            (example.candidates.scores, before, counts.density_before),
            (kept.scores, after, counts.density_after),
        ):
            inside = ious > 0
            by_score, by_iou = (np.repeat(cells, density[density > 0]) for cells in np.nonzero(density))
            for bins, values in ((by_score, scores[inside]), (by_iou, ious[inside])):
                expected = np.minimum(np.sort((values * BINS).astype(int)), BINS - 1)
                differ = np.abs(np.sort(bins) - expected)
                assert differ.max(initial=0) <= 1 and differ.sum() <= 2  # a value may lie on the border of two bins
    assert sum(int(example.counts.ious_before[0, 0]) for example in examples) > 100


def test_what_nms_dropped_for_a_worse_box_is_found_by_hand_as_well(examples: list[Example]) -> None:
    total = 0
    for example in examples:
        candidates, kept, limit = example.candidates, example.part.detections, np.float32(example.setting.nms_iou)
        overlaps, kept_overlaps = example.overlaps(candidates), example.overlaps(kept)
        pairs = box_iou(torch.from_numpy(candidates.boxes), torch.from_numpy(kept.boxes)).numpy()
        rank_of = {key: r for r, key in enumerate(zip(candidates.anchors, candidates.category_ids, strict=True))}
        ranks = [rank_of[key] for key in zip(kept.anchors, kept.category_ids, strict=True)]
        found: dict[tuple[int, int], list[float]] = defaultdict(list)
        for place in range(len(candidates.scores)):
            g = int(overlaps[place].argmax())
            if overlaps[place, g] < 0.5:
                continue
            for k, kept_rank in enumerate(ranks):
                if kept_rank >= place:
                    break
                if kept.category_ids[k] == candidates.category_ids[place] and pairs[place, k] > limit:
                    if overlaps[place, g] > kept_overlaps[k, g]:
                        found[k, g].append(float(overlaps[place, g]))
                    break
        dropped = example.counts.dropped
        assert sorted(dropped.counts.tolist()) == sorted(map(len, found.values()))
        assert sorted(dropped.ious.tolist()) == pytest.approx(sorted(map(max, found.values())), abs=1e-6)
        assert set(dropped.kept_anchors.tolist()) == {int(kept.anchors[k]) for k, _ in found}
        assert (dropped.ious > dropped.kept_ious).all()
        total += len(found)
    assert total > 30


@pytest.mark.parametrize("setting", SUPPRESSIONS, ids=lambda setting: setting.suppression)
def test_what_other_kinds_drop_for_a_worse_box_is_what_each_winner_drops(
    data: CocoData, setting: InferenceConfig
) -> None:
    total = 0
    for example in _examples(data, [InferenceConfig(), setting], 2):
        if example.setting.suppression == "nms":  # after whose candidates the objects are placed
            continue
        candidates, dropped = example.candidates, example.counts.dropped
        if setting.suppression.startswith(("soft", "matrix")):
            assert len(dropped) == 0
            continue
        labels = np.searchsorted(data.category_ids, candidates.category_ids)
        one = references.ranked(candidates.boxes, candidates.scores, labels, candidates.confidences)
        order = list(range(len(labels)))
        if setting.suppression == "iou_guided":
            order = np.argsort(-candidates.confidences, kind="stable").tolist()
        overlap = references.dious if setting.suppression == "diou" else references.ious
        won = references.greedy(overlap(one), order, setting.nms_iou)
        kept = set(zip(example.part.detections.anchors, example.part.detections.category_ids, strict=True))
        detected = [k for k in won if (candidates.anchors[k], candidates.category_ids[k]) in kept]
        overlaps = example.overlaps(candidates)
        found: dict[tuple[int, int], list[float]] = defaultdict(list)
        for k in detected:
            for w in won[k]:
                g = int(overlaps[w].argmax())
                if overlaps[w, g] >= 0.5 and overlaps[w, g] > overlaps[k, g]:
                    found[k, g].append(float(overlaps[w, g]))
        assert sorted(dropped.counts.tolist()) == sorted(map(len, found.values()))
        assert sorted(dropped.ious.tolist()) == pytest.approx(sorted(map(max, found.values())), abs=1e-6)
        assert set(dropped.kept_anchors.tolist()) == {int(candidates.anchors[k]) for k, _ in found}
        total += len(found)
    assert total > 0 or setting.suppression.startswith(("soft", "matrix"))


def test_an_oracle_ranks_by_iou_whatever_the_kind_and_drops_by_diou_where_that_is_asked_for(data: CocoData) -> None:
    settings = [replace(InferenceConfig(), suppression=kind) for kind in ("nms", "voting", "soft_gaussian", "diou")]
    by_nms, *others, by_diou = _examples(data, settings, 1)
    expected = by_nms.counts.oracle
    for oracle in (other.counts.oracle for other in others):
        assert np.array_equal(oracle.boxes, expected.boxes) and np.array_equal(oracle.scores, expected.scores)
    own = by_diou.overlaps(by_diou.candidates).max(axis=1)
    placed = by_diou.candidates.take(np.flatnonzero(own >= 0.5))
    one = references.ranked(placed.boxes, own[own >= 0.5], np.searchsorted(data.category_ids, placed.category_ids))
    won = references.greedy(references.dious(one), list(range(len(placed))), 0.5)
    assert by_diou.counts.oracle.scores == pytest.approx(one.scores[list(won)], abs=1e-6)
    assert not np.array_equal(by_diou.counts.oracle.boxes, expected.boxes)


def test_an_oracle_keeps_what_nms_by_iou_would_keep(examples: list[Example]) -> None:
    for example in examples:
        own = example.overlaps(example.candidates).max(axis=1)
        placed = np.flatnonzero(own >= 0.5)
        boxes, scores = torch.from_numpy(example.candidates.boxes[placed]), torch.from_numpy(own[placed])
        apart = boxes.double() + 1e4 * torch.from_numpy(example.candidates.category_ids[placed])[:, None]
        kept = nms(apart, scores.double(), example.setting.nms_iou)[: example.setting.max_detections]
        assert example.counts.oracle.scores == pytest.approx(scores[kept].numpy(), abs=1e-6)


def test_parts_in_any_order_make_the_whole(data: CocoData) -> None:
    detector = opinionated(len(data.category_ids))
    (whole,) = score(detector, data, SETTINGS[:1], SIZES)
    alone = [(index,) for index in range(len(data))]
    parts = [part for (part,) in score_shards(detector, data, alone, SETTINGS[:1], SIZES)]
    joined = merge([*parts[3:], *parts[:3]])
    assert whole.misalignment is not None and joined.misalignment is not None
    for name in (*PER_IMAGE, "density_before", "density_after"):
        assert np.array_equal(getattr(whole.misalignment, name), getattr(joined.misalignment, name)), name
    for name in ("image_ids", "ious", "kept_ious", "objects", "counts"):
        assert np.array_equal(getattr(whole.misalignment.dropped, name), getattr(joined.misalignment.dropped, name))
    assert np.array_equal(whole.misalignment.oracle.scores, joined.misalignment.oracle.scores)
    assert whole.misalignment.num_objects.tolist() == np.diff(data.offsets).tolist()
    assert (whole.misalignment.num_positive_anchors >= whole.misalignment.num_objects).all()
    assert whole.misalignment.density_after.sum() == (whole.detections.ious > 0).sum()


def test_a_setting_counts_the_same_alone_and_among_others(data: CocoData) -> None:
    detector = opinionated(len(data.category_ids))
    for setting, joint in zip(SETTINGS, score(detector, data, SETTINGS, SIZES), strict=True):
        (alone,) = score(detector, data, [setting], SIZES)
        assert alone.misalignment is not None and joint.misalignment is not None
        for name in (*PER_IMAGE, "density_before", "density_after"):
            assert np.array_equal(getattr(alone.misalignment, name), getattr(joint.misalignment, name)), name
        assert np.array_equal(alone.misalignment.dropped.ious, joint.misalignment.dropped.ious)


def test_counting_is_left_out_where_it_is_not_asked_for(data: CocoData) -> None:
    (one,) = score(opinionated(len(data.category_ids)), data, SETTINGS[:1], SIZES, counting=False)
    assert one.misalignment is None
    assert one.detections.ious.max() > 0.1


def test_exponent_0_is_the_class_score_to_the_last_bit(data: CocoData) -> None:
    (one,) = score(opinionated(len(data.category_ids)), data, SETTINGS[1:2], SIZES)
    assert np.array_equal(one.detections.scores, one.detections.class_scores)
    assert one.detections.levels.min() >= 3 and one.detections.levels.max() <= 7
    assert one.detections.confidences.min() > 0 and one.detections.confidences.max() < 1


def test_shards_hold_every_image_once_and_do_not_depend_on_the_number_of_processes(data: CocoData) -> None:
    divided = shards(data, SIZES)
    assert sorted(index for shard in divided for index in shard) == list(range(len(data)))


def test_an_image_without_objects_counts_nothing_placed(data: CocoData) -> None:
    bare = replace(
        data,
        offsets=np.zeros(len(data) + 1, np.int64),
        annotation_ids=data.annotation_ids[:0],
        annotation_boxes=data.annotation_boxes[:0],
        annotation_areas=data.annotation_areas[:0],
        annotation_labels=data.annotation_labels[:0],
        annotation_crowds=data.annotation_crowds[:0],
    )
    (one,) = score(opinionated(len(data.category_ids)), bare, SETTINGS[:1], SIZES)
    assert one.misalignment is not None
    assert one.misalignment.num_before.min() > 0
    assert not one.misalignment.ious_before.any() and not one.detections.ious.any()
    assert isinstance(one.misalignment.oracle, DetectionTable) and len(one.misalignment.oracle) == 0
    assert one.metrics["AP"] is None
