"""How an audit is shown: a sentence, what is suspicious, and tables; as text, Markdown, JSON or a page."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.data.split import NOT_LEARNT
from orchestrator.data.advice import Advice, advice, listed, notes, verdict
from orchestrator.data.audit import (
    PERCENTILES,
    Audit,
    box_sides,
    boxes_by_class,
    class_names,
    count_sizes,
    images_by_class,
)
from orchestrator.data.contact_sheet import Sheet, contact_sheet
from orchestrator.data.duplicates import NEAR, double_boxes
from orchestrator.errors import UserError
from orchestrator.figures.page import Section, captioned, html_image, html_page
from orchestrator.figures.table import Cell, Column, Table, Value
from orchestrator.figures.texts import for_json, for_markdown, printable, sentence, wrapped

if TYPE_CHECKING:
    from model.data.split import CocoData

Row = tuple[Cell | Value, ...]
WIDTH = 80
MOST_CLASSES = 30
"""Classes that people are shown; programs get all."""
NAME = 28
"""Characters of a class's or an image's name that people are shown."""
MOST_PAIRS = 6
"""Pairs of duplicates, likewise."""


def tables(found: Audit) -> list[Table]:
    """Everything that is counted, as tables."""
    shown = [splits_table(found), classes_table(found), sizes_table(found)]
    twins = twins_table(found)
    return [*shown, twins] if twins.rows else shown


def splits_table(found: Audit) -> Table:
    """A row for each split: images, boxes, and how many of them are learnt."""
    heads = ["Format", "Images", "No box", "Boxes", "Learnt", *(reason.capitalize() for reason in NOT_LEARNT)]
    columns = (
        Column("Split", numeric=False),
        Column("Format", numeric=False),
        *map(Column, [*heads[1:], "Double", "Left out"]),
    )
    rows: list[Row] = []
    for data in found.splits:
        reasons = data.not_learnt()
        rows.append(
            (
                data.split,
                found.formats[data.split],
                len(data),
                int((np.diff(data.offsets) == 0).sum()),
                len(data.annotation_ids),
                data.learnt().boxes,
                *(int(mask.sum()) for mask in reasons.values()),
                len(double_boxes(data)),
                len(data.faults),
            )
        )
    table = Table(title="Splits", columns=columns, rows=tuple(rows))
    # What is 0 in every split says nothing to people.
    keep = [place for place in range(len(columns)) if place < 6 or any(row[place] for row in rows)]
    return _with_compact(table, keep)


def classes_table(found: Audit) -> Table:
    """A row for each class: its boxes and its images in each split, the most frequent first."""
    names = class_names(found)
    boxes = [boxes_by_class(data, names) for data in found.splits]
    images = [images_by_class(data, names) for data in found.splits]
    total = np.sum(boxes, axis=0)
    columns = [Column("Class", numeric=False), Column("Part, %")]
    for data in found.splits:
        columns += [Column(f"{data.split} boxes"), Column(f"{data.split} images")]
    rows: list[Row] = []
    shown: list[Row] = []
    for place in np.argsort(-total, kind="stable").tolist():
        part = 100 * float(total[place]) / max(1.0, float(total.sum()))
        counts = [(int(here[place]), int(there[place])) for here, there in zip(boxes, images, strict=True)]
        rows.append((names[place], part, *(count for pair in counts for count in pair)))
        name = names[place] if len(names[place]) <= NAME else f"{names[place][: NAME - 1]}…"
        shown.append((name, part, *(f"{a:,} in {b:,}" for a, b in counts)))
    hidden = len(rows) - MOST_CLASSES
    notes = (f"{hidden:,} rarer classes are not shown: --format json has all.",) if hidden > 0 else ()
    compact = Table(
        title="Classes",
        caption="Boxes in images, by split.",
        columns=(*columns[:2], *(Column(data.split) for data in found.splits)),
        rows=tuple(shown[:MOST_CLASSES]),
        notes=notes,
    )
    return Table(title="Classes", columns=tuple(columns), rows=tuple(rows), compact=compact)


def sizes_table(found: Audit) -> Table:
    """A row for each split: the sizes of images, of objects by COCO's classes, and of boxes as training sees them."""
    short, long = found.edges
    columns = [Column("Split", numeric=False), Column("Images", numeric=False)]
    columns += [Column(name) for name in ("Small", "Medium", "Large")]
    columns += [Column(f"{percent} %", digits=0) for percent in PERCENTILES]
    rows: list[Row] = []
    for data in found.splits:
        sides = box_sides(data, found.edges)
        middle = (
            np.percentile(sides, PERCENTILES).tolist() if len(sides) else [Cell(None, absent="n/a")] * len(PERCENTILES)
        )
        rows.append((data.split, _image_sizes(data), *count_sizes(data), *middle))
    notes = (
        "Small, medium, large: objects below 32 x 32, below 96 x 96 pixels, and above.",
        f"5 %: that part of the boxes is smaller; root of the area, resized to {short} x {long}.",
    )
    table = Table(title="Sizes", columns=tuple(columns), rows=tuple(rows), notes=notes)
    areas = tuple(f"Images of {split} (width x height): {sizes}." for split, sizes, *_ in rows)
    keep = [place for place, column in enumerate(columns) if column.name != "Images"]
    return _with_compact(replace(table, notes=(*areas, *notes)), keep)


