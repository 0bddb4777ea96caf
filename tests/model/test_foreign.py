"""Files that anybody may have made: bounded in time and memory, and refused in one line that says what they are."""

import os
import resource
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model.data.annotations import read_tables
from model.data.cache import file_sha256
from model.data.files.decoding import decode, upright
from model.data.files.inspection import OtherSizeError, inspect
from model.data.formats.sizes import image_sizes
from model.data.formats.voc import read_xml
from model.data.layouts.coco import num_listed
from model.data.layouts.files import read_lines
from model.data.layouts.yolo import read_yaml as read_data_yaml
from model.evaluation.coco.matches import read_matches
from model.evaluation.misalignment import COUNTS, read_misalignment
from model.evaluation.parts import read_about
from model.foreign import FREE_VALUES, MOST_NODES, NoFileError, open_parquet, read_json, require_file
from model.inference.table import ABOUT, DetectionTable, read_detections, write_columns, write_detections
from model.inference.video import open_film
from model.names import CARD
from model.network.checkpoint import read_card
from model.network.weight_files import MOST_HEADER, read_weights
from orchestrator.errors import UserError
from orchestrator.strict_yaml import read_value, read_yaml
from orchestrator.tracking.evaluations.detections import holds_json, read_results

Read = Callable[[Path], object]
READERS: dict[str, Read] = {
    "photo.png": upright,
    "photo.jpg": partial(decode, size=(4, 4)),
    "image.png": partial(inspect, size=(4, 4)),
    "film.gif": open_film,
    "film.mp4": open_film,
    "coco.json": read_tables,
    "list.json": num_listed,
    "results.json": partial(read_results, data=None),  # type: ignore[arg-type]
    "data.yaml": read_data_yaml,
    "experiment.yaml": read_yaml,
    "classes.txt": read_lines,
    "voc.xml": read_xml,
    "found.parquet": read_detections,
    "matches.parquet": read_matches,
    "shard.parquet": read_about,
    "weights.pth": read_weights,
    "weights.safetensors": read_weights,
    "digest.safetensors": file_sha256,
    CARD: lambda path: read_card(path.parent),
    COUNTS: lambda path: read_misalignment(path.parent),
}


@contextmanager
def bounded(megabytes: int = 300, seconds: float = 10.0) -> Iterator[None]:
    """Fail where the process takes much more memory, or much time (of its own, however busy the machine is)."""
    before, clock = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes and time.process_time() - clock < seconds


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    where = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(where)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, listening, device, Path.mkdir], ids=["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / name)
    with bounded(), pytest.raises((ValueError, OSError, UserError)) as caught:
        READERS[name](tmp_path / name)
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("named pipe", "socket", "device", "folder", "no file"))


def test_headers_of_images_and_beginnings_of_files_are_not_waited_for_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert image_sizes(tmp_path, ["a.png"]).tolist() == [[1, 1]]
    assert not holds_json(tmp_path / "a.png")


def test_a_file_behind_a_link_is_one_and_a_missing_one_is_told_by_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"{}")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert require_file(tmp_path / "link") == 2
    with pytest.raises(FileNotFoundError):
        require_file(tmp_path / "gone")
    with pytest.raises(NoFileError, match="is a folder, expected a file"):
        require_file(tmp_path)


