"""Data sets that many tests share, and Ray's environment, which has to be set before any of them imports Ray."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.data.shapes import draw_shapes
from orchestrator.cluster.environment import set_ray_environment

set_ray_environment(is_local=True)
for _name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)  # what a table looks like would follow the shell that runs the tests
# In the background of a shell both are ignored, and so they would be by the commands that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

MakeCoco = Callable[..., Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share tests out over processes by file; those with a Ray of their own stay in one, as two would slow each other.

    xdist's own groups do nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid.startswith("tests/system/") else super()._split_scope(nodeid)

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the group that takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/system/"))


def _folder_from(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leave the user's own cache, and what is noted of his suites, alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNC_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def coco_root() -> Path:
    """A folder with real COCO images and annotations."""
    return _folder_from("RNC_COCO_ROOT")


@pytest.fixture(scope="session")
def photos_root() -> Path:
    """A folder with photographs of an aquarium and of blood cells, each in COCO's layout."""
    return _folder_from("RNC_PHOTOS")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """A folder with ImageNet weights."""
    return _folder_from("RNC_WEIGHTS")


@pytest.fixture(scope="session")
def vectors_root() -> Path:
    """A folder with numbers that the released implementation computed."""
    return _folder_from("RNC_VECTORS")


@pytest.fixture(scope="session")
def ladder_root() -> Path:
    """A folder with numbers that other detectors' losses and assigners computed."""
    return _folder_from("RNC_LADDER")


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes: 48 images to train on, 16 to validate on, 128 pixels, seed 0."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    draw_shapes(root, num_train=48, num_val=16, image_size=128, seed=0)
    return root


@pytest.fixture(scope="session")
def narrow_root(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn scenes that are not wider than high, so that 8 images make one batch."""
    root = tmp_path_factory.mktemp("narrow")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / split).symlink_to(shapes_root / split)
        content = json.loads((shapes_root / "annotations" / f"instances_{split}.json").read_text())
        content["images"] = [image for image in content["images"] if image["width"] <= image["height"]]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    """A function that writes a small data set: images of id 1, 2, ... and these annotations over categories 3 and 8."""

    def make(
        annotations: Sequence[dict[str, Any]] = (),
        sizes: Sequence[tuple[int, int]] = ((60, 80),),
        **tables: Any,
    ) -> Path:
        content = {
            "images": [
                {"id": place, "file_name": f"{place}.jpg", "height": height, "width": width}
                for place, (height, width) in enumerate(sizes, start=1)
            ],
            "annotations": list(annotations),
            "categories": [{"id": 8, "name": "cat"}, {"id": 3, "name": "dog"}],
        } | tables
        (tmp_path / "train").mkdir(exist_ok=True)
        for image in content["images"]:
            pixels = np.full((image["height"], image["width"], 3), 128, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / image["file_name"])
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
        return tmp_path

    return make
