"""The plan of a suite: its rows as trainings and evaluations, each once by content key, and which the ledger lacks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from model.config import InferenceConfig, TrainConfig
from model.settings import content_key, differences
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.rows import Resources, Row
from orchestrator.experiment.search import Search

STOPPED_EARLY = "stopped early"
"""First words of the note of a training whose status is STOPPED."""
RUNNING = "running"
"""First word of why something is missing that somebody works on."""


class RowKeys(NamedTuple):
    """The identities of a row's training and evaluation for one of its seeds."""

    seed: int
    train_key: str
    evaluation_key: str


class Place(NamedTuple):
    """A row of a table that shows an evaluation."""

    table: str
    place: int
    """The row's place in its table, from 0."""
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """One training of the plan, shared by all rows that need it."""

    key: str
    config: TrainConfig
    resources: Resources
    suite: str
    label: str
    """The first row that asks for it, with its seed when the row has several."""
    tables: tuple[str, ...] = ()
    """All that ask for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of the plan: a training's checkpoint, scored under one InferenceConfig on one split."""

    key: str
    train_key: str
    inference: InferenceConfig
    split: str
    suite: str
    places: tuple[Place, ...]
    """Every row that shows it."""
    paper: Mapping[str, float] = field(default_factory=dict)
    table_sizes: Mapping[str, int] = field(default_factory=dict)
    """How many rows each table of `places` has, which decides how many digits a place has in MLflow."""

    @property
    def label(self) -> str:
        """The first row that shows it."""
        return self.places[0].label if self.places else self.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The state of one training or evaluation, as MLflow has it."""

    status: Literal["FINISHED", "RUNNING", "FAILED", "KILLED", "STOPPED"]
    """FINISHED only with all that belongs to it; a run that lost its detections is KILLED, with that as its note.
    STOPPED is a training that a search decided against."""
    run_id: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    misalignment: Mapping[str, float] = field(default_factory=dict)
    """What an evaluation's scores say of placement, as `misalignment/ece`; empty where that was not measured."""
    calibration: Mapping[str, float] = field(default_factory=dict)
    """How far an evaluation's scores are off, by the names of CALIBRATION; empty where that was not measured."""
    note: str = ""
    """Why it failed, was interrupted, or was stopped."""
    label: str = ""
    """What the run is called."""
    wanted_by: frozenset[str] = frozenset()
    """The tables that ever asked for a training."""
    stop: str = ""
    """What whoever runs a training was asked to end it as: "cancelled"; empty where nobody asked."""
    resources: Resources | None = None
    """What a training last ran on; None where that was not recorded."""
    matches: str = ""
    """The sha256 of an evaluation's table of matches; empty where none was recorded."""
    lab: str = ""
    """The sha256 of a training's file for the misalignment lab; empty where none was recorded."""
    files: Mapping[str, int] = field(default_factory=dict)
    """The artifacts that its run should have: bytes by path."""
    data_fingerprint: str = ""
    """CocoData.fingerprint of the images it was trained or scored on; empty where that was not noted."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Its settings that differ from the defaults, by their names in MLflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """The records of one suite's trainings and evaluations in MLflow, by key."""

    trainings: Mapping[str, Record] = field(default_factory=dict)
    evaluations: Mapping[str, Record] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the experiments of one suite need, and what of it is missing."""

    suite: str
    experiments: tuple[Experiment, ...]
    trainings: Mapping[str, TrainRun]
    """By train key, in the order of the files."""
    evaluations: Mapping[str, Evaluation]
    """By evaluation key, in the order of the files."""
    missing_trainings: Mapping[str, str]
    """The reason by train key."""
    missing_evaluations: Mapping[str, str]
    """The reason by evaluation key."""
    stopped_trainings: Mapping[str, str] = field(default_factory=dict)
    """What its search stopped early and nothing else needs, by train key, and why; neither trained nor scored."""
    keys_by_row: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict, repr=False, compare=False)
    """The evaluations of each row, by table and label, as `gather` found them; hashing thousands takes a second."""
    _by_training: dict[str, list[Evaluation]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _drawn: dict[int, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return not (self.missing_trainings or self.missing_evaluations)

    def evaluations_of(self, table: str, label: str) -> tuple[Evaluation, ...]:
        """Return the evaluations behind one row, one for each seed."""
        found = self.keys_by_row.get((table, label))
        if found is None:
            rows = [row for e in self.experiments if e.name == table for row in e.rows if row.label == label]
            found = [keys.evaluation_key for row in rows for keys in row_keys(row)]
        return tuple(self.evaluations[key] for key in found)

    def evaluations_on(self, train_key: str) -> tuple[Evaluation, ...]:
        """Return the evaluations that score one training."""
        if not self._by_training:  # once, as each of thousands of trainings asks
            for evaluation in self.evaluations.values():
                self._by_training.setdefault(evaluation.train_key, []).append(evaluation)
        return tuple(self._by_training.get(train_key, ()))

    @property
    def max_concurrent(self) -> int | None:
        """The most trainings that may run at once: the smallest number of all files, None where none has one."""
        return min((n for e in self.experiments if (n := e.resources.max_concurrent) is not None), default=None)

    def search_of(self, train_key: str) -> Search | None:
        """Return the search that alone needs a training, so that it may be stopped early; None where others need it."""
        searches = {experiment.name: experiment.search for experiment in self.experiments}
        places = [place for evaluation in self.evaluations_on(train_key) for place in evaluation.places]
        search = searches[places[0].table]
        is_of_one_table = len({place.table for place in places}) == 1
        if search is None or not is_of_one_table or any(place.label not in self._labels_of(search) for place in places):
            return None
        return search

    def _labels_of(self, search: Search) -> frozenset[str]:
        if id(search) not in self._drawn:
            self._drawn[id(search)] = frozenset(search.labels)
        return self._drawn[id(search)]


def make_plan(experiments: Sequence[Experiment], ledger: Ledger) -> Plan:
    """Gather the trainings and evaluations of one suite, each once, and what the ledger lacks of them.

    Raises:
        UserError: the experiments belong to several suites.
    """
    return lacking(gather(experiments), ledger)


def gather(experiments: Sequence[Experiment]) -> Plan:
    """Gather the trainings and evaluations of one suite, each once; nothing is said to be missing yet.

    Raises:
        UserError: the experiments belong to several suites, or the paper has two numbers for one evaluation.
    """
    trainings: dict[str, TrainRun] = {}
    evaluations: dict[str, Evaluation] = {}
    keys_by_row: dict[tuple[str, str], list[str]] = {}
    for run, evaluation in _expand(experiments):
        (place,) = evaluation.places
        keys_by_row.setdefault((place.table, place.label), []).append(evaluation.key)
        trainings[run.key] = _joined_training(trainings.get(run.key), run)
        evaluations[evaluation.key] = _joined_evaluation(evaluations.get(evaluation.key), evaluation)
    return Plan(
        suite=suite_of(experiments),
        experiments=tuple(experiments),
        trainings=trainings,
        evaluations=evaluations,
        missing_trainings={},
        missing_evaluations={},
        keys_by_row=keys_by_row,
    )


def lacking(wanted: Plan, ledger: Ledger) -> Plan:
    """Return what was gathered, with what the ledger lacks of it and what a search stopped early."""
    stopped = {key: ledger.trainings[key].note for key in wanted.trainings if _is_decided(wanted, ledger, key)}
    missing_trainings, missing_evaluations = {}, {}
    for key in wanted.trainings:
        reason = why_training_is_missing(ledger, key)
        if reason and key not in stopped:
            missing_trainings[key] = reason
    for key, evaluation in wanted.evaluations.items():
        reason = why_evaluation_is_missing(ledger, evaluation.train_key, key)
        if reason and evaluation.train_key not in stopped:
            missing_evaluations[key] = reason
    return replace(
        wanted,
        missing_trainings=missing_trainings,
        missing_evaluations=missing_evaluations,
        stopped_trainings=stopped,
    )


def suite_of(experiments: Sequence[Experiment]) -> str:
    """Return the one suite of the experiments.

    Raises:
        UserError: they belong to several.
    """
    suites = sorted({experiment.suite for experiment in experiments})
    if len(suites) != 1:
        raise UserError(f"the experiments belong to {len(suites)} suites ({', '.join(suites)}); plan one at a time")
    return suites[0]


def why_training_is_missing(ledger: Ledger, key: str) -> str | None:
    """Return the reason why a training has to run, or None when the ledger holds it."""
    return _why_missing(ledger.trainings.get(key))


def why_evaluation_is_missing(ledger: Ledger, train_key: str, key: str) -> str | None:
    """Return the reason why an evaluation has to run, or None when the ledger holds it and its training."""
    reason = _why_missing(ledger.evaluations.get(key))
    if why_training_is_missing(ledger, train_key) is None:
        return reason
    # An evaluation may be there without its training, where somebody deleted that; it is scored again with it.
    return "waits for its training" if reason in (None, "never run") else f"{reason}; waits for its training"


def row_keys(row: Row) -> tuple[RowKeys, ...]:
    """Return the keys of a row, for each of its seeds."""
    found = []
    for seed in row.seeds:
        # The seed is a setting of the training, so that each seed has keys of its own.
        key = train_key(replace(row.train, seed=seed))
        found.append(RowKeys(seed, key, evaluation_key(key, row.inference, row.split)))
    return tuple(found)


def train_key(config: TrainConfig) -> str:
    """Return the identity of a training: a hash over the settings that differ from the defaults.

    A setting that is added later, with the old behaviour as its default, leaves the keys of earlier results alone.
    """
    return content_key("TrainConfig", differences(config))


def evaluation_key(train_key: str, inference: InferenceConfig, split: str) -> str:
    """Return the identity of an evaluation: its training, how it is scored, and on which split."""
    return content_key("InferenceConfig", differences(inference), train_key, split)


def _expand(experiments: Sequence[Experiment]) -> Iterator[tuple[TrainRun, Evaluation]]:
    """Yield each row's training and evaluation for each of its seeds, in the order of the files."""
    for experiment in experiments:
        for place, row in enumerate(experiment.rows):
            for seed, key, scored in row_keys(row):
                label = f"{row.label}, seed {seed}" if len(row.seeds) > 1 else row.label
                config = replace(row.train, seed=seed)
                yield (
                    TrainRun(
                        key=key,
                        config=config,
                        resources=experiment.resources,
                        suite=experiment.suite,
                        label=label,
                        tables=(experiment.name,),
                    ),
                    Evaluation(
                        key=scored,
                        train_key=key,
                        inference=row.inference,
                        split=row.split,
                        suite=experiment.suite,
                        places=(Place(experiment.name, place, row.label),),
                        paper=row.paper,
                        table_sizes={experiment.name: len(experiment.rows)},
                    ),
                )


