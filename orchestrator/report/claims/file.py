"""Claims of the paper: sentences in parts, with the rows and metrics of each; read from a file and checked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any, Literal

from model.config import METRICS
from model.names import LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE
from model.settings import misspelt, read_settings, suggestion
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.load import CLAIMS, Experiment, load_experiment, load_experiments
from orchestrator.experiment.search import MOST_ROWS_EVER
from orchestrator.report.claims.boxes import CONDITIONS
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS
from orchestrator.strict_yaml import read_yaml

Kind = Literal[
    "at_least",
    "at_most",
    "equals",
    "above",
    "best",
    "highest",
    "flat",
    "falls",
    "rises",
    "most",
    "share",
    "same_magnitude",
]
LEVELS: tuple[Kind, ...] = ("at_least", "at_most", "equals")
"""Kinds that compare a row, or its difference to another, with a number of the text."""
TEN_IMAGES, GRADIENTS = "boxes_of_ten_images", "gradients"
"""Two tables beside those of experiments: boxes of images before and after NMS, and slopes of the confidence losses."""
EVERY_IMAGE, MEAN = "every image", "mean"
"""Rows of TEN_IMAGES, beside Image1 and so on: all images as they are, and their mean."""
SLOPE = "slope"
"""The metric of GRADIENTS: the steepness of a loss in its logit, where that is saturated on the wrong side."""
LOSSES = ("l1", "l2", "ce")
"""The rows of GRADIENTS."""
UNSURE = "cls<=0.5 of iou>0.7"
"""A metric of TEN_IMAGES: per cent, of all boxes of an IoU above 0.7, that score 0.5 or less."""
OF_BOXES = (
    UNSURE,
    *(f"{condition} by NMS" for condition in CONDITIONS),
    *(f"{condition} minus anchors" for condition in CONDITIONS),
    *(f"anchors minus {condition}" for condition in CONDITIONS),
)
"""The metrics of TEN_IMAGES. `by NMS`: by how many points NMS raises the share of these boxes. `minus anchors`: how
many more boxes before NMS than positive anchors."""
OF_RUNS = (
    *(LOSS_CLASS, LOSS_BOX, LOSS_CONFIDENCE),
    *(f"{names.MISALIGNMENT}/{name}" for name in MISALIGNMENT_COLUMNS),
)
"""What else is measured of a row: the losses of its last epoch, and what its scores say of placement."""
MEAN_OF = "mean of "


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One statement on rows; every metric, row and pair of rows has to bear it out."""

    kind: Kind
    """at_least, at_most, equals: each of `rows`, or its difference to each of `over`, is so by `value`, give or take
    `tolerance`. above: each row is above each of `over`. best: none of `over` is above it. highest: the highest of
    `rows` is above the highest of `over`. flat: no two rows are more than `value` apart. falls, rises: from the first
    row to the last, and nowhere the other way. most: from the first row to the last, the first metric rises by more
    than each of the others. share: the metric is above 0 in `value` per cent of the rows. same_magnitude: of the
    metrics of a row the largest is less than `value` times the smallest."""
    table: str
    """The name of the experiment, TEN_IMAGES or GRADIENTS."""
    rows: tuple[str, ...]
    """Labels; one of another table as "table2_losses: CE loss"."""
    over: tuple[str, ...] = ()
    metric: tuple[str, ...] = ("AP",)
    """Each by its name, or "mean of APm and APl"."""
    value: float = 0.0
    tolerance: float = 0.0
    as_printed: dict[str, Any] = field(default_factory=dict)
    """What the text says instead, where it must be a slip: settings of this part."""

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise ValueError(f"tolerance is {self.tolerance}, expected 0 or more")

    @property
    def literal(self) -> "Part":
        """The part as the text has it."""
        return replace(self, **_listed(self.as_printed), as_printed={})


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One sentence, in our words."""

    sentence: str
    place: str = ""
    """Where it stands: "abstract, Table 6"."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Printed:
    """What else the text says that its own numbers can be held against; see errata.py."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What each table is called."""
    bold: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The rows in bold by table and metric, where bold marks the best."""
    num_anchors: Mapping[str, int] = field(default_factory=dict)
    """By image."""
    least_positive_anchors: int | None = None
    """That each image is said to have."""
    lr_drop_epochs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By place in the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimsFile:
    """A file of claims with the tables that it speaks of."""

    path: Path
    claims: tuple[Claim, ...]
    printed: Printed
    tables: Mapping[str, Experiment]
    """Those beside the file, and those that it names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    claims: tuple[dict[str, Any], ...]
    tables: tuple[str, ...] = ()
    """More experiment files."""
    printed: Printed = field(default_factory=Printed)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sentence:
    sentence: str
    place: str = ""
    parts: tuple[dict[str, Any], ...] = ()


