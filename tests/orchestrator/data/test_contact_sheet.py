import numpy as np
import pytest
from PIL import Image

from model.inference.drawing import HUES
from orchestrator.data.audit import audit
from orchestrator.data.contact_sheet import COLUMNS, GAP, LINE, TILE, choose, class_colors, contact_sheet, placement
from tests.orchestrator.data.conftest import MakeSplit, photo

EDGES = (600, 1000)


def test_a_box_has_its_classs_colour_where_the_box_is(make_split: MakeSplit) -> None:
    grey = Image.new("RGB", (800, 600), (128, 128, 128))
    root = make_split("train", {"a.png": grey}, [(1, "cat", [200, 100, 400, 300]), (1, "dog", [20, 420, 100, 120])])
    found = audit(root, EDGES, read_images=False)
    pixels = np.asarray(contact_sheet(found).picture)
    colors = class_colors(["cat", "dog"])
    data = found.splits[0]
    # 800 x 600 into a tile of 400 x 300: every length is halved.
    assert placement(data, 0) == (0.5, (0, 0))
    # The legend of two classes takes one line.
    left, top = GAP, LINE + 2 * GAP
    for name, (x, y, width, height) in {"cat": (100, 50, 200, 150), "dog": (10, 210, 50, 60)}.items():
        for at in ((x + width // 2, y + height), (x, y + height // 2), (x + width, y + height // 2)):
            assert tuple(pixels[top + at[1], left + at[0]]) == colors[name]
        assert tuple(pixels[top + y + height // 2, left + x + width // 2]) == (128, 128, 128)
    # And in the legend.
    assert tuple(pixels[GAP + 10, GAP + 7]) == colors["cat"]


def test_a_portrait_stands_in_the_middle_of_its_tile(make_split: MakeSplit) -> None:
    root = make_split("train", {"a.png": photo(1, (300, 600))}, [(1, "cat", [10, 10, 30, 20])])
    factor, (left, top) = placement(audit(root, EDGES, read_images=False).splits[0], 0)
    assert (factor, left, top) == (0.5, (TILE[0] - 150) // 2, 0)


def test_every_class_is_shown_and_the_choice_is_stable(make_split: MakeSplit) -> None:
    classes = [f"class {number}" for number in range(40)]
    images = {f"{seed:03}.png": photo(seed, (48, 36)) for seed in range(60)}
    # Class k is on image 60 - k alone, but for the first, which is on all.
    rows = [(60 - number, name, [4, 4, 20, 20]) for number, name in enumerate(classes) if number]
    rows += [(id, "class 0", [6, 6, 20, 20]) for id in range(1, 61)]
    root = make_split("train", images, rows, classes)
    make_split("val", {"v.png": photo(99)}, [(1, "class 0", [4, 4, 20, 20])], classes)
    found = audit(root, EDGES, read_images=False)
    places, missing = choose(found.splits, classes)
    assert missing == () and {(0, 60 - number - 1) for number in range(1, 40)} <= set(places)
    assert (1, 0) in places
    assert places == choose(found.splits, classes)[0] == sorted(set(places))
    sheet = contact_sheet(found)
    lines = -(-len(sheet.places) // COLUMNS)
    assert sheet.picture.height > lines * TILE[1]


def test_classes_that_no_tile_has_room_for_are_told(make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.data.contact_sheet.MOST", 1)
    rows = [(1, "cat", [4, 4, 20, 20]), (2, "dog", [4, 4, 20, 20])]
    root = make_split("train", {"a.png": photo(1), "b.png": photo(2)}, rows)
    places, missing = choose(audit(root, EDGES, read_images=False).splits[:1], ["cat", "dog"])
    assert (places, missing) == ([(0, 0)], ("dog",))


def test_an_image_that_does_not_decode_leaves_a_tile_that_says_so(make_split: MakeSplit) -> None:
    root = make_split("train", {"a.png": photo(1)}, [(1, "cat", [10, 10, 30, 20])])
    found = audit(root, EDGES, read_images=False)
    (root / "train" / "a.png").write_bytes(b"no picture")
    assert contact_sheet(found).places == ((0, 0), (1, 0))


def test_colours_of_classes_differ() -> None:
    names = [str(number) for number in range(3 * len(HUES))]
    assert len(set(class_colors(names).values())) == len(names)
