"""The pages of a suite in MLflow's user interface: saved views, their links, and notes on its runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from orchestrator import names
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import row_keys
from orchestrator.figures.templating import fill
from orchestrator.report import views
from orchestrator.tracking import rest
from orchestrator.tracking.records import varied_params, varied_settings
from orchestrator.tracking.runs import (
    Run,
    Tracking,
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
    found = write_views(tracking, suite.experiments)
    describe_runs(tracking, suite.mlflow_runs)
    _enter_settings(tracking, suite.mlflow_runs, suite.experiments)
    return found


def write_views(tracking: Tracking, experiments: Sequence[Experiment]) -> dict[str, str]:
    """Save the views of these tables and of the suite's curves, describe the suite by them, and return their links.

    What stands there already is not written again; no views are saved on a server that does not show them.
    """
    held = experiment_tags(tracking)
    tags = _view_tags(held, experiments) if views.are_shown(rest.server_version(tracking.uri)) else {}
    for experiment in experiments:
        tags[f"{names.TABLE}{experiment.name}"] = _table_note(tracking, experiment)
    tags[names.DESCRIPTION] = _suite_note(tracking, held | tags)
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
    trainings = {run.key: run for run in found if run.kind == "training"}
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
    """Return the addresses of each table, as a table and as charts, and of the suite's curves, by what they show."""
    found: dict[str, str] = {}
    for experiment in experiments:
        found[experiment.name] = view_link(tracking, experiment.name)
        found[f"{experiment.name}, charts"] = view_link(tracking, experiment.name, "CHART")
    return found | {f"{tracking.suite}, training curves": view_link(tracking, CURVES, "CHART")}


def view_link(tracking: Tracking, view_id: str, mode: views.Mode = "TABLE") -> str:
    """Return the address of a saved view, as a table or as charts; a table's view has its experiment's name."""
    return tracking.uri + "/" + link_in_page(tracking, view_id, mode)


def _view_tags(held: Mapping[str, str], experiments: Sequence[Experiment]) -> dict[str, str]:
    tags = _view_tag(held, CURVES, "Training curves", views.curves_view())
    for experiment in experiments:
        in_paper = [metric for metric in experiment.columns if any(metric in row.paper for row in experiment.rows)]
        settings = varied_settings(experiment.rows)
        view = views.table_view(experiment.name, experiment.columns, settings, in_paper)
        tags |= _view_tag(held, experiment.name, experiment.title, view)
    return tags


def _view_tag(held: Mapping[str, str], view_id: str, name: str, view: views.View) -> dict[str, str]:
    """Return the tag of a view; the held one if it says the same, whose times differ."""
    tag = views.view_tag(view_id)
    same = tag in held and views.decode(held[tag]) == (name, view)
    return {tag: held[tag] if same else views.encode(name, view, now())}


def _enter_settings(tracking: Tracking, runs: Sequence[Run], experiments: Sequence[Experiment]) -> None:
    """Give each evaluation a param for all that its tables compare; parallel coordinates leave out who lacks one."""
    # Runs come newest first; of several with one key the newest counts.
    held = {run.tags.get(names.EVALUATION_KEY): (run.run_id, dict(run.params)) for run in reversed(runs)}
    for experiment in experiments:
        for row, params in zip(experiment.rows, varied_params(experiment.rows), strict=True):
            for keys in row_keys(row):
                run_id, has = held.get(keys.evaluation_key, ("", dict(params)))
                if missing := {name: value for name, value in params.items() if name not in has}:
                    write(tracking.uri, run_id, params=missing)
                    has.update(missing)


def _table_note(tracking: Tracking, experiment: Experiment) -> str:
    table, charts = (link_in_page(tracking, experiment.name, mode) for mode in ("TABLE", "CHART"))
    return fill("table_note.md", experiment=experiment, table=table, charts=charts)


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
        training=training and training.tags.get(names.RUN_NAME, "its training"),
        training_link=training and _in_page(views.run_link("", suite, training.run_id)),
        evaluations=evaluations,
    ).rstrip("\n")
    if note and run.tags.get(names.DESCRIPTION) != note:
        write(tracking.uri, run.run_id, tags={names.DESCRIPTION: note})


def link_in_page(tracking: Tracking, view_id: str, mode: views.Mode = "TABLE") -> str:
    """Link to a saved view from within the user interface, whatever its address is."""
    is_saved = views.are_shown(rest.server_version(tracking.uri))
    return _in_page(views.view_link("", experiment_id(tracking), view_id, mode, is_saved=is_saved))


def _in_page(link: str) -> str:
    return link.removeprefix("/")
