"""One line of a table: what it says, and what of that cannot be meant."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from model.config import InferenceConfig, TrainConfig
from model.settings import Settings, misspelt, suggestion
from orchestrator.experiment.document import METRICS
from orchestrator.experiment.reading import typed


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a table: a training for each seed, and how its checkpoints are scored."""

    label: str
    train: TrainConfig = field(default_factory=TrainConfig)
    """Its seed is replaced by each of `seeds`."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    split: str = "val2017"
    """The split that is scored; a file that is silent means the row's own train.data.val_split."""
    seeds: tuple[int, ...] = (0,)
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's own numbers, by metric, on the 0-100 scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cited:
    """A line that a table only quotes: nothing is trained or scored for it."""

    label: str
    paper: Mapping[str, float]
    """The numbers that are quoted, by metric, on the 0-100 scale."""
    source: str
    """Where they stand."""


def read_row(raw: Settings) -> tuple[Row | None, list[str]]:
    """Type a row; return it, or None, and its mistakes."""
    row, problems = typed(Row, raw)
    if row is None:
        return None, problems
    if "split" not in raw:
        row = replace(row, split=row.train.data.val_split)
    return row, list(_mistakes(row))


def read_cited(raw: Settings) -> tuple[Cited | None, list[str]]:
    """Type a line that is only quoted; return it, or None, and its mistakes."""
    line, problems = typed(Cited, raw)
    if line is None:
        return None, problems
    if not line.label.strip() or not line.source.strip():
        problems.append("label and source must say something")
    return line, [*problems, *_mistakes_of_numbers(line.paper)]


def spelling(kind: type[Row] | type[Cited], raw: Any) -> Iterator[str]:
    """Name every key of a line, at any depth, that is no setting, and every number of the paper that is no metric."""
    if not isinstance(raw, Mapping):
        return
    yield from misspelt(kind, raw)
    numbers = raw.get("paper")
    for metric in numbers if isinstance(numbers, Mapping) else ():
        if metric not in METRICS:
            yield f"paper.{metric} is no metric; {suggestion(metric, METRICS, 'paper.')}"


def _mistakes(row: Row) -> Iterator[str]:
    if not row.label.strip():
        yield "label is empty; it names the row in tables"
    if not row.split.strip():
        yield "split is empty; leave it out to score train.data.val_split"
    if not row.seeds or len(set(row.seeds)) < len(row.seeds) or min(row.seeds) < 0 or max(row.seeds) >= 2**31:
        yield f"seeds is {list(row.seeds)}, expected different numbers, 0 to 2147483647"
    if row.train.seed != 0:
        yield f"train.seed is {row.train.seed}, but seeds decides it; set seeds: [{row.train.seed}]"
    yield from _mistakes_of_numbers(row.paper)
    if row.inference.needs_confidence and row.train.model.confidence is None:
        reads = [f"inference.{name} is {value}" for name, value in _that_read_confidence(row.inference)]
        yield (
            f"{', '.join(reads)}, but the model has no confidence branch (train.model.confidence is null);"
            " set inference.confidence_exponent: 0 and leave the rest out, or give the row a branch:"
            " train.model.confidence: {tower: classification} or {tower: box}"
        )


def _mistakes_of_numbers(numbers: Mapping[str, float]) -> Iterator[str]:
    for metric, value in numbers.items():
        if metric in METRICS and not 0.0 <= value <= 100.0:
            yield f"paper.{metric} is {value}, expected 0 to 100"


def _that_read_confidence(inference: InferenceConfig) -> Iterator[tuple[str, object]]:
    if inference.fusion == "product":
        yield "fusion", "product"
    elif inference.confidence_exponent > 0.0:
        yield "confidence_exponent", inference.confidence_exponent
    if inference.min_confidence > 0.0:
        yield "min_confidence", inference.min_confidence