def load_claims(path: Path, shown: Sequence[Experiment] = ()) -> ClaimsFile:
    """Read a file of claims, and the tables that lie beside it.

    Args:
        path: of the file.
        shown: the tables that are to be judged; a claim may be about their rows as well.

    Raises:
        UserError: it has mistakes; all of them, one to a line.
    """
    kind = "a file of claims; EXPERIMENT stands before --claims" if path.is_dir() else "a file of claims"
    raw = read_yaml(path, kind=kind, holds="claims: and a list of sentences")
    form, problems = read_settings(_Form, raw)
    problems = [*misspelt(_Form, raw), *problems]
    tables = {table.name: table for table in _tables(path, form.tables if form else ())}
    known = [*tables.values(), *shown]
    claims = []
    for place, one in enumerate(form.claims if form else (), start=1):
        claim, mistakes = _claim(one)
        mistakes += [mistake for part in (claim.parts if claim else ()) for mistake in _mistakes(part, known)]
        called = ", ".join([str(place), *([repr(one["sentence"])] if "sentence" in one else [])])
        problems += [f"claim {called}: {mistake}" for mistake in dict.fromkeys(mistakes)]
        claims += [claim] if claim else []
    problems += _mistakes_of_printed(form.printed, known) if form else []
    if problems or form is None:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return ClaimsFile(path=path, claims=tuple(claims), printed=form.printed, tables=tables)


def find_claims(paths: Sequence[Path]) -> Path:
    """Return the file of claims that lies beside experiment files, or beside the paper's tables.

    Raises:
        UserError: there is none.
    """
    file = claims_beside(paths)
    if file is None:
        raise UserError(f"--claims: no {CLAIMS} lies beside {paths[0]}; name the file: --claims FILE")
    return file


def claims_beside(paths: Sequence[Path]) -> Path | None:
    """Return the same, or None where there is none."""
    parents = [path.parent for path in paths]
    above = [folder for parent in parents for folder in (parent.parent, parent, parent.parent.parent)]
    folders = [*parents, *(folder / "paper" for folder in above)]
    return next((folder / CLAIMS for folder in folders if (folder / CLAIMS).is_file()), None)


def place_of(part: Part, name: str) -> tuple[str, str]:
    """Return the table and the label that a name of `rows` or `over` stands for."""
    table, colon, label = name.partition(": ")
    return (table, label) if colon else (part.table, name)


def means(metric: str) -> tuple[str, ...]:
    """Return the metrics whose mean a metric is: itself alone, or those of "mean of APm and APl"."""
    return tuple(metric.removeprefix(MEAN_OF).split(" and ")) if metric.startswith(MEAN_OF) else (metric,)


def bold_rows(rows: Any) -> tuple[str, ...]:
    """Return the labels in bold, given as one or as a list."""
    return tuple(map(str, rows)) if isinstance(rows, list | tuple) else (str(rows),)


def _tables(path: Path, more: Iterable[str]) -> list[Experiment]:
    beside = [file for file in path.parent.glob("*.yaml") if file.name != CLAIMS and not file.name.startswith("_")]
    return [
        # A file of claims may lie beside something else than experiments, as a user's own does.
        *(load_experiments([path.parent], most_rows=MOST_ROWS_EVER) if path.name == CLAIMS and beside else []),
        *(load_experiment(Path(normpath(path.parent / name)), most_rows=MOST_ROWS_EVER) for name in more),
    ]


def _claim(raw: dict[str, Any]) -> tuple[Claim | None, list[str]]:
    """Type a sentence; one without `parts` is itself the part. It may come with mistakes, such as a lacking value."""
    own = {name: value for name, value in raw.items() if name in ("sentence", "place", "parts")}
    flat = {name: value for name, value in raw.items() if name not in own}
    sentence, problems = read_settings(_Sentence, own)
    if "parts" in raw:
        problems += [f"{name} stands beside parts; put it into a part" for name in flat]
        listed = [(f"part {place}: ", one) for place, one in enumerate(sentence.parts if sentence else (), start=1)]
        if sentence and not listed:
            problems.append("parts is empty, expected at least one")
    else:
        listed = [("", flat)]
    parts, lacking = [], list[str]()
    for where, one in listed:
        part, mistakes = read_settings(Part, _listed(one))
        mistakes = [*misspelt(Part, one), *mistakes]
        if part is not None and part.as_printed:
            _, wrong = read_settings(Part, _listed(one | part.as_printed))
            mistakes += [f"as_printed: {mistake}" for mistake in [*misspelt(Part, part.as_printed), *wrong]]
        problems += [f"{where}{mistake}" for mistake in mistakes]
        lacking += [f"{where}{mistake}" for mistake in _without_value(one)]
        parts += [part] if part and not mistakes else []
    if sentence is None or problems:
        return None, problems + lacking
    return Claim(sentence=sentence.sentence, place=sentence.place, parts=tuple(parts)), lacking


