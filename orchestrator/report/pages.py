"""The pages of a suite in MLflow's user interface: saved views, their links, and notes on its runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import quote

from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, row_keys
from orchestrator.experiment.prepare import require_one_version
from orchestrator.figures.templating import fill
from orchestrator.report import views
from orchestrator.tracking import rest
from orchestrator.tracking.records import (
    by_key,
    ledger_of,
    measured_where_the_paper_did,
    place_and_label,
    training_params,
    varied_params,
    varied_settings,
)
from orchestrator.tracking.runs import (
    Run,
    Tracking,
    delete_tag,
    experiment_id,
    experiment_tags,
    now,
    tag_experiment,
    tagged,
    write,
)
from orchestrator.tracking.suite import Suite

CURVES = views.TRAINING_CURVES


def show_suite(suite: Suite) -> dict[str, str]:
    """Bring the views and descriptions of a suite up to date, and return the links of its tables.

    Raises:
        UserError: nothing of the suite was ever recorded.
    """
    tracking = suite.connection
    found = write_views(tracking, suite.experiments, suite.mlflow_runs)
    describe_runs(tracking, suite.mlflow_runs)
    _enter_settings(tracking, suite.mlflow_runs, suite.experiments)
    _enter_trials(tracking, suite.mlflow_runs, suite.experiments)
    return found


def write_views(tracking: Tracking, experiments: Sequence[Experiment], runs: Sequence[Run] = ()) -> dict[str, str]:
    """Save the views of these tables and of the suite's curves, describe the suite by them, and return their links.

    The runs of the suite say whether seeds may be averaged; among them are those that hold the tables as files, which
    the description leads to.

    What stands there already is not written again; no views are saved on a server that does not show them.
    """
    held = experiment_tags(tracking)
    files = by_key(runs, "table")
    ledger = ledger_of(runs)
    tags = _view_tags(held, experiments, ledger) if views.are_shown(rest.server_version(tracking.uri)) else {}
    for experiment in experiments:
        note = _table_note(tracking, experiment, files.get(experiment.name))
        tags[f"{names.TABLE}{experiment.name}"] = _within(note, names.MOST_EXPERIMENT_TAG)
    tags[names.DESCRIPTION] = _within(_suite_note(tracking, held | tags), names.MOST_EXPERIMENT_TAG)
    for name, value in tags.items():
        if held.get(name) != value:
            tag_experiment(tracking, name, value)
    return links(tracking, experiments)


def why_no_views(uri: str) -> str:
    """Say why a server gets no saved views; empty where it gets them."""
    version = rest.server_version(uri)
    if views.are_shown(version):
        return ""
    return (
        f"MLflow {version or 'of an unknown version'} gets no saved views, which were tested with "
        f"{', '.join(views.TESTED)} alone; the links lead to the same runs in its own columns and charts."
    )


def describe_runs(tracking: Tracking, found: Sequence[Run]) -> None:
    """Say of every training and evaluation which rows rest on it; what is said already is not written again."""
    evaluations = [run for run in found if run.kind == "evaluation"]
    trainings = by_key(found, "training")
    resting: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in evaluations:
        for table, label in run.rows.items():
            resting[run.train_key][table].append(label)
        training = trainings.get(run.train_key)
        _describe(tracking, run, {table: [label] for table, label in run.rows.items()}, training=training)
    for key, run in trainings.items():
        if key in resting:
            _describe(tracking, run, resting[key])


def links(tracking: Tracking, experiments: Sequence[Experiment]) -> dict[str, str]:
    """Return the addresses of each table, as a table and as charts, of searches' trials, and of the suite's curves."""
    found: dict[str, str] = {}
    for experiment in experiments:
        found[experiment.name] = view_link(tracking, experiment.name)
        found[f"{experiment.name}, charts"] = view_link(tracking, experiment.name + views.CHARTS, "CHART")
        if experiment.search is not None:
            found[f"{experiment.name}, all trials"] = view_link(tracking, experiment.name + views.TRIALS)
    return found | {f"{tracking.suite}, training curves": view_link(tracking, CURVES, "CHART")}


def view_link(tracking: Tracking, view_id: str, mode: views.Mode = "TABLE") -> str:
    """Return the address of a saved view, as a table or as charts; a table's view has its experiment's name."""
    return tracking.uri + "/" + link_in_page(tracking, view_id, mode)


def _view_tags(held: Mapping[str, str], experiments: Sequence[Experiment], ledger: Ledger) -> dict[str, str]:
    tags = _view_tag(held, CURVES, "Training curves", views.curves_view())
    for experiment in experiments:
        name, title, shown = experiment.name, experiment.title, _shown(experiment, ledger)
        by_row = replace(shown, is_grouped=not shown.is_mixed)
        tags |= _view_tag(held, name, title, views.table_view(shown))
        tags |= _view_tag(held, name + views.CHARTS, f"{title}: charts", views.table_view(by_row))
        if experiment.search is not None:
            drawn = replace(shown, settings=varied_settings(experiment.rows, of_trainings=True))
            view = views.trials_view(drawn, experiment.search.metric)
            tags |= _view_tag(held, name + views.TRIALS, f"{title}: all trials", view)
    return tags


def _shown(experiment: Experiment, ledger: Ledger) -> views.TableShown:
    beside: set[str] = set()
    apart: set[str] = set()
    for row in experiment.rows:
        is_comparable = measured_where_the_paper_did(training_params(row.train), row.split)
        (beside if is_comparable else apart).update(row.paper)
    is_mixed = _is_mixed(experiment, ledger)
    return views.TableShown(
        table=experiment.name,
        columns=experiment.columns,
        settings=varied_settings(experiment.rows),
        rows=[place_and_label(place, row.label, len(experiment.rows)) for place, row in enumerate(experiment.rows)],
        is_grouped=any(len(row.seeds) > 1 for row in experiment.rows) and not is_mixed,
        is_mixed=is_mixed,
        beside_paper=[column for column in experiment.columns if column in beside],
        apart_from_paper=[column for column in experiment.columns if column in apart],
    )


def _is_mixed(experiment: Experiment, ledger: Ledger) -> bool:
    """Whether the results of a table rest on two versions of the data, of which there is no mean."""
    try:
        require_one_version(experiment, ledger)
    except UserError:
        return True
    return False


def _view_tag(held: Mapping[str, str], view_id: str, name: str, view: views.View) -> dict[str, str]:
    """Return the tag of a view; the held one if it says the same, whose times differ."""
    tag = views.view_tag(view_id)
    same = tag in held and views.decode(held[tag]) == (name, view)
    return {tag: held[tag] if same else views.encode(name, view, now())}


def _enter_settings(tracking: Tracking, runs: Sequence[Run], experiments: Sequence[Experiment]) -> None:
    """Give each evaluation a param for all that its tables compare; parallel coordinates leave out who lacks one."""
    held = {key: (run.run_id, dict(run.params)) for key, run in by_key(runs, "evaluation").items()}
    for experiment in experiments:
        for row, params in zip(experiment.rows, varied_params(experiment.rows), strict=True):
            for keys in row_keys(row):
                run_id, has = held.get(keys.evaluation_key, ("", dict(params)))
                if missing := {name: value for name, value in params.items() if name not in has}:
                    write(tracking.uri, run_id, params=missing)
                    has.update(missing)


def _enter_trials(tracking: Tracking, runs: Sequence[Run], experiments: Sequence[Experiment]) -> None:
    """Give each training of a search its row, and a param for all that the search varies; it may never be scored."""
    held = by_key(runs, "training")
    for experiment in experiments:
        rows: dict[str, tuple[str, dict[str, str]]] = {}
        if experiment.search is not None:
            varied = varied_params(experiment.rows, of_trainings=True)
            for place, (row, params) in enumerate(zip(experiment.rows, varied, strict=True)):
                for keys in row_keys(row):
                    # Of rows that share a training the first counts.
                    called = place_and_label(place, row.label, len(experiment.rows))
                    rows.setdefault(keys.train_key, (called, params))
        tag = names.ROW + experiment.name
        for key, run in held.items():
            if key in rows:
                called, params = rows[key]
                missing = {name: value for name, value in params.items() if name not in run.params}
                tags = {} if run.tags.get(tag) == called else {tag: called}
                write(tracking.uri, run.run_id, params=missing, tags=tags)
            elif tag in run.tags:
                delete_tag(tracking.uri, run.run_id, tag)


def _table_note(tracking: Tracking, experiment: Experiment, files: Run | None) -> str:
    table, charts = experiment.name, experiment.name + views.CHARTS
    return fill(
        "table_note.md",
        experiment=experiment,
        table=link_in_page(tracking, table),
        charts=link_in_page(tracking, charts, "CHART"),
        trials=experiment.search and link_in_page(tracking, experiment.name + views.TRIALS),
        files=files and _in_page(views.run_link("", experiment_id(tracking), files.run_id, "artifacts")),
    )


def _suite_note(tracking: Tracking, tags: Mapping[str, str]) -> str:
    """Describe the suite: its tables in one line, which is all that shows at first, then with their questions."""
    notes = tagged(dict(sorted(tags.items())), names.TABLE)
    tables = {name: link_in_page(tracking, name) for name in notes}
    curves = link_in_page(tracking, CURVES, "CHART")
    return fill("suite_note.md", tables=tables, curves=curves, notes=notes).rstrip("\n")


def _describe(tracking: Tracking, run: Run, rows: Mapping[str, Sequence[str]], *, training: Run | None = None) -> None:
    """Note the rows that rest on a run, by table, and the training of an evaluation, or the evaluations of a training.

    Args:
        tracking: of the suite.
        run: a training or an evaluation.
        rows: labels by the name of their table.
        training: of an evaluation; None where MLflow lacks it.
    """
    suite = experiment_id(tracking)
    evaluations = None
    if run.kind == "training":
        where = quote(f"tags.{names.KIND} = 'evaluation' and tags.{names.TRAIN_KEY} = '{run.key}'")
        evaluations = f"{_in_page(views.experiment_link('', suite))}&searchFilter={where}"
    note = fill(
        "run_note.md",
        rows=[(table, link_in_page(tracking, table), sorted(set(rows[table]))) for table in sorted(rows)],
        training=training and (training.tags.get(names.RUN_NAME) or "its training"),
        training_link=training and _in_page(views.run_link("", suite, training.run_id)),
        evaluations=evaluations,
    ).rstrip("\n")
    note = _within(note, names.MOST_TAG)
    if note and run.tags.get(names.DESCRIPTION) != note:
        write(tracking.uri, run.run_id, tags={names.DESCRIPTION: note})


def _within(note: str, most: int) -> str:
    """Leave out the end of a note that MLflow would refuse as a whole, or cut amid a link."""
    if len(note) <= most:
        return note
    lines = note[: most - 2].splitlines(keepends=True)
    return "".join(lines[:-1]) + "…" if len(lines) > 1 else f"{note[: most - 1]}…"


def link_in_page(tracking: Tracking, view_id: str, mode: views.Mode = "TABLE") -> str:
    """Link to a saved view from within the user interface, whatever its address is."""
    is_saved = views.are_shown(rest.server_version(tracking.uri))
    return _in_page(views.view_link("", experiment_id(tracking), view_id, mode, is_saved=is_saved))


def _in_page(link: str) -> str:
    return link.removeprefix("/")
