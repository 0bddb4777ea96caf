"""The search for one finished evaluation in MLflow, by table, row, suite or run: what "the best of table 1" means."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from model.config import CALIBRATION, METRICS
from model.settings import suggestion
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.tracking import rest
from orchestrator.tracking.edits.experiments import all_suites, quoted
from orchestrator.tracking.records import read_record
from orchestrator.tracking.runs import Run, get_run, read_place, search_runs

BEST = "best"
"""As a row: the one of highest AP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which evaluation is asked for."""

    row: str = BEST
    """The label of a row, `table:label`, or the best one."""
    table: str | None = None
    """The name of a table, or the beginning of it."""
    suite: str | None = None
    run_id: str | None = None
    """An evaluation or a training in MLflow; the rest does not matter then."""
    metric: str = "AP"
    """What is best; among the seeds of one row, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedEvaluation:
    """An evaluation in MLflow that is finished, and the suite that it belongs to."""

    suite: str
    run: Run

    @property
    def run_id(self) -> str:
        """Return its id in MLflow."""
        return self.run.run_id

    @property
    def tags(self) -> Mapping[str, str]:
        """Return its tags."""
        return self.run.tags

    @property
    def metrics(self) -> dict[str, float]:
        """Return the twelve numbers, less those that its data could not give."""
        return dict(read_record(self.run).metrics)

    @property
    def places(self) -> dict[str, str]:
        """Return its place and label, such as `03 RetinaNet`, by table."""
        return self.run.rows

    @property
    def seed(self) -> int:
        """Return the seed of its training."""
        return self.run.seed or 0

    def place(self, table: str | None) -> float:
        """Return its place in a table, or its first in any, from 0; behind all others where none is known."""
        told = self.places.values() if table is None else [self.places.get(table, "")]
        return min((place for place, _ in map(read_place, told) if place is not None), default=math.inf)

    def label(self, table: str | None = None) -> str:
        """Return its label in a table, or in any."""
        place = self.places.get(table or next(iter(self.places), ""), "")
        return read_place(place)[1] or str(self.run.name)


def find(uri: str, query: Query, here: str | None = None) -> FinishedEvaluation:
    """Find the one evaluation that is asked for.

    Args:
        uri: of MLflow.
        query: what is asked for.
        here: the suite whose best is meant where neither suite, table nor row is named.

    Raises:
        UserError: there is none, or several suites could be meant; the message says what there is.
    """
    suites = all_suites(uri)
    if query.run_id is not None:
        return _of_run(uri, query.run_id, suites, query.metric)
    if query.suite is not None and query.suite not in suites:
        raise UserError(f"--suite {query.suite}: MLflow at {uri} has no such suite; {suggestion(query.suite, suites)}")
    wanted = suites if query.suite is None else {query.suite: suites[query.suite]}
    evaluations = [one for suite, number in wanted.items() for one in finished(_evaluations(uri, number), suite)]
    if not evaluations:
        where = "" if query.suite is None else f" of suite {query.suite}"
        raise UserError(f"nothing{where} is finished in MLflow at {uri} yet; `rnc submit` trains and scores it")
    if here is not None and (query.suite, query.row, query.table) == (None, BEST, None):
        with_results = {one.suite for one in evaluations}
        if here not in with_results:  # the best of an older suite would be taken for that of the newest
            raise UserError(
                f"suite {here}, the last one submitted here, has no result in MLflow at {uri} yet; --suite takes "
                f"{', '.join(sorted(with_results))}"
            )
        wanted, evaluations = {here: suites[here]}, [one for one in evaluations if one.suite == here]
    if len(wanted) == 1 and (query.row, query.table, query.metric) == (BEST, None, "AP"):
        # What is registered as the best counts, so that `models:/...@best` and this are one detector.
        registered = best_version(uri, next(iter(wanted))) or {}
        for evaluation in evaluations:
            if evaluation.run.key == registered.get(names.EVALUATION_KEY):
                return evaluation
    return select(evaluations, query)


def select(evaluations: Sequence[FinishedEvaluation], query: Query) -> FinishedEvaluation:
    """Select the one of several evaluations that is asked for; of equals the first in its table.

    Raises:
        UserError: the table or the row is unknown, or it stands in more than one suite.
    """
    if query.metric in CALIBRATION:
        raise UserError(
            f"--metric {query.metric}: the best is the row with the most of a metric, and of this one less is better; "
            f"expected one of: {', '.join(METRICS)}"
        )
    query = _split(query, evaluations)
    table = None
    if query.table is not None:
        table = _full_name(query.table, evaluations)
        evaluations = [one for one in evaluations if table in one.places]
    if query.row != BEST:
        by_label = _by_label(evaluations, table)
        if query.row not in by_label:
            where = f"table {table}" if table else f"suite {', '.join(sorted({one.suite for one in evaluations}))}"
            raise UserError(f"{query.row!r} is no finished row of {where}; {suggestion(query.row, by_label)}")
        evaluations = by_label[query.row]
    suites = sorted({one.suite for one in evaluations})
    if len(suites) > 1:
        what = f"table {table}" if table else "something finished" if query.row == BEST else f"row {query.row!r}"
        raise UserError(f"{what} stands in the suites {', '.join(suites)}; say which with --suite")
    if query.row != BEST and table is None:
        _require_one_result(query, evaluations)
    measured = [one for one in evaluations if query.metric in one.metrics]
    if not measured:
        raise UserError(f"--metric {query.metric}: none of these rows has it, as their data hold no such object")
    # max() takes the first of equals; MLflow gives runs newest first, which would let the answer change over time.
    in_order = sorted(measured, key=lambda one: (one.place(table), one.seed))
    return max(in_order, key=lambda one: one.metrics[query.metric])