def _image_sizes(data: "CocoData") -> str:
    order = np.argsort(data.sizes.astype(np.int64).prod(axis=1), kind="stable")
    ends = [f"{width} x {height}" for height, width in data.sizes[order[[0, -1]]].tolist()]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def twins_table(found: Audit) -> Table:
    """A row for each image that is like another: first those of two splits, the most alike first."""
    columns = (
        Column("Image", numeric=False),
        Column("Is like", numeric=False),
        Column("Bits apart"),
        Column("Mirrored", numeric=False),
    )
    looked = found.looked
    twins = (*looked.across, *looked.within) if looked else ()
    rows: list[Row] = []
    shown: list[Row] = []
    for twin in twins:
        pair = f"{twin.split}/{twin.name}", f"{twin.other_split}/{twin.other_name}"
        rest = Cell(twin.distance, absent="same bytes"), "yes" if twin.is_mirrored else ""
        rows.append((*pair, *rest))
        shown.append((_end(pair[0]), _end(pair[1]), *rest))
    notes = (f"Bits: of 64 of a perceptual hash; up to {NEAR} apart count as near-duplicates.",)
    table = Table(title="Images that occur twice", columns=columns, rows=tuple(rows), notes=notes)
    hidden = len(rows) - MOST_PAIRS
    more = (f"{hidden:,} more pairs: --format json has all.",) if hidden > 0 else ()
    return replace(table, compact=replace(table, rows=tuple(shown[:MOST_PAIRS]), notes=(*more, *notes)))


def _end(path: str) -> str:
    """A path as far as there is room: the end, which tells it apart."""
    return path if len(path) <= NAME else f"…{path[1 - NAME :]}"


def _with_compact(table: Table, keep: list[int]) -> Table:
    """The table, of which people are shown these columns alone, and counts with their thousands."""
    rows = tuple(tuple(_spaced(row[place]) for place in keep) for row in table.rows)
    return replace(table, compact=replace(table, columns=tuple(table.columns[place] for place in keep), rows=rows))


def _spaced(cell: Cell | Value) -> Cell | Value:
    return f"{cell:,}" if isinstance(cell, int) else cell


def speed(found: Audit) -> str:
    """Say how fast the images were read."""
    looked = found.looked
    if looked is None:
        return "images were not read: no duplicates were looked for"
    rate = looked.num_images / max(looked.seconds, 1e-9)
    return f"{looked.num_images:,} images read, decoded and hashed in {looked.seconds:.1f} s ({rate:,.0f} images/s)"


