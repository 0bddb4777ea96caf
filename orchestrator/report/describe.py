"""Descriptions of runs, which MLflow's user interface shows on their pages: what they are for, with links."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from orchestrator.report import views
from orchestrator.tracking.runs import Run, tags_of, write
from orchestrator.tracking.suite import Tracking, experiment_id

NOTE = "mlflow.note.content"
"""The tag that the user interface shows as a description, in Markdown."""
ROW = "row."
Rows = Mapping[str, Sequence[str]]
"""Labels by the name of their table."""


def describe_runs(tracking: Tracking, found: Sequence[Run]) -> None:
    """Say of every training and evaluation which rows rest on it; what is said already is not written again."""
    evaluations = [run for run in found if tags_of(run).get("kind") == "evaluation"]
    trainings = {tags_of(run).get("train_key", ""): run for run in found if tags_of(run).get("kind") == "training"}
    resting: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in evaluations:
        tags = tags_of(run)
        rows = {name.removeprefix(ROW): [value] for name, value in sorted(tags.items()) if name.startswith(ROW)}
        for table, labels in rows.items():
            resting[tags.get("train_key", "")][table] += labels
        training = trainings.get(tags.get("train_key", ""))
        _describe(tracking, run, [*_rows(tracking, rows), *([_training(tracking, training)] if training else [])])
    for key, run in trainings.items():
        if key in resting:
            _describe(tracking, run, [*_rows(tracking, resting[key]), _evaluations(tracking, key)])


def link_in_page(tracking: Tracking, view_id: str, mode: views.Mode = "TABLE") -> str:
    """Link to a saved view from within the user interface, whatever its address is."""
    return views.view_link("", experiment_id(tracking), view_id, mode).removeprefix("/")


def _describe(tracking: Tracking, run: Run, lines: Sequence[str]) -> None:
    note = "\n".join(f"- {line}" for line in lines)
    if lines and tags_of(run).get(NOTE) != note:
        write(tracking.uri, run["info"]["run_id"], tags={NOTE: note})


def _rows(tracking: Tracking, rows: Rows) -> list[str]:
    return [
        f"[{table}]({link_in_page(tracking, table)}): {'; '.join(dict.fromkeys(sorted(labels)))}"
        for table, labels in sorted(rows.items())
    ]


def _training(tracking: Tracking, run: Run) -> str:
    link = views.run_link("", experiment_id(tracking), run["info"]["run_id"]).removeprefix("/")
    return f"Scores the checkpoint of [{tags_of(run).get('mlflow.runName', 'its training')}]({link})"


def _evaluations(tracking: Tracking, train_key: str) -> str:
    everything = views.experiment_link("", experiment_id(tracking)).removeprefix("/")
    where = quote(f"tags.kind = 'evaluation' and tags.train_key = '{train_key}'")
    return f"[Its evaluations]({everything}&searchFilter={where})"