def write_png(path: Path, side: int) -> None:
    """Black, of so many pixels a side, in a few kilobytes for each million of them."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, rows = zlib.compressobj(1), []
    for _ in range(side // 100):
        rows.append(packer.compress(bytes(100 * (1 + 3 * side))))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = b"".join(rows) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixels) + part(b"IEND", b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_nobody_said_to_be_so_large_is_judged_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    write_png(file, 13_000)
    with bounded(megabytes=60, seconds=1.0):
        with pytest.raises(ValueError, match=r"^too large: more than 119 million pixels; scale it down"):
            upright(file)
        with pytest.raises(ValueError, match=r"large\.png: too large: more than 119 million pixels"):
            decode(file)
        with pytest.raises(ValueError, match=r"is \(13000, 13000\) \(height, width\), annotated \(480, 640\)"):
            decode(file, (480, 640))
        with pytest.raises(OtherSizeError, match=r"^13000 x 13000, annotated 480 x 640"):
            inspect(file, (480, 640))
        assert inspect(file, (13_000, 13_000)).size == (13_000, 13_000)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_photograph_of_108_million_pixels_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS / 1000)  # type: ignore[operator]
    Image.new("RGB", (400, 270)).save(tmp_path / "phone.png")
    assert upright(tmp_path / "phone.png").size == (400, 270)


def repeated(num: int) -> Any:
    """A table of detections of one value each, which packs to nearly nothing."""
    table = DetectionTable.plain(
        *(np.zeros(shape, kind) for shape, kind in ((0, int), (0, int), ((0, 4), "f4"), (0, "f4")))
    )
    names = [
        "image_id",
        "category_id",
        "x1",
        "y1",
        "x2",
        "y2",
        "score",
        "class_score",
        "confidence",
        "iou",
        "level",
        "anchor",
    ]
    kinds = [pa.int64(), pa.int64(), *[pa.float32()] * 8, pa.int8(), pa.int32()]
    assert len(table) == 0
    columns = [
        pa.array(np.zeros(num), kind) if "float" in str(kind) else pa.array(np.zeros(num, int), kind) for kind in kinds
    ]
    return pa.table(columns, names=names).replace_schema_metadata({ABOUT: b"{}"})


def test_a_table_of_ten_million_rows_in_half_a_megabyte_is_refused_by_its_footer(tmp_path: Path) -> None:
    file, part = tmp_path / "found.parquet", repeated(500_000)
    with pq.ParquetWriter(file, part.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(part, row_group_size=len(part))
    assert file.stat().st_size < 600_000
    with bounded(megabytes=50, seconds=2.0):
        for read in (read_detections, read_matches, open_parquet):
            with pytest.raises(ValueError, match=r"^[^\n]*10,000,000 values a column in [\d,]+ bytes[^\n]*$"):
                read(file)
        (tmp_path / COUNTS).symlink_to(file)
        with pytest.raises(ValueError, match="10,000,000 values a column"):
            read_misalignment(tmp_path)


def test_as_many_values_as_measured_numbers_have_are_read(tmp_path: Path) -> None:
    file = tmp_path / "found.parquet"
    scores = np.random.default_rng(0).random(FREE_VALUES + 1000).astype(np.float32)
    write_columns(file, {"score": scores, "level": np.zeros(len(scores), np.int8)}, {})
    with open_parquet(file) as opened:
        assert np.array_equal(opened.read()["score"].to_numpy(), scores)


def test_a_column_beside_those_of_detections_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "found.parquet"
    write_detections(DetectionTable.concatenate([]), file, {"a": 1})
    table = pq.read_table(file)
    pq.write_table(table.append_column("more", pa.array([], pa.string())), file)
    found, said = read_detections(file)
    assert (len(found), said) == (0, {"a": 1})


def bomb(lines: int) -> str:
    text = ["title: t", "b0: &b0 [x,x,x,x,x,x,x,x,x,x]"]
    text += [f"b{place}: &b{place} [{','.join([f'*b{place - 1}'] * 10)}]" for place in range(1, lines)]
    return "\n".join([*text, f"rows: *b{lines - 1}", ""])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb(9), r"aliases \(\*name\) stand for more than 100,000 values; write the values out"),
        ("a: &a [1, *a]", r"found unconstructable recursive node"),
        ("rows:\n" + "- {label: r, train: {seed: 1}}\n" * 25_000, r"holds more than 100,000 values; write a grid"),
        ("rows:\n" + "- {label: r, train: {seed: 1}}\n" * 60_000, r"has 1\.8 MiB, more than any such file needs"),
        ("a: " + "[" * 20_000, r"is nested more than 64 deep"),
        ("a: " + "9" * 10_000, r"4300 digits"),
    ],
)
def test_a_small_file_of_yaml_takes_no_gigabytes_and_no_minutes(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with bounded(seconds=4.0), pytest.raises(UserError, match=rf"^[^\n]*a\.yaml[^\n]*{says}"):
        read_yaml(tmp_path / "a.yaml")


def test_aliases_that_stand_for_few_values_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(bomb(3))
    assert read_yaml(tmp_path / "a.yaml")["rows"][0][0] == ["x"] * 10


def test_a_single_value_that_is_no_yaml_is_text_or_refused(tmp_path: Path) -> None:
    assert read_value("9" * 10_000, "--set") == "9" * 10_000
    with pytest.raises(UserError, match=r"^--set: the value cannot be read"):
        read_value("[" * 3000, "--set")
    with pytest.raises(UserError, match=r"^--set: .*stand for more than"):
        read_value("{" + bomb(9).replace("title: t\n", "").replace("\n", ", ") + "}", "--set")


@pytest.mark.parametrize(
    "text",
    [
        bomb(9),
        "names: [" + "a, " * MOST_NODES + "]",
        "a: " + "[" * 20_000,
    ],
)
def test_a_data_yaml_takes_no_gigabytes_and_no_minutes(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with bounded(seconds=8.0), pytest.raises(ValueError, match=r"^[^\n]*data\.yaml[^\n]*$"):
        read_data_yaml(tmp_path / "data.yaml")


def test_weights_are_judged_by_what_their_headers_say(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    header = b'{"__metadata__":{' + b",".join(b'"%d":"v"' % place for place in range(1_000_000)) + b"}}"
    assert len(header) > MOST_HEADER
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    packed = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(4_000_000)}, packed)
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)
    with bounded(megabytes=50, seconds=1.0):
        with pytest.raises(ValueError, match=r"holds no weights: its header has \d+\.\d MiB"):
            read_weights(file)
        with pytest.raises(ValueError, match=r"its [\d,]+ bytes unpack to 16,0"):
            read_weights(tmp_path / "b.pth")
    assert read_weights(packed).weights["a"].shape == (4_000_000,)


def test_weights_that_hold_themselves_or_repeat_one_number_are_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    for name, content in {
        "endless": endless,
        "wide": {"a": torch.zeros(1).expand(1_000_000_000)},
        "sparse": {"a": torch.zeros(3, 3).to_sparse()},
    }.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with bounded(), pytest.raises(ValueError, match=rf"{name}\.pth.*(state dict|numbers of its own)"):
            read_weights(tmp_path / f"{name}.pth")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 100_000])
def test_json_of_any_depth_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    for name in (CARD, "coco.json", "results.json"):
        (tmp_path / name).write_text(text)
        with bounded(), pytest.raises((ValueError, UserError), match=r"^[^\n]*$"):
            READERS[name](tmp_path / name)


def test_a_file_of_settings_has_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + " " * 100 + "]")
    assert read_json(tmp_path / "a.json", most=102) == []
    with pytest.raises(ValueError, match=r"more than any such file needs"):
        read_json(tmp_path / "a.json", most=101)