def to_text(found: Audit) -> str:
    """Render for 80 columns."""
    return "\n\n".join([head(found), *(table.to_text(WIDTH) for table in tables(found))])


def head(found: Audit) -> str:
    """What stands above the tables in a text: the verdict, what is suspicious, and what was read otherwise."""
    parts = ["\n".join(wrapped(f"{found.root}: {verdict(found)}", WIDTH))]
    told = [_indented(one) for one in advice(found)]
    parts += ["\n".join(told)] if told else []
    read = [line for note in notes(found) for line in _hanging("- ", note)]
    parts += ["\n".join(read)] if read else []
    return printable("\n\n".join(parts))


def _indented(one: Advice) -> str:
    # The lines of an error message stay lines.
    texts = [*one.seen.splitlines(), *([f"-> {one.way_out}"] if one.way_out else [])]
    return "\n".join(
        line for place, text in enumerate(texts) for line in _hanging("  " if place else "! ", text.strip())
    )


def _hanging(mark: str, text: str) -> list[str]:
    """A text in lines of 80 characters, all but the first indented."""
    lines = wrapped(text, WIDTH - len(mark))
    return [f"{' ' * len(mark) if place else mark}{line}" for place, line in enumerate(lines)]


def to_markdown(found: Audit) -> str:
    """Render for GitHub."""
    told = [f"- {for_markdown(str(one))}" for one in advice(found)]
    told += [f"- {for_markdown(note)}" for note in notes(found)]
    parts = [f"**{for_markdown(f'{found.root}: {verdict(found)}')}**", *(["\n".join(told)] if told else [])]
    return "\n\n".join([*parts, *(table.to_markdown() for table in tables(found))])


def to_latex(found: Audit) -> str:
    """Render the tables for a paper."""
    return "\n\n".join(table.to_latex() for table in tables(found))


def to_json(found: Audit) -> str:
    """Render for a program."""
    content = {
        "data": str(found.root),
        "verdict": verdict(found),
        "warnings": [{"seen": one.seen, "way_out": one.way_out} for one in advice(found)],
        "notes": notes(found),
        "tables": [json.loads(table.to_json()) for table in tables(found)],
        "images_per_second": found.looked and found.looked.num_images / max(found.looked.seconds, 1e-9),
    }
    return for_json(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False))


def to_page(found: Audit, sheet: Sheet) -> str:
    """Render as a page that needs no other file."""
    coded = io.BytesIO()
    sheet.picture.save(coded, "WEBP", quality=80)
    picture = captioned(html_image(coded.getvalue(), "webp", "Images with their boxes"), _not_shown(sheet))
    images = Section("Images", "images", f'<section id="images"><h2>Images</h2>{picture}</section>')
    said = [
        f"{found.root}: {verdict(found)}.",
        *(sentence(str(one)) for one in advice(found)),
        *map(sentence, notes(found)),
    ]
    return html_page(f"Data: {found.root.name}", tables(found), sections=[images], found=said, facts=[speed(found)])


def _not_shown(sheet: Sheet) -> str:
    return f"{len(sheet.missing):,} classes are not shown: {listed(list(sheet.missing))}" if sheet.missing else ""


def write(found: Audit, folder: Path) -> tuple[str, str]:
    """Write the contact sheet and the page; return the page, and what to tell of both.

    Raises:
        UserError: the folder cannot be written to.
    """
    sheet = contact_sheet(found)
    page, picture, file = to_page(found, sheet), folder / "contact_sheet.png", folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sheet.picture.save(picture, compress_level=1)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: cannot write to {folder} ({error.strerror}); name another folder") from error
    told = [f"images with their boxes: {picture}", f"all of it as a page: {file}"]
    return page, "\n".join([*told, *filter(None, [_not_shown(sheet)])])


SCREENS = {"text": to_text, "markdown": to_markdown, "latex": to_latex, "json": to_json}
