"""Opens files that anybody may have made, in bounded time and memory: what they say of themselves is judged first."""

import errno
import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MOST_JSON = 16 * 2**20
"""Bytes of a JSON file of settings; a card that names 10,000 classes has less than one million."""
MOST_YAML = 2**20
"""Bytes of a YAML file."""
MOST_NODES = 100_000
"""Values, keys, lists and mappings of a YAML file; PyYAML takes about 3 s to read as many."""
MOST_DEPTH = 64
"""Lists and mappings within each other in a YAML file."""
FREE_VALUES = 1_000_000
"""Values that a column of a Parquet file may have in any case; beyond, a byte of the file for each."""
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NoFileError(OSError):
    """Something else than a file stands under its name: to open a pipe would wait for ever."""


def require_file(path: Path) -> int:
    """Return the size of a file in bytes, links followed.

    Raises:
        NoFileError: it is a named pipe, a socket, a device or a folder.
        OSError: it is not there, or may not be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        number = errno.EISDIR if kind == "a folder" else errno.EINVAL
        raise NoFileError(number, f"is {kind}, expected a file", str(path))
    return status.st_size


def read_bounded(path: Path, most: int, way_out: str) -> bytes:
    """Read a file of at most so many bytes; `way_out` ends the refusal of a larger one.

    Raises:
        ValueError: it is larger.
        OSError: it is no file, or cannot be read.
    """
    size = require_file(path)
    if size > most:
        raise ValueError(
            f"has {size / 2**20:,.1f} MiB, more than any such file needs (at most {most / 2**20:g} MiB); {way_out}"
        )
    with path.open("rb") as file:
        return file.read(most)


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """Read a JSON file of settings.

    Raises:
        ValueError: it is too large, no JSON, not UTF-8, or nested beyond all use.
        OSError: it is no file, or cannot be read.
    """
    return parse_json(read_bounded(path, most, "fetch it again"))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested beyond all use.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply for any file of settings or results") from None


def read_yaml_text(path: Path, way_out: str) -> bytes:
    """Read a YAML file, unparsed, after a look at how much it holds; `way_out` ends the refusal of a larger one.

    Raises:
        ValueError: it is too large, or has too many values to be parsed in a reasonable time.
        OSError: it is no file, or cannot be read.
    """
    content = read_bounded(path, MOST_YAML, way_out)
    # libyaml's events come 30 times as fast as PyYAML's own, which has the words for mistakes.
    loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    number = depth = 0
    try:
        for event in yaml.parse(content, loader):
            number += isinstance(event, yaml.NodeEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if number > MOST_NODES:
                raise _TooManyError(f"holds more than {MOST_NODES:,} values; {way_out}")
            if depth > MOST_DEPTH:  # PyYAML looks through all lists that are open at each word
                raise _TooManyError(f"is nested more than {MOST_DEPTH} deep; mend the file")
    except _TooManyError as error:
        raise ValueError(str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError):
        pass  # whoever parses it says what is wrong
    return content


class _TooManyError(Exception):
    """More than is read."""


def open_parquet(path: Path) -> "pq.ParquetFile":
    """Open a Parquet file for reading, once its footer has said how much it holds; checksums are verified.

    Columns of one value compress without limit: 60 million rows in 3 MB, and gigabytes in memory. What is measured
    needs more than a byte for each value.

    Raises:
        ValueError: it holds far more values than bytes, or is no Parquet file (pyarrow.ArrowInvalid).
        OSError: it is no file, or cannot be read.
    """
    import pyarrow.parquet as pq

    size = require_file(path)
    opened = pq.ParquetFile(path, page_checksum_verification=True)
    metadata = opened.metadata
    # Not by column: to ask for one whose statistics are damaged ends the whole process (pyarrow 25, an exception of
    # C++ that nobody catches).
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    rows = max(metadata.num_rows, sum(max(group.num_rows, 0) for group in groups))
    unpacked = sum(max(group.total_byte_size, 0) for group in groups)
    if rows > FREE_VALUES + size or unpacked > 64 * (FREE_VALUES + size):
        opened.close()
        raise ValueError(
            f"holds {rows:,} values a column in {size:,} bytes, {unpacked:,} once unpacked, more than measured numbers "
            "can be"
        )
    return opened
