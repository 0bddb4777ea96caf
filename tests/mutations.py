"""Random changes of files, of their bytes and of what they mean, each decided by a generator alone."""

import csv
import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DEEP, DIGITS = "@deep@", "@digits@"
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, 1e308, -1e-320),
    *(float("nan"), float("inf"), "", "x", "0", "1e999", "9" * 30, "a\0b", "\ud800", "é" * 300, "../../etc/passwd"),
    *("\n", "null", [], {}, [[]], [None], {"": None}, {"a": {"a": 1}}, DEEP, DIGITS, [1, 2, 3, 4], [float("nan")] * 4),
)
"""What may stand anywhere in JSON; not all of it is JSON."""


def flipped(content: bytes, random: Random) -> bytes:
    """Up to eight bits turned over."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 8])):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    """The beginning, the end, or all but a part."""
    start, stop = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return random.choice([content[:start], content[stop:], content[:start] + content[stop:]])


def spliced(content: bytes, random: Random) -> bytes:
    """A part twice, or something strange put in."""
    start, stop = sorted(random.randrange(len(content) + 1) for _ in range(2))
    strange = random.choice(
        [b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 5000, b"9" * 5000, b"\n", b'"', b"{", b": ", b"&a *a"]
    )
    return content[:start] + random.choice([strange, content[start : min(stop, start + 2000)]]) + content[start:]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON: what holds it, and its key or number."""
    for key, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(one, dict | list):
            yield from places(one)


def retyped(content: bytes, random: Random) -> bytes:
    """Values replaced, removed, duplicated, exchanged, renamed."""
    value = json.loads(content)
    for _ in range(random.choice([1, 1, 1, 3])):
        found = list(places(value)) if isinstance(value, dict | list) else []
        if not found:
            break
        (holder, key), (other, place) = random.choice(found), random.choice(found)
        change = random.randrange(6)
        if change <= 2:
            holder[key] = random.choice(ODD)
        elif change == 3 and isinstance(holder, dict):
            new = random.choice(["", "x", str(key).upper(), f"{key}s", "a\0"])
            holder[new] = holder.pop(key)
        elif change == 3:
            holder.append(holder[key])
        elif change == 4:
            del holder[key]
        else:
            kept = json.loads(json.dumps(other[place])) if key in holder or isinstance(holder, list) else None
            holder[key] = kept
    if random.random() < 0.02:
        value = random.choice(ODD)
    return dumped(value)


def dumped(value: Any) -> bytes:
    depth = 3000
    written = json.dumps(value).replace(f'"{DEEP}"', "[" * depth + "]" * depth).replace(f'"{DIGITS}"', "9" * 5000)
    return written.encode()


def with_json(change: Callable[[bytes, Random], bytes], lead: int = 8) -> Callable[[bytes, Random], bytes]:
    """The header of a safetensors file, changed as JSON."""

    def changed(content: bytes, random: Random) -> bytes:
        length = struct.unpack("<Q", content[:lead])[0]
        header = change(content[lead : lead + length], random)
        said = random.choice([len(header), len(header), len(header), length, 2**63, 0])
        return struct.pack("<Q", said) + header + content[lead + length :]

    return changed


def columns(content: bytes, random: Random) -> bytes:
    """A Parquet file whose columns, types or metadata are others."""
    found = pq.read_table(pa.BufferReader(content))
    names, said = found.column_names, dict(found.schema.metadata or {})
    one, other = random.choice(names), random.choice(names)
    place = names.index(one)
    change = random.randrange(7)
    if change == 0:
        found = found.drop_columns([one])
    elif change == 1:
        found = found.set_column(place, one, found[other])
    elif change == 2:
        found = found.rename_columns([*names[:place], other, *names[place + 1 :]])
    elif change == 3:
        kinds = [pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int8()), pa.bool_(), pa.null(), pa.binary()]
        found = found.set_column(place, one, pa.nulls(len(found), random.choice(kinds)))
    elif change == 4:
        kept = found[one].to_pylist()
        if kept:
            kept[random.randrange(len(kept))] = None
        found = found.set_column(place, one, pa.array(kept, found[one].type))
    elif change == 5:
        found = found.slice(random.randrange(len(found) + 1), random.choice([0, 1, 5]))
    for key in list(said):
        if change == 6 and not key.startswith(b"ARROW"):
            said[key] = random.choice([retyped, flipped, cut])(said[key], random)
    written = pa.BufferOutputStream()
    pq.write_table(found.replace_schema_metadata(said), written, compression="zstd", write_page_checksum=True)
    return bytes(written.getvalue())


def cells(content: bytes, random: Random) -> bytes:
    """A table of text with other cells."""
    rows = list(csv.reader(content.decode().splitlines()))
    for _ in range(random.choice([1, 2, 5])):
        row = random.choice(rows)
        row[random.randrange(len(row))] = str(random.choice(ODD[:12] + ODD[15:27])).replace("\ud800", "?")
        if random.random() < 0.1:
            row.append("1")
    return "\n".join(",".join(row) for row in rows).encode()


def words(content: bytes, random: Random) -> bytes:
    """Numbers and names of a text replaced."""
    found = content.replace(b"<", b" <").replace(b">", b"> ").split(b" ")
    for _ in range(random.choice([1, 1, 3])):
        odd = random.choice(
            [
                b"",
                b"nan",
                b"inf",
                b"-1",
                b"1e400",
                b"9" * 400,
                b"x",
                b"\0",
                b"\xff",
                b"0",
                b"<!DOCTYPE a>",
                b"&lt;",
                b"&a;",
            ]
        )
        found[random.randrange(len(found))] = odd
    return b" ".join(found)


BYTES = (flipped, cut, spliced)
JSON = (*BYTES, retyped, retyped, retyped)
PARQUET = (*BYTES, columns, columns)