def table_of(evaluation: FinishedEvaluation, query: Query) -> str | None:
    """Return the table in which an evaluation answers a query: one that was named, or the first that has such a row."""
    query = _split(query, [evaluation])
    tables = [table for table in sorted(evaluation.places) if table.startswith(query.table or "")]
    if query.table in tables:
        return query.table
    return next((table for table in tables if evaluation.label(table) == query.row), tables[0] if tables else None)


def finished(runs: Iterable[Run], suite: str) -> Iterator[FinishedEvaluation]:
    """Yield the finished evaluations among the runs of a suite."""
    for run in runs:
        if run.kind == "evaluation" and read_record(run).status == "FINISHED":
            yield FinishedEvaluation(suite=suite, run=run)


def best_version(uri: str, suite: str) -> dict[str, str] | None:
    """Return the tags of the registered version that has the alias `best`, if there is one."""
    name = names.model_name(suite)
    # A search, as a user may be forbidden to ask for a model that is not there.
    asked = {"filter": f"name = {quoted(name)}", "max_results": 1}
    for model in rest.pages(uri, "registered-models/search", asked, "registered_models", by_get=True):
        for alias in model.get("aliases", []):
            if alias["alias"] == names.BEST:
                which = {"name": name, "version": alias["version"]}
                version = rest.get(uri, "model-versions/get", which)["model_version"]
                return {tag["key"]: tag.get("value", "") for tag in version.get("tags", [])}
    return None


def _evaluations(uri: str, experiment_id: str) -> Iterable[Run]:
    return search_runs(uri, experiment_id, f"tags.{names.KIND} = 'evaluation'")


def _of_run(uri: str, run_id: str, suites: Mapping[str, str], metric: str) -> FinishedEvaluation:
    """Find an evaluation by its run, or the best one of a training by the training's run."""
    try:
        run = get_run(uri, run_id)
    except rest.Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"--run {run_id}: MLflow at {uri} has no such run; its id is the end of its address") from error
    suite_of = {number: suite for suite, number in suites.items()}
    if run.experiment_id not in suite_of or run.kind not in ("evaluation", "training"):
        raise UserError(f"--run {run_id} is neither a training nor an evaluation of this project; name one of these")
    evaluations = finished(_evaluations(uri, run.experiment_id), suite_of[run.experiment_id])
    # By key, not by run: the run that is named may be an earlier try of what another run has finished.
    same_key = [one for one in evaluations if one.tags.get(names.KEY[run.kind]) == run.key]
    if not same_key:
        raise UserError(f"--run {run_id}: this {run.kind} is not finished and scored yet; `rnc submit` goes on with it")
    return select([one for one in same_key if one.run_id == run_id] or same_key, Query(metric=metric))


def _full_name(name: str, evaluations: Iterable[FinishedEvaluation]) -> str:
    """Complete the beginning of a table's name."""
    tables = sorted({table for one in evaluations for table in one.places})
    # A whole name counts, though longer names may begin with it.
    if name in tables:
        return name
    longer = [table for table in tables if table.startswith(name)]
    if len(longer) == 1:
        return longer[0]
    if longer:
        raise UserError(f"--table {name} may be any of {', '.join(longer)}; write one of them in full")
    raise UserError(f"--table {name}: no finished row stands in such a table; {suggestion(name, tables)}")


def _split(query: Query, evaluations: Iterable[FinishedEvaluation]) -> Query:
    """Read `table:label`, unless that is the label of a row as it stands."""
    table, colon, label = query.row.partition(":")
    if not colon or query.table is not None or query.row in _by_label(evaluations, None):
        return query
    return replace(query, table=table.strip(), row=label.strip())


def _require_one_result(query: Query, evaluations: Sequence[FinishedEvaluation]) -> None:
    """Refuse a label under which several tables have different results; seeds of one row are no such difference."""
    by_table: dict[str, list[FinishedEvaluation]] = {}
    for one in evaluations:
        for table in one.places:
            if one.label(table) == query.row:
                by_table.setdefault(table, []).append(one)
    if len({frozenset(one.run_id for one in found) for found in by_table.values()}) < 2:
        return
    listed = "; ".join(
        f"{table} ({', '.join(_number(one, query.metric) for one in found)})"
        for table, found in sorted(by_table.items())
    )
    first = min(by_table)
    raise UserError(
        f"{query.row!r} is another result in each of the tables {listed}; say which: --table {first}, or "
        f"'{first}:{query.row}'"
    )


def _number(evaluation: FinishedEvaluation, metric: str) -> str:
    value = evaluation.metrics.get(metric)
    return f"no {metric}" if value is None else f"{metric} {value:.1f}"


def _by_label(evaluations: Iterable[FinishedEvaluation], table: str | None) -> dict[str, list[FinishedEvaluation]]:
    """Group evaluations by their labels in a table, or in all: one of several tables may have several labels."""
    found: dict[str, list[FinishedEvaluation]] = {}
    for evaluation in evaluations:
        for label in {evaluation.label(name) for name in ([table] if table else evaluation.places)}:
            found.setdefault(label, []).append(evaluation)
    return found