def _joined_training(known: TrainRun | None, run: TrainRun) -> TrainRun:
    """Join a training with what earlier rows said of it: the first label, all tables, the resources of most workers."""
    if known is None:
        return run
    # Any choice is right: no result depends on the resources.
    larger = run.resources.num_workers > known.resources.num_workers
    return replace(
        known,
        tables=tuple(dict.fromkeys(known.tables + run.tables)),
        resources=run.resources if larger else known.resources,
    )


def _joined_evaluation(known: Evaluation | None, evaluation: Evaluation) -> Evaluation:
    """Join an evaluation with what earlier rows said of it: all places, and all numbers of the paper.

    Raises:
        UserError: the paper has two numbers for it.
    """
    if known is None:
        return evaluation
    (place,) = evaluation.places
    for metric, value in evaluation.paper.items():
        if known.paper.get(metric, value) != value:
            first = next(one for one in known.places if one != place)
            raise UserError(
                f"table {place.table}, row {place.label!r}: paper.{metric} is {value:g}, but the same evaluation has"
                f" {known.paper[metric]:g} in table {first.table}, row {first.label!r}; correct one, or leave it out"
            )
    return replace(
        known,
        places=known.places + evaluation.places,
        paper={**evaluation.paper, **known.paper},
        table_sizes={**known.table_sizes, **evaluation.table_sizes},
    )


def _is_decided(plan: Plan, ledger: Ledger, key: str) -> bool:
    """Whether a training was stopped early by a search that still has its scheduler, and alone needs the training."""
    record, search = ledger.trainings.get(key), plan.search_of(key)
    return record is not None and record.status == "STOPPED" and search is not None and search.asha is not None


def _why_missing(record: Record | None) -> str | None:
    if record is None:
        return "never run"
    if record.status == "FINISHED":
        return None
    if record.status == "FAILED":
        return f"failed: {record.note}" if record.note else "failed"
    if record.status == "RUNNING":
        return f"{RUNNING}: {record.note}" if record.note else RUNNING
    return record.note or "interrupted"
