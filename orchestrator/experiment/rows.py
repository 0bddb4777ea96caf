"""The rows, quoted lines and resources of an experiment file: their types, read and checked."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from model.config import CALIBRATION, METRICS, InferenceConfig, TrainConfig, require_branch
from model.settings import Settings, misspelt, read_settings, suggestion

MOST_SEEDS = 100
"""The most that a rule may ask for; more are taken for a mistake."""
ROUNDED = 0.1
"""What two printed numbers may be off by, together."""


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
    reference: str | None = None
    """The row that this one is compared with; None takes the table's."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's own numbers, by metric, on the 0-100 scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRule:
    """Seeds that a submit adds, one after another, to the rows that are still open; all rows begin with at_least."""

    until: Literal["decided"]
    """decided: until the interval of a row's difference to the reference excludes 0."""
    at_least: int = 2
    """Seeds that every row has: 0, 1, ..."""
    most: int = 8
    """Seeds after which an open row is left open."""

    def __post_init__(self) -> None:
        _require(
            self.at_least >= 2,
            f"at_least is {self.at_least}, expected at least 2: one seed says nothing of the spread of others",
        )
        _require(
            self.at_least <= self.most <= MOST_SEEDS,
            f"most is {self.most}, expected {self.at_least}, which is at_least, to {MOST_SEEDS}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cited:
    """A line that a table only quotes: nothing is trained or scored for it."""

    label: str
    paper: Mapping[str, float]
    """The numbers that are quoted, by metric, on the 0-100 scale."""
    source: str
    """Where they stand."""
    published: Mapping[str, float] = field(default_factory=dict)
    """What the source itself gives, by metric, where the quotation differs from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a training runs on; free to change, since no result depends on it and no key contains it."""

    num_workers: int = 1
    """Processes that train one model together."""
    num_nodes: int | None = None
    """Nodes over which the workers are spread, at least; None packs them on as few as have room."""
    gpus_per_worker: float = 0.0
    """0 trains on the CPU; a part of 1 shares a GPU."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker reserves, its loader processes included."""
    local_batch: int | None = None
    """Images of one forward pass of a worker; gradients add up to the global batch. None takes the whole share."""
    loader_processes: int | None = None
    """Processes of each worker that read images; 0 reads in the worker itself. None takes 0 on the CPU, and on a GPU
    one fewer than its share of the node's cores, 8 at most."""
    cuda_graphs: bool = True
    """On a GPU, record each shape of batches once and replay it, which the host hardly notices; takes more memory."""
    max_concurrent: int | None = None
    """Trainings of the suite that run at once; of several files the smallest counts. None: as many as find room."""

    def __post_init__(self) -> None:
        gpus = self.gpus_per_worker
        _require(self.num_workers >= 1, f"num_workers is {self.num_workers}, expected at least 1")
        _require(
            self.num_nodes is None or (self.num_nodes >= 1 and self.num_workers % self.num_nodes == 0),
            f"num_nodes is {self.num_nodes}, expected a number that divides num_workers, {self.num_workers}",
        )
        _require(
            gpus >= 0.0 and (gpus <= 1.0 or gpus == int(gpus)),
            f"gpus_per_worker is {gpus}, expected 0 to 1, or a whole number",
        )
        _require(self.cpus_per_worker > 0.0, f"cpus_per_worker is {self.cpus_per_worker}, expected more than 0")
        _require(
            self.local_batch is None or self.local_batch >= 1,
            f"local_batch is {self.local_batch}, expected at least 1, or null for a worker's whole share",
        )
        _require(
            self.loader_processes is None or self.loader_processes >= 0,
            f"loader_processes is {self.loader_processes}, expected at least 0, or null to follow the node's cores",
        )
        _require(
            self.max_concurrent is None or self.max_concurrent >= 1,
            f"max_concurrent is {self.max_concurrent}, expected at least 1, or null for no limit",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where data and first weights lie; free to change, since results are known by what the data are, not where."""

    root: str | None = None
    """The data set: a folder or a file in any format that `rnc data` knows; counted from the file that says it. Null
    takes RNC_COCO_ROOT."""
    weights: str | None = None
    """The folder of first weights, counted from the file that says it. Null takes RNC_WEIGHTS."""


def read_row(raw: Settings) -> tuple[Row | None, list[str]]:
    """Type a row; return it, or None, and its mistakes."""
    if isinstance(raw.get("seeds"), Mapping):
        return None, ["seeds is a rule, which counts for all rows of a file; set it at the top, or list seeds here"]
    row, problems = read_settings(Row, raw)
    if row is None:
        return None, problems
    # A default cannot say it: it differs from row to row.
    if "split" not in raw:
        row = replace(row, split=row.train.data.val_split)
    return row, list(_mistakes(row))


def read_cited(raw: Settings) -> tuple[Cited | None, list[str]]:
    """Type a line that is only quoted; return it, or None, and its mistakes."""
    line, problems = read_settings(Cited, raw)
    if line is None:
        return None, problems
    if not line.label.strip() or not line.source.strip():
        problems.append("label and source must say something")
    return line, [*problems, *_mistakes_of_numbers(line.paper), *_mistakes_of_numbers(line.published, "published")]


def misspelt_in_line(kind: type[Row] | type[Cited], raw: Any) -> Iterator[str]:
    """Name every key of a line, at any depth, that is no setting, and every number of the paper that is no metric."""
    if not isinstance(raw, Mapping):
        return
    yield from misspelt(kind, raw)
    for name in ("paper", "published"):
        numbers = raw.get(name)
        if isinstance(numbers, Mapping):
            for metric in numbers:
                if metric in CALIBRATION:
                    yield f"{name}.{metric} is measured here alone; numbers of others are those of {', '.join(METRICS)}"
                elif metric not in METRICS:
                    yield f"{name}.{metric} is no metric; {suggestion(metric, METRICS, f'{name}.')}"


def mixed_scales(lines: Iterable[Row | Cited]) -> Iterator[str]:
    """Name numbers of the paper that are fractions where others of the file are percentages, or all of them are."""
    lines = list(lines)
    held = [(line.label, metric, value) for line in lines for metric, value in line.paper.items()]
    largest = {metric: max(value for _, other, value in held if other == metric) for _, metric, _ in held}
    for label, metric, value in held:
        # Nothing that a table lists stands beside a number a hundred times as good, but a misread scale.
        if 0.0 < value < 1.0 and largest[metric] >= 10.0:
            yield (
                f"row {label!r}: paper.{metric} is {value:g}, beside {largest[metric]:g} in another row: two scales in"
                f" one file; write {100 * value:g}, numbers are 0 to 100"
            )
    for line in lines:
        mean, loose = line.paper.get("AP"), line.paper.get("AP50")
        # AP is the mean over ten thresholds, of which AP50 is the loosest.
        if mean and loose and not loose / 10 - ROUNDED <= mean <= loose + ROUNDED:
            yield (
                f"row {line.label!r}: paper.AP is {mean:g}, beside paper.AP50 {loose:g}: AP is never above AP50, nor"
                " below a tenth of it; write both as numbers of 0 to 100"
            )
    if held and 0.0 < max(value for _, _, value in held) < 1.0:
        yield "no number under paper reaches 1, so that they look like fractions; write 35.3 for 0.353"


def contradictions(resources: Resources, trainings: Iterable[TrainConfig]) -> Iterator[str]:
    """Name resources that are each in range and cannot be meant together, or not for these trainings."""
    workers, gpus = resources.num_workers, resources.gpus_per_worker
    if workers > 1 and 0.0 < gpus < 1.0:
        yield (
            f"gpus_per_worker is {gpus:g} for {workers} workers, but NCCL takes each worker on a GPU of its own; set"
            " gpus_per_worker: 1, or num_workers: 1"
        )
    if resources.loader_processes is not None and resources.loader_processes > resources.cpus_per_worker:
        yield (
            f"loader_processes is {resources.loader_processes}, but cpus_per_worker reserves only"
            f" {resources.cpus_per_worker:g}; raise cpus_per_worker, or lower loader_processes"
        )
    trainings = list(trainings)
    if workers == 1 and any(config.gradient_compression != "none" for config in trainings):
        yield (
            "num_workers is 1, but train.gradient_compression is for what several workers send each other; raise"
            " num_workers, or leave train.gradient_compression out"
        )
    smallest = min((config.global_batch for config in trainings), default=None)
    if smallest is None:
        return
    share = -(-smallest // workers)  # of the worker with the most images: rounded up
    if workers > smallest:
        yield f"num_workers is {workers}, but an update has only {smallest} images (train.global_batch)"
    elif resources.local_batch is not None and resources.local_batch > share:
        yield (
            f"local_batch is {resources.local_batch}, but a worker's share of an update is {share}"
            f" (train.global_batch {smallest} over {workers} workers); leave local_batch out to take it whole"
        )


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
    branch = row.train.model.confidence
    if branch is not None and branch.loss_weight == 0.0:
        yield (
            "train.model.confidence.loss_weight is 0, so that the branch learns nothing, and a score that reads it is"
            " made of chance; leave loss_weight out, or set train.model.confidence: null and"
            " inference.confidence_exponent: 0"
        )
    try:
        require_branch(row.inference, has_branch=row.train.model.confidence is not None)
    except ValueError as error:
        yield str(error)


def _mistakes_of_numbers(numbers: Mapping[str, float], name: str = "paper") -> Iterator[str]:
    for metric, value in numbers.items():
        if metric in METRICS and not 0.0 <= value <= 100.0:
            yield f"{name}.{metric} is {value}, expected 0 to 100"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
