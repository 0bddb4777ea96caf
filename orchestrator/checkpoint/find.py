"""Which checkpoint is meant by "the best of table 1": evaluations in MLflow, found by table, row, suite or run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from model.settings import suggestion
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.tracking import rest
from orchestrator.tracking.records import read_record
from orchestrator.tracking.runs import Run, get_run, search_runs

BEST = "best"
"""As a row: the one of highest AP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is asked for."""

    row: str = BEST
    """The label of a row, or the best one."""
    table: str | None = None
    """The name of a table, or the beginning of it."""
    suite: str | None = None
    run_id: str | None = None
    """An evaluation or a training in MLflow; the rest does not matter then."""
    metric: str = "AP"
    """What is best; among the seeds of one row, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A finished evaluation."""

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

    def label(self, table: str | None) -> str:
        """Return its label in a table, or in any."""
        place = self.places.get(table or next(iter(self.places), ""), "")
        return place.partition(" ")[2] or str(self.run.name)


def find(uri: str, choice: Choice) -> Candidate:
    """Find the one evaluation that is asked for.

    Raises:
        UserError: there is none, or several suites could be meant; the message says what there is.
    """
    suites = _suites(uri)
    if choice.run_id is not None:
        return _of_run(uri, choice.run_id, {number: suite for suite, number in suites.items()}, choice.metric)
    if choice.suite is not None and choice.suite not in suites:
        raise UserError(
            f"--suite {choice.suite}: MLflow at {uri} has no such suite; {suggestion(choice.suite, suites)}"
        )
    wanted = suites if choice.suite is None else {choice.suite: suites[choice.suite]}
    candidates = [one for suite, number in wanted.items() for one in finished(_evaluations(uri, number), suite)]
    if not candidates:
        where = "" if choice.suite is None else f" of suite {choice.suite}"
        raise UserError(f"nothing{where} is finished in MLflow at {uri} yet; `rnc submit` trains and scores it")
    if len(wanted) == 1 and (choice.row, choice.table, choice.metric) == (BEST, None, "AP"):
        held = best_version(uri, next(iter(wanted))) or {}
        registered = [one for one in candidates if one.run.key == held.get(names.EVALUATION_KEY)]
        if registered:
            return registered[0]
    return choose(candidates, choice)


def choose(candidates: Sequence[Candidate], choice: Choice) -> Candidate:
    """Choose one of several evaluations; of equals the first in its table.

    Raises:
        UserError: the table or the row is unknown, or the choice is not of one suite.
    """
    table = None
    if choice.table is not None:
        table = _table(choice.table, candidates)
        candidates = [candidate for candidate in candidates if table in candidate.places]
    suites = sorted({candidate.suite for candidate in candidates})
    if len(suites) > 1:
        what = f"table {table}" if table else "something finished"
        raise UserError(f"{what} stands in the suites {', '.join(suites)}; say which with --suite")
    if choice.row != BEST:
        labels = _labels(candidates, table)
        if choice.row not in labels:
            where = f"table {table}" if table else f"suite {suites[0]}"
            raise UserError(f"{choice.row!r} is no finished row of {where}; {suggestion(choice.row, labels)}")
        candidates = labels[choice.row]
    measured = [candidate for candidate in candidates if choice.metric in candidate.metrics]
    if not measured:
        raise UserError(f"--metric {choice.metric}: none of these rows has it, as their data hold no such object")
    order = sorted(measured, key=lambda candidate: (candidate.places.get(table or "", ""), _seed(candidate)))
    return max(order, key=lambda candidate: candidate.metrics[choice.metric])


def best_version(uri: str, suite: str) -> dict[str, str] | None:
    """Return the tags of the registered version that has the alias `best`, if there is one."""
    name = names.model_name(suite)
    query = {"filter": f"name = '{name}'", "max_results": 1}  # to ask for what is not there may be forbidden
    for model in rest.pages(uri, "registered-models/search", query, "registered_models", by_get=True):
        for alias in model.get("aliases", []):
            if alias["alias"] == names.BEST:
                which = {"name": name, "version": alias["version"]}
                version = rest.get(uri, "model-versions/get", which)["model_version"]
                return {tag["key"]: tag["value"] for tag in version.get("tags", [])}
    return None


def _suites(uri: str) -> dict[str, str]:
    """Return the MLflow experiment of each suite."""
    query = {"max_results": 1000, "filter": f"name LIKE '{names.SUITE_PREFIX}%'"}
    found = rest.pages(uri, "experiments/search", query, "experiments")
    return {experiment["name"].removeprefix(names.SUITE_PREFIX): experiment["experiment_id"] for experiment in found}


def finished(runs: Iterable[Run], suite: str) -> Iterable[Candidate]:
    """Yield the finished evaluations among the runs of a suite."""
    for run in runs:
        if run.kind == "evaluation" and read_record(run).status == "FINISHED":
            yield Candidate(suite=suite, run=run)


def _evaluations(uri: str, experiment_id: str) -> Iterable[Run]:
    return search_runs(uri, experiment_id, f"tags.{names.KIND} = 'evaluation'")


def _of_run(uri: str, run_id: str, suites: dict[str, str], metric: str) -> Candidate:
    try:
        run = get_run(uri, run_id)
    except rest.Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"--run {run_id}: MLflow at {uri} has no such run; its id is the end of its address") from error
    if run.experiment_id not in suites or run.kind not in ("evaluation", "training"):
        raise UserError(f"--run {run_id} is neither a training nor an evaluation of this project; name one of these")
    candidates = finished(_evaluations(uri, run.experiment_id), suites[run.experiment_id])
    same = names.KEY[run.kind]
    mine = [candidate for candidate in candidates if candidate.tags.get(same) == run.key]
    if not mine:
        raise UserError(f"--run {run_id}: this {run.kind} is not finished and scored yet; `rnc submit` goes on with it")
    return choose([one for one in mine if one.run_id == run_id] or mine, Choice(metric=metric))


def _table(name: str, candidates: Iterable[Candidate]) -> str:
    tables = sorted({table for candidate in candidates for table in candidate.places})
    if name in tables:
        return name
    longer = [table for table in tables if table.startswith(name)]
    if len(longer) == 1:
        return longer[0]
    if longer:
        raise UserError(f"--table {name} may be any of {', '.join(longer)}; write one of them in full")
    raise UserError(f"--table {name}: no finished row stands in such a table; {suggestion(name, tables)}")


def _labels(candidates: Iterable[Candidate], table: str | None) -> dict[str, list[Candidate]]:
    found: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        places = candidate.places
        for label in {places[one].partition(" ")[2] for one in ([table] if table else places)}:
            found.setdefault(label, []).append(candidate)
    return found


def _seed(candidate: Candidate) -> int:
    return int(candidate.tags.get(names.SEED, "0"))
