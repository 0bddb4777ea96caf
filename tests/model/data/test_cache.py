"""Annotations held once per node: what is mapped equals what is parsed, and is made again whenever it has to be."""

import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.data import coco
from model.data.cache import own_folder
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.formats import reading
from model.data.layouts.files import SplitFiles
from model.data.split import COLUMNS, CocoData, assemble, write_data
from tests.conftest import MakeCoco

BOXES = [{"id": id, "image_id": id % 3 + 1, "category_id": 3, "bbox": [id, 2, 20, 21]} for id in range(1, 8)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(make_coco: MakeCoco) -> Path:
    return settled(make_coco(BOXES, sizes=[(60, 80)] * 3))


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How often an annotation file was parsed, in this process and those forked from it."""
    tally, read_split = tmp_path / "tally", reading.read_split

    def counted(files: SplitFiles) -> Any:
        with tally.open("a") as log:
            log.write("x")
        time.sleep(0.2)  # so that processes that start together would overlap
        return read_split(files)

    monkeypatch.setattr(coco, "read_split", counted)
    return lambda: len(tally.read_text()) if tally.exists() else 0


def settled(root: Path, seconds: int = 60) -> Path:
    """The same folder, with annotations that changed a while ago."""
    file, then = root / "annotations" / "instances_train.json", time.time() - seconds
    os.utime(file, (then, then))
    return root


def the_file(cache: Path) -> Path:
    (file,) = cache.glob("*/*.arrow")
    return file


def content(data: CocoData) -> dict[str, Any]:
    values = {field.name: getattr(data, field.name) for field in fields(data) if field.name != "file"}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def test_what_is_mapped_equals_what_is_parsed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, mapped = read_coco(root, "train"), read_coco(root, "train")
    monkeypatch.setenv("RNC_CACHE", "/dev/null")
    parsed = read_coco(root, "train")
    assert (first.file, mapped.file, parsed.file) == (first.file, first.file, None)
    assert first.file is not None
    assert content(mapped) == content(first) == content(parsed)
    for name in COLUMNS:
        column = getattr(mapped, name)
        assert column.dtype == getattr(parsed, name).dtype
        assert not column.flags.owndata and not column.flags.writeable
    assert mapped.boxes(1).tolist() == [[1, 2, 21, 23], [4, 2, 24, 23], [7, 2, 27, 23]]


def test_a_split_without_annotations_is_mapped_too(make_coco: MakeCoco) -> None:
    root = settled(make_coco([]))
    read_coco(root, "train")
    mapped = read_coco(root, "train")
    assert mapped.file is not None
    assert mapped.boxes(0).shape == (0, 4)


def test_processes_that_start_together_parse_once(root: Path, parses: Callable[[], int]) -> None:
    fork = multiprocessing.get_context("fork")
    queue: Any = fork.Queue()
    start: Any = fork.Barrier(4)

    def read() -> None:
        start.wait()
        queue.put(read_coco(root, "train").fingerprint)

    processes = [fork.Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    prints = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert parses() == 1
    assert prints == {read_coco(root, "train").fingerprint}
    assert parses() == 1


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(content: bytes) -> bytes:
    place = content.index(np.float64(21).tobytes())  # a box's height
    return content[:place] + np.float64(22).tobytes() + content[place + 8 :]


@pytest.mark.parametrize("damage", [_cut, _flip, lambda content: b"", lambda content: b"\0" * len(content)])
def test_a_damaged_file_is_made_again(
    root: Path, cache: Path, parses: Callable[[], int], damage: Callable[[bytes], bytes]
) -> None:
    sound = content(read_coco(root, "train"))
    file = the_file(cache)
    intact = file.read_bytes()
    file.unlink()  # else the mapping would change with it
    file.write_bytes(damage(intact))
    assert content(read_coco(root, "train")) == sound
    assert parses() == 2
    assert file.read_bytes() == intact
    assert content(read_coco(root, "train")) == sound
    assert parses() == 2


def test_annotations_that_change_are_read_again_even_under_the_old_time_and_size(root: Path) -> None:
    before = read_coco(root, "train")
    file = root / "annotations" / "instances_train.json"
    status = file.stat()
    text = file.read_text()
    file.write_text(text.replace('"bbox": [1, 2', '"bbox": [5, 2'))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = read_coco(root, "train")
    assert (before.boxes(1)[0, 0], after.boxes(1)[0, 0]) == (1, 5)
    assert before.fingerprint != after.fingerprint


def test_annotations_that_changed_just_now_are_not_cached(make_coco: MakeCoco, cache: Path) -> None:
    root = make_coco(BOXES, sizes=[(60, 80)] * 3)
    assert read_coco(root, "train").file is None
    assert list(cache.glob("*/*.arrow")) == []
    assert read_coco(settled(root), "train").file is not None


def test_every_setting_that_decides_the_data_has_a_file_of_its_own(root: Path) -> None:
    assert [len(read_coco(root, "train", num_images=number)) for number in (1, 2, None, 1)] == [1, 2, 3, 1]


def test_a_quarantine_follows_the_images_on_the_disk(root: Path, parses: Callable[[], int]) -> None:
    def ids() -> list[int]:
        data = read_coco(root, "train", faults="quarantine")
        assert data.file is not None
        assert data.image_ids.tolist() == [id for id in (1, 2, 3) if id not in [f.image_id for f in data.faults]]
        return [image["image_id"] for image in data.coco_dict()["annotations"]]

    assert ids() == [1, 1, 2, 2, 2, 3, 3]
    image = root / "train" / "1.jpg"
    pixels = image.read_bytes()
    image.unlink()
    assert ids() == ids() == [2, 2, 2, 3, 3]
    Image.new("RGB", (60, 80)).save(root / "train" / "2.jpg")
    assert ids() == [3, 3]
    image.write_bytes(pixels)
    assert ids() == [1, 1, 3, 3]
    assert parses() == 1


def test_images_are_checked_although_the_annotations_are_cached(root: Path) -> None:
    read_coco(root, "train")
    (root / "train" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"images missing \(1\): image 2 \(2\.jpg, looked for in .*/train\)"):
        read_coco(root, "train")
    assert len(read_coco(root, "train", check_images=False)) == 3


def test_faulty_annotations_are_refused_every_time(make_coco: MakeCoco, cache: Path) -> None:
    root = settled(make_coco([*BOXES, {"id": 9, "image_id": 1, "category_id": 3, "bbox": [5, 5, 0, 9]}]))
    for _ in range(2):
        with pytest.raises(DataError, match="annotation 9"):
            read_coco(root, "train")
    assert list(cache.glob("*/*.arrow")) == []


def test_a_cache_that_cannot_be_is_done_without(root: Path, cache: Path) -> None:
    cache.write_text("a file, where a folder should be")
    assert len(read_coco(root, "train")) == 3
    assert read_coco(root, "train").file is None


def test_a_full_disk_is_done_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(coco, "write_data", full)
    assert len(read_coco(root, "train")) == 3
    assert read_coco(root, "train").file is None


def test_nothing_is_written_to_the_data_root(root: Path) -> None:
    before = sorted(path for part in ("train", "annotations") for path in (root / part).rglob("*"))
    assert read_coco(root, "train").file is not None
    assert sorted(path for part in ("train", "annotations") for path in (root / part).rglob("*")) == before


def test_the_folder_is_for_its_user_alone(root: Path, cache: Path) -> None:
    folder = own_folder()
    assert folder is not None and folder.parent == cache
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert own_folder() is None
    assert read_coco(root, "train").file is None
    folder.rename(cache / "elsewhere")
    (cache / "elsewhere").chmod(0o700)
    folder.symlink_to(cache / "elsewhere")
    assert own_folder() is None


def test_a_folder_of_another_user_is_not_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder()
    assert folder is not None
    theirs = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: theirs)
    folder.rename(folder.with_name(f"retinanet-conf-{theirs}"))
    assert own_folder() is None
    assert read_coco(root, "train").file is None


def test_mapped_data_travel_as_the_path_of_their_file(make_coco: MakeCoco) -> None:
    many = [{"id": id, "image_id": 1, "category_id": 3, "bbox": [1, 2, 20, 21]} for id in range(1, 2001)]
    data = read_coco(settled(make_coco(many)), "train")
    sent = pickle.dumps(data)
    assert len(sent) < 1000 < data.annotation_boxes.nbytes
    there = pickle.loads(sent)
    assert there.file == data.file
    assert content(there) == content(data)
    assert not there.annotation_boxes.flags.owndata


def test_data_without_their_file_travel_whole(root: Path, cache: Path) -> None:
    data = read_coco(root, "train")
    before = content(data)
    changed = replace(data, sizes=data.sizes + 1)
    assert pickle.loads(pickle.dumps(changed)).sizes.tolist() == [[61, 81]] * 3
    the_file(cache).unlink()
    assert content(pickle.loads(pickle.dumps(data))) == before


def test_a_file_that_goes_away_or_changes_on_the_journey_is_told(root: Path, cache: Path) -> None:
    sent = pickle.dumps(read_coco(root, "train"))
    file = the_file(cache)
    other = settled(root, 30)
    (other / "annotations" / "instances_train.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": []})
    )
    file.unlink()
    with pytest.raises(DataError, match=f"{file}: cached annotations went away"):
        pickle.loads(sent)
    write_data(file, large_data(file.parent, 3))
    with pytest.raises(DataError, match="changed under a running process"):
        pickle.loads(sent)


def large_data(root: Path, num_annotations: int) -> CocoData:
    columns = {
        "image_ids": np.array([1]),
        "names": np.array([b"1.jpg"]),
        "sizes": np.array([[60, 80]], dtype=np.int32),
        "offsets": np.array([0, num_annotations]),
        "annotation_ids": np.arange(num_annotations),
        "annotation_boxes": np.ones((num_annotations, 4)),
        "annotation_areas": np.ones(num_annotations),
        "annotation_labels": np.zeros(num_annotations, dtype=np.int16),
        "annotation_crowds": np.zeros(num_annotations, dtype=bool),
    }
    return assemble(root, "train", root / "train", columns, {1: "cat"}, ())


def own_memory() -> int:
    """Bytes that no file holds and no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def unpickle_and_use(sent: bytes, pipe: Connection) -> None:
    before = own_memory()
    data = pickle.loads(sent)
    sums = [getattr(data, name).reshape(-1).view(np.uint8).max() for name in COLUMNS]
    mapped = own_memory() - before
    copies = [np.array(getattr(data, name)) for name in COLUMNS]
    pipe.send((mapped, own_memory() - before, len(sums) + len(copies)))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system tells no process its memory")
def test_a_process_that_maps_the_annotations_holds_none_of_its_own(tmp_path: Path) -> None:
    data = large_data(tmp_path, 500_000)
    size = sum(getattr(data, name).nbytes for name in COLUMNS)
    assert size > 25e6
    write_data(tmp_path / "large.arrow", data)
    object.__setattr__(data, "file", tmp_path / "large.arrow")
    context = multiprocessing.get_context("spawn")  # a forked one has free memory of its parent's to hide copies in
    mine, theirs = context.Pipe()
    process = context.Process(target=unpickle_and_use, args=(pickle.dumps(data), theirs))
    process.start()
    mapped, copied, _ = mine.recv()
    process.join()
    assert mapped < size / 10
    assert copied > 0.9 * size  # what the measure says of arrays that are copied
