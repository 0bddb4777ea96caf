import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from model.data.coco import read_coco
from orchestrator.data.duplicates import NEAR, Twin, double_boxes, leaks, perceptual_hash, prints, twins
from tests.orchestrator.data.conftest import SIZE, MakeSplit, photo

BOX = (1, "cat", [10, 10, 30, 20])


def distance(one: Image.Image, other: Image.Image) -> int:
    return (perceptual_hash(one)[0] ^ perceptual_hash(other)[0]).bit_count()


def test_a_hash_says_which_of_the_low_frequencies_are_above_the_median() -> None:
    # Whole numbers from -31.5 to 31.5 in any order, so that none is near the median 0 when grey levels are rounded.
    wanted = np.random.default_rng(0).permutation(np.arange(64) - 31.5).reshape(8, 8)
    wanted[0, 0] = 100.0  # the mean is above all
    image = sum(wanted[v, u] * np.outer(cosine(v), cosine(u)) for v in range(8) for u in range(8) if (v, u) != (0, 0))
    grey = (128 + 120 * image / np.abs(image).max()).round().astype(np.uint8)
    own, mirrored = perceptual_hash(Image.fromarray(grey))
    assert f"{own:064b}" == bits(wanted)
    wanted[:, 1::2] *= -1  # odd about the middle, so that the mirror image is the negative
    assert f"{mirrored:064b}" == bits(wanted)


def cosine(frequency: int) -> np.ndarray:
    """[32], a basis function of the cosine transform."""
    return np.cos(np.pi * (np.arange(32) + 0.5) * frequency / 32)


def bits(numbers: np.ndarray) -> str:
    return "".join("01"[int(number > np.median(numbers))] for number in numbers.ravel())


def test_different_pictures_are_far_apart() -> None:
    distances = [distance(photo(one), photo(other)) for one in range(8) for other in range(one)]
    assert min(distances) > NEAR
    assert 28 <= np.median(distances) <= 36


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((80, 60)),
        lambda image: image.resize((128, 128)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        lambda image: ImageEnhance.Color(image).enhance(0.3),
    ],
    ids=["half the size", "squeezed to a square", "darker", "paler"],
)
def test_what_is_done_to_a_copy_keeps_it_near(change) -> None:
    assert all(distance(photo(seed), change(photo(seed))) <= NEAR for seed in range(5))


def test_the_mirrored_hash_is_that_of_the_mirror_image() -> None:
    for seed in range(5):
        mirrored = perceptual_hash(photo(seed))[1]
        assert (mirrored ^ perceptual_hash(ImageOps.mirror(photo(seed)))[0]).bit_count() <= 2


@pytest.fixture
def leaking(make_split: MakeSplit) -> Path:
    """Val holds of train: a copy, a JPEG saved again, a darker one, a mirror image; and two pictures of its own."""
    root = make_split("train", {f"{seed}.jpg": photo(seed) for seed in range(6)}, [BOX])
    again = Image.open(root / "train" / "1.jpg")
    images = {
        "again.jpg": again.resize((100, 75)),
        "dark.png": ImageEnhance.Brightness(photo(2)).enhance(0.7),
        "mirror.png": ImageOps.mirror(photo(3)),
        "new.jpg": photo(20),
        "other.jpg": photo(21),
        "same.jpg": photo(0),
    }
    make_split("val", images, [BOX])
    shutil.copy(root / "train" / "0.jpg", root / "val" / "same.jpg")
    return root


def test_images_in_two_splits_are_found_by_their_bytes_and_by_their_view(leaking: Path) -> None:
    train, val = (prints(read_coco(leaking, split)) for split in ("train", "val"))
    found = twins(val, train)
    assert found[0] == Twin("val", "same.jpg", "train", "0.jpg", None)
    assert {(twin.name, twin.other_name, twin.is_mirrored) for twin in found} == {
        ("same.jpg", "0.jpg", False),
        ("again.jpg", "1.jpg", False),
        ("dark.png", "2.jpg", False),
        ("mirror.png", "3.jpg", True),
    }
    assert [twin.distance is None for twin in found] == [True, False, False, False]
    assert all(twin.split == "val" and twin.other_split == "train" for twin in found)


def test_within_a_split_each_copy_is_told_of_once_and_the_first_is_none(make_split: MakeSplit) -> None:
    images = {"a.png": photo(1), "b.png": photo(2), "c.png": photo(1), "d.png": photo(1).resize((80, 60))}
    found = twins(prints(read_coco(make_split("train", images, [BOX]), "train")))
    assert [(twin.name, twin.other_name) for twin in found] == [("c.png", "a.png"), ("d.png", "a.png")]
    assert found[0].distance is None


def test_an_image_that_does_not_decode_is_named_and_like_no_other(make_split: MakeSplit) -> None:
    # An even picture has the hash that is nearest to none at all.
    even = Image.new("RGB", SIZE, (90, 90, 90))
    root = make_split("train", {"a.jpg": even, "b.jpg": photo(2), "c.jpg": photo(3)}, [BOX])
    data = read_coco(root, "train")
    for name in ("b.jpg", "c.jpg"):
        (root / "train" / name).write_bytes(f"no picture {name}".encode())
    found = prints(data)
    assert list(found.broken) == ["b.jpg", "c.jpg"] and "UnidentifiedImageError" in found.broken["b.jpg"]
    assert twins(found) == []


def test_progress_counts_every_image(make_split: MakeSplit) -> None:
    told: list[int] = []
    prints(
        read_coco(make_split("train", {f"{seed}.png": photo(seed) for seed in range(3)}, [BOX]), "train"), told.append
    )
    assert told == [1, 2, 3]


def test_leaks_are_the_same_bytes_alone(leaking: Path) -> None:
    train, val = (read_coco(leaking, split) for split in ("train", "val"))
    assert leaks(train, val) == [Twin("val", "same.jpg", "train", "0.jpg", None)]


def test_files_of_one_size_and_one_middle_that_differ_elsewhere_are_no_leak(leaking: Path) -> None:
    train, val = (read_coco(leaking, split) for split in ("train", "val"))
    content = bytearray((leaking / "val" / "same.jpg").read_bytes() + bytes(2 * 4096))
    (leaking / "train" / "0.jpg").write_bytes(content)
    content[5] ^= 1
    (leaking / "val" / "same.jpg").write_bytes(content)
    assert leaks(train, val) == []


def test_a_missing_file_is_no_leak(leaking: Path) -> None:
    train, val = (read_coco(leaking, split) for split in ("train", "val"))
    for file in ("train/0.jpg", "val/same.jpg", "val/new.jpg"):
        (leaking / file).unlink()
    assert leaks(train, val) == []


def test_a_box_is_double_where_image_class_and_corners_are_the_same(make_split: MakeSplit) -> None:
    box = [10, 10, 30, 20]
    rows = [
        (1, "cat", box),
        (2, "cat", box),  # another image
        (1, "dog", box),  # another class
        (1, "cat", [10, 10, 30, 21]),
        (1, "cat", box),  # twice
        (1, "cat", box),  # and again
    ]
    root = make_split("train", {"a.png": photo(1), "b.png": photo(2)}, rows)
    data = read_coco(root, "train")
    assert data.annotation_ids[double_boxes(data)].tolist() == [5, 6]


def test_a_split_without_boxes_has_no_double_one(make_split: MakeSplit) -> None:
    assert double_boxes(read_coco(make_split("train", {"a.png": photo(1)}), "train")).tolist() == []
