"""Errata of the paper: where its text and its own numbers do not go together, found by holding them side by side."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import NamedTuple

from model.config import DataConfig, ScheduleConfig
from orchestrator.experiment.plan import train_key
from orchestrator.experiment.rows import Row
from orchestrator.figures.table import Column, Table
from orchestrator.report.claims.boxes import Boxes
from orchestrator.report.claims.evidence import PapersNumbers, line_of
from orchestrator.report.claims.file import ClaimsFile, Part, Printed, bold_rows, place_of
from orchestrator.report.claims.kinds import EPSILON, weigh_part

STRIDES = (8, 16, 32, 64, 128)
"""Pixels of a cell on P3 to P7."""
NUM_ANCHORS = 9
"""Of a cell."""
MULTIPLE = 32
"""Images are padded to multiples of so many pixels."""
MISPLACED_POINT = 10.0
"""What a decimal point one digit too far makes of a number."""
SEED_NOISE = 0.3
"""What another seed moves AP by at most, where MMDetection's maintainers trained one configuration again."""


class Erratum(NamedTuple):
    """One place where the paper is wrong."""

    place: str
    says: str
    """What stands there."""
    finding: str
    """What its numbers say."""


def errata(file: ClaimsFile, paper: PapersNumbers) -> list[Erratum]:
    """Find what in the text the paper's own numbers do not bear out, or what names two things alike.

    None is looked for where the file does not say what is `printed`, as claims of one's own.
    """
    if file.printed == Printed():
        return []
    return [
        *_slips(file, paper),
        *_values_of_others(file, paper),
        *_bold(file, paper),
        *_misplaced_points(file),
        *_anchors(file, paper.boxes),
        *_names(file),
        *_drops(file),
        *_loss_without_sign(),
        *_inside_noise(file, paper),
    ]


def errata_table(found: Sequence[Erratum]) -> Table:
    """Show them."""
    return Table(
        title="Errata of the paper",
        caption="Where do its text and its own numbers not go together?",
        columns=(
            Column("place", numeric=False, wrap=14),
            Column("it says", numeric=False, wrap=46),
            Column("its numbers", numeric=False, wrap=54),
        ),
        rows=tuple(found),
        notes=("Each is found by a comparison of the paper's own numbers, not typed in.",),
    )


def _slips(file: ClaimsFile, paper: PapersNumbers) -> Iterator[Erratum]:
    """Find parts that hold, but not with the words of the text."""
    for claim in file.claims:
        for part in claim.parts:
            if not part.as_printed or weigh_part(part, paper).verdict != "supported":
                continue
            literal = weigh_part(part.literal, paper)
            if literal.verdict == "supported":
                continue
            names = [name for name in part.as_printed]
            said = ", ".join(_said(file, getattr(part.literal, name)) for name in names)
            right = ", ".join(_said(file, getattr(part, name)) for name in names)
            # A number that is there, and the one that the text gives; or nothing that the text can speak of.
            number = literal.numbers.split(", claimed")[0]
            there = f"{said}: {number}" if said not in number else number
            told = there if literal.verdict == "contradicted" else f"{said} has no such rows"
            value = f"{part.value:g}: " if literal.verdict == "contradicted" else ""
            yield Erratum(claim.place, f"{value}{said}", f"it is {right}; {told}")


def _values_of_others(file: ClaimsFile, paper: PapersNumbers) -> Iterator[Erratum]:
    """Find numbers that the text gives to a row and the tables to others."""
    for claim in file.claims:
        for part in claim.parts:
            metric, (table, label) = part.metric[0], place_of(part, part.rows[0])
            is_level = part.kind in ("at_least", "equals") and not part.over
            is_printed = metric in paper.lines.get((table, label), {})
            if not (is_level and is_printed) or weigh_part(part, paper).verdict != "contradicted":
                continue
            holders = [
                f"{other} ({file.printed.names.get(where, where)})"
                for (where, other), numbers in paper.lines.items()
                if where in file.tables and numbers.get(metric) == part.value
            ]
            finding = f"{label} has {paper.lines[table, label][metric]:.1f} in {file.printed.names.get(table, table)}"
            if holders:
                finding += f"; {part.value:.1f} is that of {', '.join(holders)}"
            yield Erratum(claim.place, f"{part.value:.1f} {metric} for {label}", finding)


def _bold(file: ClaimsFile, paper: PapersNumbers) -> Iterator[Erratum]:
    """Find marks of the best that are not on the best."""
    for table, columns in file.printed.bold.items():
        for metric, marked in columns.items():
            lines = {label: numbers for (where, label), numbers in paper.lines.items() if where == table}
            values = {label: numbers[metric] for label, numbers in lines.items() if metric in numbers}
            best = max(values.values(), default=0.0)
            holders = [label for label, value in values.items() if value == best]
            for label in bold_rows(marked):
                if values.get(label, best) < best:
                    yield Erratum(
                        file.printed.names.get(table, table),
                        f"{metric}: bold marks {values[label]:.1f} of {label}",
                        f"{', '.join(holders)} has {best:.1f}",
                    )


def _misplaced_points(file: ClaimsFile) -> Iterator[Erratum]:
    """Find quoted numbers that are ten times what is published."""
    for table in file.tables.values():
        for line in table.cited:
            for metric, published in line.published.items():
                if math.isclose(line.paper[metric], MISPLACED_POINT * published):
                    place = file.printed.names.get(table.name, table.name)
                    finding = f"ten times the published {published:.1f}"
                    yield Erratum(place, f"{metric} {line.paper[metric]:.1f} of {line.label}", finding)


