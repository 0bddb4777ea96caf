"""Reading, transforming and ordering images; expected numbers are worked out by hand unless a test says otherwise."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from model.config import DataConfig, TrainConfig
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.images import (
    collate,
    flip_boxes,
    load_sample,
    normalize,
    padded_shape,
    resize,
    resize_boxes,
    resize_shape,
)
from model.data.split import CocoData
from model.training.batches import batch_shape, epoch_batches, flips
from tests.conftest import MakeCoco


def annotation(id: int, bbox: list[float], image_id: int = 1, category_id: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def config(**data: Any) -> TrainConfig:
    return TrainConfig(global_batch=4, data=DataConfig(**data))


@pytest.fixture
def mixed(make_coco: MakeCoco) -> CocoData:
    """29 images: 11 wide, 9 high, 6 square, one of them empty, and 3 with a side below 32; ids are not in order."""
    sizes = [(40, 60)] * 11 + [(60, 40)] * 9 + [(40, 40)] * 6 + [(31, 90), (90, 31), (31, 31)]
    images: list[dict[str, Any]] = [
        {"id": 1000 - 7 * place, "file_name": f"{place}.png", "height": height, "width": width}
        for place, (height, width) in enumerate(sizes)
    ]
    annotations = [annotation(i + 1, [1, 2, 20, 21], image["id"]) for i, image in enumerate(images) if i != 25]
    return read_coco(make_coco(annotations, images=images), "train")


def test_categories_of_any_ids_become_labels_in_the_order_of_their_ids(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([annotation(1, [1, 2, 3, 4], category_id=8), annotation(2, [5, 6, 7, 8])]), "train")
    assert data.category_ids == (3, 8)
    assert data.category_names == ("dog", "cat")
    assert data.labels(0).tolist() == [1, 0]
    assert data.boxes(0).tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert (data.boxes(0).dtype.name, data.labels(0).dtype.name) == ("float32", "int64")


def test_annotations_find_their_image_whatever_the_order_of_the_file(make_coco: MakeCoco) -> None:
    annotations = [annotation(7, [7, 0, 9, 9], 3), annotation(2, [2, 0, 9, 9], 1), annotation(1, [1, 0, 9, 9], 3)]
    data = read_coco(make_coco(annotations, sizes=[(60, 80)] * 3), "train")
    assert [data.boxes(i)[:, 0].tolist() for i in range(3)] == [[2], [], [7, 1]]


def test_crowds_and_boxes_under_a_pixel_are_not_learnt_but_reach_the_evaluator(make_coco: MakeCoco) -> None:
    annotations = [
        annotation(1, [1, 1, 30, 30], iscrowd=1, area=900.0),
        annotation(2, [1, 1, 30, 0.99]),
        annotation(3, [1, 1, 0.99, 30]),
        annotation(4, [1, 1, 30, 30], area=0),
        annotation(5, [1, 1, 1, 1], area=0.6),
    ]
    data = read_coco(make_coco(annotations), "train")
    assert data.boxes(0).tolist() == [[1, 1, 31, 31], [1, 1, 2, 2]]
    truth = data.coco_dict()["annotations"]
    assert [(row["id"], row["iscrowd"]) for row in truth] == [(1, 1), (2, 0), (3, 0), (4, 0), (5, 0)]
    assert [row["area"] for row in truth[3:]] == [900, 0.6]


def test_a_box_half_a_pixel_outside_is_clipped_for_training_and_kept_for_evaluation(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([annotation(1, [-0.5, 10.25, 80.9, 50.75])]), "train")
    assert data.boxes(0).tolist() == [[0, 10.25, 80, 60]]
    assert data.coco_dict()["annotations"][0]["bbox"] == [-0.5, 10.25, 80.9, 50.75]
    assert data.faults == ()


def test_an_annotation_without_area_has_the_area_of_its_box(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([annotation(1, [1, 1, 3, 5])]), "train")
    assert data.coco_dict()["annotations"][0]["area"] == 15


def test_an_annotation_id_of_zero_does_not_reach_the_evaluator(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([annotation(0, [1, 1, 3, 5]), annotation(1, [1, 1, 9, 9])]), "train")
    assert [row["id"] for row in data.coco_dict()["annotations"]] == [1, 2]


def test_the_first_images_by_id_are_taken_with_their_annotations(mixed: CocoData) -> None:
    some = read_coco(mixed.root, "train", num_images=5)
    assert some.image_ids.tolist() == sorted(mixed.image_ids.tolist())[:5] == [804, 811, 818, 825, 832]
    assert some.file_names == ["28.png", "27.png", "26.png", "25.png", "24.png"]
    truth = some.coco_dict()
    assert [image["id"] for image in truth["images"]] == [804, 811, 818, 825, 832]
    assert sorted({row["image_id"] for row in truth["annotations"]}) == [804, 811, 818, 832]
    assert len(read_coco(mixed.root, "train", num_images=1000)) == 29


def test_the_fingerprint_follows_the_content_alone(make_coco: MakeCoco) -> None:
    def fingerprint(**tables: Any) -> str:
        plain = {"annotations": [annotation(1, [1, 1, 3, 5])]}
        return read_coco(make_coco(**plain | tables), "train").fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(info={"year": 2017}) == first
    assert len(first) == 64
    others = {
        fingerprint(annotations=[annotation(1, [1, 1, 3, 5.01])]),
        fingerprint(annotations=[annotation(1, [1, 1, 3, 5], category_id=8)]),
        fingerprint(annotations=[annotation(1, [1, 1, 3, 5], iscrowd=1)]),
        fingerprint(categories=[{"id": 3, "name": "dog"}, {"id": 8, "name": "cow"}]),
        fingerprint(images=[{"id": 1, "file_name": "2.jpg", "height": 60, "width": 80}]),
        fingerprint(images=[{"id": 1, "file_name": "1.jpg", "height": 61, "width": 80}]),
    }
    assert len(others | {first}) == 7


def test_the_data_survive_a_journey_to_another_process(mixed: CocoData) -> None:
    there = pickle.loads(pickle.dumps(mixed))
    assert there.fingerprint == mixed.fingerprint
    assert [there.boxes(i).tolist() for i in range(29)] == [mixed.boxes(i).tolist() for i in range(29)]


def test_real_coco_reads_as_pycocotools_reads_it(coco_root: Path) -> None:
    for split, num_images, num_annotations, num_crowds in (("train2017", 122, 1218, 13), ("val2017", 116, 903, 10)):
        data = read_coco(coco_root, split)
        truth = COCO(str(coco_root / "annotations" / f"instances_{split}.json"))
        assert (len(data), len(data.annotation_ids), data.annotation_crowds.sum()) == (
            num_images,
            num_annotations,
            num_crowds,
        )
        assert data.category_ids == tuple(sorted(truth.getCatIds()))
        assert data.faults == ()
        columns = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        rows = {row["id"]: row for row in data.coco_dict()["annotations"]}
        assert rows == {id: {name: row[name] for name in columns} for id, row in truth.anns.items()}
        assert [image["id"] for image in data.coco_dict()["images"]] == sorted(truth.getImgIds())


def test_every_image_of_an_epoch_comes_once_and_small_or_empty_ones_never(mixed: CocoData) -> None:
    batches = epoch_batches(mixed, config(), epoch=0)
    seen = sorted(mixed.file_names[i] for batch in batches for i in batch)
    assert seen == sorted(f"{place}.png" for place in range(25))
    assert sorted(map(len, batches)) == [2, 3, 4, 4, 4, 4, 4]  # 11 wide: 4 4 3; 14 high or square: 4 4 4 2


def test_empty_images_train_where_the_setting_says_so(mixed: CocoData) -> None:
    batches = epoch_batches(mixed, config(train_on_empty_images=True), epoch=0)
    assert sorted(mixed.file_names[i] for batch in batches for i in batch) == sorted(f"{i}.png" for i in range(26))


def test_wide_images_share_no_batch_with_others(mixed: CocoData) -> None:
    for epoch in range(5):
        for batch in epoch_batches(mixed, config(), epoch):
            assert len({width > height for height, width in mixed.sizes[batch].tolist()}) == 1


def test_order_changes_with_epoch_and_seed_and_with_nothing_else(mixed: CocoData) -> None:
    first = epoch_batches(mixed, config(), epoch=0)
    assert epoch_batches(mixed, config(short_edge=64), epoch=0) == first
    orders = [first, epoch_batches(mixed, config(), 1), epoch_batches(mixed, replace(config(), seed=1), 0)]
    contents = [sorted(map(sorted, order)) for order in orders]
    assert contents[0] != contents[1] != contents[2] != contents[0]


def test_batches_of_both_groups_are_mixed_over_the_epoch(mixed: CocoData) -> None:
    kinds = set()
    for epoch in range(20):
        batches = epoch_batches(mixed, config(), epoch)
        kinds.add(tuple(bool(mixed.sizes[batch[0], 1] > mixed.sizes[batch[0], 0]) for batch in batches))
    assert len(kinds) > 5


def test_order_and_flips_are_those_of_every_other_release(mixed: CocoData) -> None:
    # By SplitMix64 in whole numbers. A training that a later release resumes must go on with the same batches.
    first, second = (mixed.image_ids[batch].tolist() for batch in epoch_batches(mixed, config(), epoch=2)[:2])
    assert (first, second) == ([958, 951, 993, 972], [1000, 930, 979])
    assert [id for id in range(1, 21) if flips(config(), 2, id)] == [2, 4, 6, 8, 9, 10, 11, 13, 14, 18, 19]


def test_an_image_with_crowds_only_trains_as_in_the_released_code(make_coco: MakeCoco) -> None:
    annotations = [annotation(1, [1, 1, 9, 9], iscrowd=1), annotation(2, [1, 1, 9, 9], 3)]
    data = read_coco(make_coco(annotations, sizes=[(60, 80)] * 3), "train")
    assert sorted(epoch_batches(data, config(), 0)[0]) == [0, 2]


def test_flips_come_as_often_as_asked_and_anew_every_epoch() -> None:
    def flipped(probability: float, epoch: int = 0, seed: int = 0) -> set[int]:
        setting = replace(config(flip_probability=probability), seed=seed)
        return {id for id in range(2000) if flips(setting, epoch, id)}

    assert flipped(0.0) == set()
    assert len(flipped(1.0)) == 2000
    half = flipped(0.5)
    assert 900 < len(half) < 1100  # 1000 +- 4.5 standard deviations of 22.4
    for other in (flipped(0.5, epoch=1), flipped(0.5, seed=1)):
        assert 400 < len(half & other) < 600  # independent: a quarter
    assert flipped(0.2) < half


def test_a_split_of_which_nothing_can_train_is_refused(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([]), "train")
    with pytest.raises(DataError, match=r"no image of split 'train' can train.*train_on_empty_images"):
        epoch_batches(data, config(), 0)


# Rows of short edge, long edge, height, width, resized height and width; the fourth is bound by the long edge.
RESIZED = [
    (600, 1000, 480, 640, 600, 800),  # 1.25
    (600, 1000, 427, 640, 600, 899),  # 600 / 427 * 640 = 899.3
    (608, 1024, 51, 59, 608, 703),  # 608 / 51 * 59 = 703.4
    (608, 1024, 361, 640, 578, 1024),  # 1.6 * 361 = 577.6
    (600, 1000, 640, 150, 1000, 234),  # 1.5625 * 150 = 234.4
    (128, 128, 96, 128, 96, 128),
    (32, 100, 5000, 1, 100, 1),  # never less than a pixel
]


@pytest.mark.parametrize("row", RESIZED)
def test_resized_shapes_follow_the_nearer_of_both_edges(row: tuple[int, ...]) -> None:
    short, long, height, width, new_height, new_width = row
    assert resize_shape(height, width, short, long) == (new_height, new_width)


def test_padded_sides_are_the_next_multiples_of_32() -> None:
    assert padded_shape(600, 800) == (608, 800)
    assert padded_shape(1, 33) == (32, 64)


def test_a_batch_is_as_large_as_its_largest_sides(mixed: CocoData) -> None:
    # Short edge 48 of at most 64: 40 x 60 becomes 43 x 64 (padded 64 x 64), 60 x 40 becomes 64 x 43, 31 x 90 22 x 64.
    names = mixed.file_names
    wide, flat = names.index("0.png"), names.index("26.png")
    setting = config(short_edge=48, long_edge=64)
    assert batch_shape(mixed, [wide], setting) == (64, 64)
    assert batch_shape(mixed, [flat], setting) == (32, 64)
    assert batch_shape(mixed, [flat, wide], setting) == (64, 64)


def test_an_epoch_has_few_shapes(make_coco: MakeCoco) -> None:
    # A GPU step is compiled, or captured as a graph, for each shape. Short sides are all 600, padded 608; long ones are
    # 800 (4:3) to 1000 (16:9 at the limit of the long edge), padded 800, 832, ... 1024.
    random = np.random.default_rng(0)
    ratios = random.choice([1.0, 4 / 3, 1.5, 16 / 9], 1600, p=[0.1, 0.5, 0.35, 0.05]) + random.normal(0, 0.01, 1600)
    sides = [(640, max(1, round(640 / ratio))) for ratio in ratios.clip(min=1).tolist()]
    tall = random.random(1600) < 0.3
    sizes = np.array([side if high else side[::-1] for side, high in zip(sides, tall, strict=True)], dtype=np.int32)
    one = read_coco(make_coco([annotation(1, [1, 1, 9, 9])]), "train")
    data = replace(one, sizes=sizes, image_ids=np.arange(1600), offsets=np.arange(1601))
    setting = TrainConfig(data=DataConfig())
    batches = [batch for batch in epoch_batches(data, setting, 0) if len(batch) == 16]
    assert len(batches) > 90
    shapes = {batch_shape(data, batch, setting) for batch in batches}
    assert {min(shape) for shape in shapes} == {608}
    assert 2 <= len(shapes) <= 2 * 8


def test_bilinear_resizing_blends_neighbours_at_pixel_centres_without_antialiasing() -> None:
    row = torch.tensor([0, 100, 200, 40], dtype=torch.uint8).expand(3, 1, 4)
    # To 2: centres 0.5 and 2.5 of the old grid, halfway between two pixels. To 8: quarters.
    assert resize(row, (1, 2))[0, 0].tolist() == [50, 120]
    assert resize(row, (1, 8))[0, 0].tolist() == [0, 25, 75, 125, 175, 160, 80, 40]
    # To 1 from 4: the centre 1.5 lies between 100 and 200; antialiasing would average all four to 85.
    assert resize(row, (1, 1))[0, 0].tolist() == [150]


def test_boxes_scale_by_the_rounded_sides_are_clipped_and_mirrored() -> None:
    boxes = np.array([[10, 20, 30, 40], [-2, 0, 60, 41]], dtype=np.float32)
    scaled = resize_boxes(boxes, old=(40, 60), new=(20, 90))
    assert scaled.tolist() == [[15, 10, 45, 20], [0, 0, 90, 20]]
    assert flip_boxes(scaled, 90).tolist() == [[45, 10, 75, 20], [0, 0, 90, 20]]


def test_a_mirrored_sample_is_the_mirror_image_of_the_plain_one(shapes_root: Path) -> None:
    data = read_coco(shapes_root, "train")
    plain, mirrored = (load_sample(data, 0, 96, 160, flip) for flip in (False, True))
    assert torch.equal(mirrored.image, plain.image.flip(2))
    width = plain.size[1]
    assert torch.equal(mirrored.boxes[:, 0], width - plain.boxes[:, 2])
    assert torch.equal(mirrored.boxes[:, [1, 3]], plain.boxes[:, [1, 3]])
    assert torch.equal(mirrored.labels, plain.labels)
    assert (plain.flipped, mirrored.flipped) == (False, True)


def test_preprocessing_equals_the_released_code(vectors_root: Path) -> None:
    known = np.load(vectors_root / "preprocess.npz")
    for long, short, height, width, *expected in known["resize_table"].tolist():
        new = resize_shape(height, width, short, long)
        assert [*new, *padded_shape(*new)] == expected
    image = torch.from_numpy(known["image_bgr_uint8"][..., ::-1].copy()).permute(2, 0, 1)
    long, short = known["img_scale_long_short"].tolist()
    old = (image.shape[1], image.shape[2])
    new = resize_shape(*old, short, long)
    resized = resize(image, new)
    by_release = torch.from_numpy(known["resized_bgr_uint8"][..., ::-1].copy()).permute(2, 0, 1)
    assert (resized.int() - by_release.int()).abs().max() <= 1
    boxes = resize_boxes(known["boxes"], old, new)
    for flip in (0, 1):
        np.testing.assert_allclose(flip_boxes(boxes, new[1]) if flip else boxes, known[f"out_boxes_flip{flip}"], 1e-5)
        batch = torch.zeros(1, 3, *known["pad_shape"].tolist(), dtype=torch.uint8)
        batch[0, :, : new[0], : new[1]] = by_release.flip(2) if flip else by_release
        normal = normalize(batch, torch.tensor([new]))[0].numpy()
        np.testing.assert_allclose(normal, known[f"out_chw_flip{flip}"], atol=1e-5)


def test_normalising_centres_each_channel_and_zeroes_the_padding() -> None:
    images = torch.full((2, 3, 4, 6), 255, dtype=torch.uint8)
    images[0, :, 0, 0] = torch.tensor([124, 116, 104], dtype=torch.uint8)
    normal = normalize(images, torch.tensor([[2, 6], [4, 3]]))
    by_hand = torch.tensor([0.325 / 58.395, -0.28 / 57.12, 0.47 / 57.375])
    torch.testing.assert_close(normal[0, :, 0, 0], by_hand, atol=1e-6, rtol=0)
    torch.testing.assert_close(normal[1, 0, 3, 2].item(), (255 - 123.675) / 58.395)
    assert not normal[0, :, 2:].any()
    assert not normal[1, :, :, 3:].any()
    assert normal[0, :, :2].all()
    assert normal[1, :, :, :3].all()


def test_an_image_that_breaks_after_the_check_names_itself(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([]), "train")
    data.path(0).write_bytes(data.path(0).read_bytes()[:400])
    with pytest.raises(DataError, match=r"1\.jpg: the image does not decode"):
        load_sample(data, 0, 600, 1000, False)
    Image.new("RGB", (60, 80)).save(data.path(0))
    with pytest.raises(DataError, match=r"1\.jpg: is \(80, 60\) \(height, width\), annotated \(60, 80\)"):
        load_sample(data, 0, 600, 1000, False)


def test_a_batch_pads_images_and_lists_boxes_image_after_image(make_coco: MakeCoco) -> None:
    annotations = [annotation(1, [1, 2, 3, 4], 1), annotation(2, [0, 0, 8, 8], 1, 8)]
    data = read_coco(make_coco(annotations, sizes=[(60, 80), (40, 100)]), "train")
    samples = [load_sample(data, i, 40, 100, False) for i in (0, 1)]
    batch = collate(samples, pad_to=(64, 128))
    assert batch.images.shape == (2, 3, 64, 128)
    assert batch.sizes.tolist() == [[40, 53], [40, 100]]
    assert batch.original_sizes.tolist() == [[60, 80], [40, 100]]
    assert torch.equal(batch.images[0, :, :40, :53], samples[0].image)
    assert batch.images[0, :, 40:].sum() == batch.images[0, :, :, 53:].sum() == 0
    assert batch.labels.tolist() == [0, 1]
    assert batch.image_index.tolist() == [0, 0]
    expected = torch.tensor([[1 * 53 / 80, 2 * 40 / 60, 4 * 53 / 80, 4.0], [0, 0, 8 * 53 / 80, 8 * 40 / 60]])
    torch.testing.assert_close(batch.boxes, expected)
    assert batch.image_ids.tolist() == [1, 2]
    swapped = collate(samples[::-1], pad_to=(64, 128))
    assert swapped.image_index.tolist() == [1, 1]


def test_a_batch_without_any_box_has_an_empty_list(make_coco: MakeCoco) -> None:
    data = read_coco(make_coco([]), "train")
    batch = collate([load_sample(data, 0, 32, 64, False)], pad_to=(32, 64))
    assert (batch.boxes.shape, batch.labels.shape, batch.image_index.shape) == ((0, 4), (0,), (0,))


def test_outlines_do_not_matter_however_they_are_written(make_coco: MakeCoco) -> None:
    outlines: list[Any] = [[[1.5, 2, 3e1, -4]], {"counts": [1, 2], "size": [3, 4]}, {"counts": "a]b"}, [], None]
    annotations = [annotation(i + 1, [i, 1, 3, 5], segmentation=outline) for i, outline in enumerate(outlines)]
    root = make_coco(annotations)
    file = root / "annotations" / "instances_train.json"
    for indent in (None, 2):
        file.write_text(json.dumps(json.loads(file.read_text()), indent=indent))
        assert read_coco(root, "train").boxes(0)[:, 0].tolist() == [0, 1, 2, 3, 4]
