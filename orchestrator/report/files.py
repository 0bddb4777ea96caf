"""The report of a suite: its tables in every format, and all of them with figures and the lab on one page."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.cache import file_sha256
from orchestrator import names
from orchestrator.errors import Say, UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, row_keys
from orchestrator.experiment.prepare import require_one_version
from orchestrator.experiment.rows import Row
from orchestrator.figures.lab import FORMAT, Lab, join, lab_section
from orchestrator.figures.page import html_page, render
from orchestrator.figures.table import Table
from orchestrator.report.figures import figures
from orchestrator.report.intervals import Fetch, resampled
from orchestrator.report.results import (
    RowResult,
    has_several_heads,
    is_measured,
    measure,
    misalignment_table,
    results_table,
)
from orchestrator.tracking.artifacts import download
from orchestrator.tracking.suite import Suite

MOST_HEADS = 6
"""So many heads, the first of a table, are in the lab of one page."""
SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex", "json": "json"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The tables and figures of one experiment, as far as it is measured."""

    experiment: Experiment
    rows: tuple[RowResult, ...]
    table: Table
    figures: str
    """As SVG."""
    misalignment: Table
    """The same rows, by how well their scores say how well boxes are placed."""
    labs: Mapping[str, Path]
    """The files of the misalignment lab, by row."""

    def tables(self) -> list[Table]:
        """Return what a page shows of it: the results, and where heads are compared, their misalignment."""
        return [self.table, *([self.misalignment] if self.compares_heads else [])]

    @property
    def compares_heads(self) -> bool:
        """Whether it has several heads, and the misalignment of one at least."""
        return has_several_heads(self.experiment) and any(map(is_measured, self.rows))


def make_reports(
    suite: Suite, *, bootstrap: bool = True, by_size: bool = False, say: Say | None = None
) -> list[Report]:
    """Measure the tables of a suite, as far as MLflow holds them.

    Args:
        suite: its site keeps what was resampled.
        bootstrap: whether the differences get intervals, which takes about a second for each new evaluation.
        by_size: whether the rows know the intervals of APs to ARl, too, which takes another second.
        say: told of tables that are left out since their results rest on two versions of the data; without it they
            are an error.

    Raises:
        UserError: the results of a table do so, and `say` is not given; the message names each such table.
    """
    ledger, uri, folder = suite.ledger, suite.uri, suite.site.home / "statistics"
    sound = _sound(suite.experiments, ledger, say)
    samples = None
    if bootstrap and uri is not None:
        wanted = list(suite.wanted.evaluations)
        samples = resampled(ledger, wanted, matches_from(uri), folder, by_size=by_size)
    reports = []
    for place, experiment in enumerate(sound):
        labs = fetch_labs(uri, experiment.rows, ledger, folder) if uri and place == 0 else {}
        rows = measure(experiment, ledger, samples)
        table = results_table(experiment, rows, is_resampled=samples is not None)
        reports.append(
            Report(
                experiment=experiment,
                rows=rows,
                table=table,
                figures=figures(experiment, rows),
                misalignment=misalignment_table(experiment, rows),
                labs=labs,
            )
        )
    return reports


def reports_page(reports: Sequence[Report], extra: Sequence[Table] = ()) -> str:
    """Return one page of all tables and figures, and of the first table's heads at work."""
    suites = ", ".join(dict.fromkeys(report.experiment.suite for report in reports))
    tables, drawn = [], []
    for report in reports:
        for table in report.tables():
            tables.append(table)
            drawn.append(report.figures if table is report.table else "")
    # The first lab alone: one takes up to two megabytes a head.
    lab = next((lab for report in reports if (lab := read_labs(report.labs)) is not None), None)
    sections = [] if lab is None else [lab_section(lab)]
    return html_page(f"retinanet-conf: {suites}", [*tables, *extra], drawn, sections)


def write_reports(folder: Path, reports: Sequence[Report], extra: Sequence[Table] = ()) -> None:
    """Write each table as text, Markdown, LaTeX and JSON, and all as index.html; what stands there already is left."""
    files = {"index.html": reports_page(reports, extra)}
    for report in reports:
        files |= every_format(report.experiment.name, report.table)
        if report.compares_heads:
            files |= every_format(f"{report.experiment.name}_misalignment", report.misalignment)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def table_files(report: Report) -> Mapping[str, str]:
    """Return a table in every format, by file name."""
    name, table = report.experiment.name, report.table
    return every_format(name, table) | {f"{name}.html": html_page(table.title, [table], [report.figures])}


def every_format(name: str, table: Table) -> dict[str, str]:
    """Return a table as text, Markdown, LaTeX and JSON, by file name."""
    return {f"{name}.{suffix}": render(table, form) + "\n" for form, suffix in SUFFIXES.items()}


def fetch_labs(uri: str, rows: Iterable[Row], ledger: Ledger, folder: Path) -> dict[str, Path]:
    """Return the files of the trainings that have a lab, of each row its first seed, by label; lost ones are left out.

    Args:
        uri: of the server.
        rows: of one table.
        ledger: what MLflow holds.
        folder: keeps the files; it may be deleted at any time.
    """
    files: dict[str, Path] = {}
    for row in rows:
        record = ledger.trainings.get(row_keys(row)[0].train_key)
        if record is None or not record.lab or len(files) == MOST_HEADS:
            continue
        file = folder / f"lab-{record.lab}.json"
        # Rows that share a training share its lab.
        if file not in files.values() and (file.is_file() or _fetch_lab(uri, record.run_id, record.lab, file)):
            files[row.label] = file
    return files


def read_labs(files: Mapping[str, Path]) -> Lab | None:
    """Join what was fetched and can be shown, each head under the label of its row."""
    labs = [(label, json.loads(file.read_text(encoding="utf-8"))) for label, file in files.items()]
    # An older lab may lack what the page's script reads.
    shown = [(label, lab) for label, lab in labs if lab["format"] == FORMAT]
    return join([lab | {"heads": [head | {"label": label} for head in lab["heads"]]} for label, lab in shown])


def matches_from(uri: str) -> Fetch:
    """Return what fetches the matches of an evaluation from an MLflow server."""

    def fetch(run_id: str, into: Path) -> Path:
        return download(uri, run_id, f"{names.DETECTIONS}/{names.MATCHES_FILE}", into)

    return fetch


def _sound(experiments: Iterable[Experiment], ledger: Ledger, say: Say | None) -> list[Experiment]:
    """Return the tables whose results rest on one version of the data; see `make_reports`."""
    sound, refused = [], []
    for experiment in experiments:
        try:
            require_one_version(experiment, ledger)
        except UserError as error:
            refused.append(str(error))
        else:
            sound.append(experiment)
    if refused:
        if say is None:
            raise UserError("\n".join(refused))
        say("\n".join(f"left out: {why}" for why in refused))
    return sound


def _fetch_lab(uri: str, run_id: str, digest: str, file: Path) -> bool:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        try:
            fetched = download(uri, run_id, f"{names.LAB}/{names.LAB_FILE}", Path(scratch))
        except UserError:
            return False
        if file_sha256(fetched) != digest:
            return False
        # From a folder beside it, as a rename is whole only within one file system.
        os.replace(fetched, file)
    return True