def _anchors(file: ClaimsFile, boxes: Boxes | None) -> Iterator[Erratum]:
    """Find input sizes that have as many anchors as the text says, and images with fewer positive ones."""
    short, long = DataConfig().short_edge, DataConfig().long_edge
    ours = sizes_within(short, long)
    for image, count in file.printed.num_anchors.items():
        of_experiments = [size for size in ours if num_anchors(size) == count]
        others = [size for size in _squarish() if num_anchors(size) == count]
        if not of_experiments and others:
            height, width = others[0]
            yield Erratum(
                "Section 1",
                f"{image} has {count:,} anchors",
                f"so has an input of {height} x {width}, and none that is resized to {short} x {long} as in the "
                "experiments",
            )
    least = file.printed.least_positive_anchors
    if boxes is not None and least is not None:
        few = {image: count for image, count in zip(boxes.images, boxes.positive_anchors, strict=True) if count < least}
        if few:
            told = ", ".join(f"{image} {count}" for image, count in few.items())
            yield Erratum("Section 1", f"each image has {least} positive anchors or more", f"fewer: {told}")


def _names(file: ClaimsFile) -> Iterator[Erratum]:
    """Find names that two tables share."""
    by_name: dict[str, list[str]] = {}
    for table, name in file.printed.names.items():
        by_name.setdefault(name, []).append(table)
    for name, tables in by_name.items():
        if len(tables) > 1:
            yield Erratum("captions", name, f"so are called {len(tables)} tables: {', '.join(tables)}")


def _drops(file: ClaimsFile) -> Iterator[Erratum]:
    """Find epochs that are the same ones, counted from 1 and from 0."""
    for (one, counted), (other, again) in pairwise(file.printed.lr_drop_epochs.items()):
        if counted == again:
            continue
        is_same = again in (tuple(epoch - 1 for epoch in counted), tuple(epoch + 1 for epoch in counted))
        same = "the same, counted from 1 and from 0" if is_same else "not the same"
        used = list(ScheduleConfig().lr_drop_epochs)
        yield Erratum(
            f"{one}, {other}",
            f"the rate drops at {list(counted)}, and at {list(again)}",
            f"{same}; here lr_drop_epochs is {used}, counted from 0",
        )


def _loss_without_sign() -> Iterator[Erratum]:
    """Find that Eq. 13 as printed, (y - p)^2 (y ln p + (1 - y) ln(1 - p)), is lowest where a prediction is worst."""

    def as_printed(target: float, predicted: float) -> float:
        entropy = target * math.log(predicted) + (1 - target) * math.log(1 - predicted)
        return (target - predicted) ** 2 * entropy

    good, bad = as_printed(0.8, 0.7), as_printed(0.8, 0.2)
    if bad < good < 0:
        yield Erratum(
            "Eq. 13",
            "a loss that is to become small",
            f"of a target of 0.8 it is {bad:.2f} at 0.2 and {good:.2f} at 0.7: its sign is missing, and around the "
            "difference the absolute value, without which odd exponents turn the sign once more",
        )


def _inside_noise(file: ClaimsFile, paper: PapersNumbers) -> Iterator[Erratum]:
    """Find sentences that rest on differences between trainings of one seed which another seed could bring as well."""
    found: dict[int, list[float]] = {}
    for number, claim in enumerate(file.claims, start=1):
        for part in claim.parts:
            if part.metric != ("AP",) or weigh_part(part, paper).verdict != "supported":
                continue
            gaps = [abs(gap) for gap in _gaps_of_trainings(file, part, paper) if abs(gap) <= SEED_NOISE + EPSILON]
            found |= {number: [*found.get(number, []), *gaps]} if gaps else {}
    if found:
        gaps = [gap for listed in found.values() for gap in listed]
        yield Erratum(
            f"claims {', '.join(map(str, found))}",
            f"one training is {min(gaps):.1f} to {max(gaps):.1f} AP above another, each of one seed",
            f"another seed moves AP by 0.2 to {SEED_NOISE} (MMDetection's maintainers): such sentences are inside the "
            "noise of one seed",
        )


def _gaps_of_trainings(file: ClaimsFile, part: Part, paper: PapersNumbers) -> Iterator[float]:
    """Yield the differences that a part rests on where two trainings stand behind them."""
    pairs = list(product(part.rows, part.over))
    if part.kind == "highest":
        best, other = (
            max(names, key=lambda name: paper.numbers(part, name, "AP")[0].value) for names in (part.rows, part.over)
        )
        pairs = [(best, other)]
    for pair in pairs:
        lines = [line_of(file.tables.values(), *place_of(part, name)) for name in pair]
        keys = [train_key(line.train) for line in lines if isinstance(line, Row)]
        if len(set(keys)) == 2:
            yield paper.difference(part, *pair, "AP").value


def num_anchors(size: tuple[int, int]) -> int:
    """Return the anchors of an input (height, width), padded to multiples of 32: those of all cells of P3 to P7."""
    height, width = (math.ceil(edge / MULTIPLE) * MULTIPLE for edge in size)
    return NUM_ANCHORS * sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in STRIDES)


def sizes_within(short: int, long: int) -> list[tuple[int, int]]:
    """Return the sizes that images have after they were resized to a short and a long edge, upright ones and others."""
    wide = [*((short, width) for width in range(short, long + 1)), *((height, long) for height in range(1, short))]
    return [*wide, *((width, height) for height, width in wide)]


def _squarish() -> Iterator[tuple[int, int]]:
    """Yield padded sizes, the smaller edge first, those with the most equal edges first."""
    edges = range(MULTIPLE, 1025, MULTIPLE)
    yield from sorted(
        ((height, width) for height in edges for width in edges if height <= width), key=lambda size: size[1] - size[0]
    )


def _said(file: ClaimsFile, value: object) -> str:
    texts = value if isinstance(value, tuple) else (value,)
    return ", ".join(file.printed.names.get(str(text), str(text)) for text in texts)