def _without_value(raw: dict[str, Any]) -> Iterator[str]:
    """Name the value that a part lacks, or what it is as printed; 0 does not go without saying."""
    printed = raw.get("as_printed")
    for where, one in (("", raw), ("as_printed: ", raw | printed if isinstance(printed, dict) else {})):
        if one.get("kind") in LEVELS and "value" not in one:
            kind = one["kind"]
            yield f"{where}value is missing for kind {kind}; say the number that is claimed, such as value: 0.5"
            return


def _listed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """One row or metric need not be written as a list."""
    lists = ("rows", "over", "metric")
    return {name: (value,) if name in lists and isinstance(value, str) else value for name, value in raw.items()}


_ONE, _SOME, _TWO, _NONE, _ANY = (1, 1), (1, 99), (2, 99), (0, 0), (0, 99)
_COUNTS: dict[Kind, tuple[tuple[int, int], ...]] = {
    "at_least": (_SOME, _ANY, _SOME),
    "at_most": (_SOME, _ANY, _SOME),
    "equals": (_SOME, _ANY, _SOME),
    "above": (_SOME, _SOME, _SOME),
    "best": (_SOME, _SOME, _SOME),
    "highest": (_SOME, _SOME, _SOME),
    "flat": (_TWO, _NONE, _SOME),
    "falls": (_TWO, _NONE, _SOME),
    "rises": (_TWO, _NONE, _SOME),
    "most": (_TWO, _NONE, _TWO),
    "share": (_SOME, _ANY, _ONE),
    "same_magnitude": (_SOME, _NONE, _TWO),
}
"""How many rows, rows in `over`, and metrics a kind takes."""
_WORDS = {_ONE: "one", _SOME: "at least one", _TWO: "at least two", _NONE: "none"}


def _mistakes(part: Part, known: Sequence[Experiment]) -> Iterator[str]:
    for name, (least, most) in zip(("rows", "over", "metric"), _COUNTS[part.kind], strict=True):
        given = getattr(part, name)
        if not least <= len(given) <= most:
            yield f"{name} is {list(given)}, expected {_WORDS[least, most]} for kind {part.kind}"
    if part.kind in ("flat", "same_magnitude", "share") and part.value <= 0:
        yield f"value is {part.value}, expected more than 0 for kind {part.kind}"
    if part.kind == "share" and part.value > 100:
        yield f"value is {part.value}, expected up to 100 per cent for kind share"
    labels = [*part.rows, *part.over]
    if len(set(labels)) < len(labels):
        yield f"rows and over are {labels}, expected different rows"
    for label in dict.fromkeys(labels):
        yield from _unknown_row(*place_of(part, label), known)
    for metric in part.metric:
        yield from _unknown_metric(part.table, metric)


def _unknown_row(table: str, label: str, known: Sequence[Experiment]) -> Iterator[str]:
    """Name a table or a row of it that does not exist, with what was probably meant."""
    if table == TEN_IMAGES:
        rows = [EVERY_IMAGE, MEAN, *(f"Image{place}" for place in range(1, 11))]
    elif table == GRADIENTS:
        rows = [*LOSSES]
    else:
        named = [one for one in known if one.name == table]
        if not named:
            all_names = dict.fromkeys([*(one.name for one in known), TEN_IMAGES, GRADIENTS])
            yield f"table is {table!r}, which is no table; {suggestion(table, all_names)}"
            return
        rows = [label for one in named for label in [*(r.label for r in one.rows), *(c.label for c in one.cited)]]
    if label not in rows:
        yield f"{label!r} is no row of {table}; {suggestion(label, dict.fromkeys(rows))}"


def _unknown_metric(table: str, metric: str) -> Iterator[str]:
    choices = {TEN_IMAGES: OF_BOXES, GRADIENTS: (SLOPE,)}.get(table, (*METRICS, *OF_RUNS))
    for name in means(metric):
        if name not in choices:
            yield f"metric is {metric!r}, which is none of {table}; {suggestion(name, choices)}"


def _mistakes_of_printed(printed: Printed, known: Sequence[Experiment]) -> Iterator[str]:
    for table in printed.names:
        if table not in [TEN_IMAGES, *(one.name for one in known)]:
            yield f"printed.names: {table} is no table; {suggestion(table, [one.name for one in known])}"
    for table, columns in printed.bold.items():
        for metric, rows in columns.items():
            for mistake in [
                *_unknown_metric(table, metric),
                *(problem for row in bold_rows(rows) for problem in _unknown_row(table, row, known)),
            ]:
                yield f"printed.bold.{table}: {mistake}"
