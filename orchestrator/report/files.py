"""The results of one suite as files: each table in every format, and all of them with their figures on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.experiment.keys import row_keys
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger
from orchestrator.figures.lab import lab_section
from orchestrator.figures.page import html_page, render
from orchestrator.figures.table import Table
from orchestrator.report.bootstrap import resampled
from orchestrator.report.figures import figures
from orchestrator.report.lab_files import fetch_labs, read_labs
from orchestrator.report.measured import Measured, measure
from orchestrator.report.misalignment_table import has_several_heads, is_measured, misalignment_table
from orchestrator.report.results import results_table
from orchestrator.site import Site

SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex", "json": "json"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One experiment, measured as far as it is."""

    experiment: Experiment
    rows: tuple[Measured, ...]
    table: Table
    figures: str
    """As SVG."""
    misalignment: Table
    """The same rows by what their scores say of placement."""
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
    experiments: Sequence[Experiment], ledger: Ledger, uri: str | None, site: Site, *, bootstrap: bool = True
) -> list[Report]:
    """Measure the experiments of one suite.

    Args:
        experiments: of one suite.
        ledger: what MLflow holds of it.
        uri: of MLflow; None where there is none.
        site: keeps what was resampled.
        bootstrap: whether the differences get intervals, which takes about a second for each new evaluation.
    """
    samples = None
    if bootstrap and uri is not None:
        keys = [keys.evaluation_key for e in experiments for row in e.rows for keys in row_keys(row)]
        samples = resampled(ledger, keys, partial(_fetch, uri), site.home / "statistics")
    reports = []
    for place, experiment in enumerate(experiments):
        labs = fetch_labs(uri, experiment.rows, ledger, site.home / "statistics") if uri and place == 0 else {}
        rows = measure(experiment, ledger, samples)
        table = results_table(experiment, ledger, samples)
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


def table_files(report: Report) -> Mapping[str, str]:
    """Return a table in every format, by file name."""
    name, table = report.experiment.name, report.table
    return _files(name, table) | {f"{name}.html": html_page(table.title, [table], [report.figures])}


def reports_page(reports: Sequence[Report], extra: Sequence[Table] = ()) -> str:
    """Return one page of all tables and figures, and of the first table's heads at work."""
    suites = ", ".join(dict.fromkeys(report.experiment.suite for report in reports))
    shown = [
        (table, report.figures if table is report.table else "") for report in reports for table in report.tables()
    ]
    tables, drawn = [table for table, _ in shown], [figure for _, figure in shown]
    labs = [lab for report in reports if (lab := read_labs(report.labs)) is not None]
    sections = [lab_section(lab) for lab in labs[:1]]
    return html_page(f"retinanet-conf: {suites}", [*tables, *extra], drawn, sections)


def write_reports(folder: Path, reports: Sequence[Report], extra: Sequence[Table] = ()) -> None:
    """Write each table as text, Markdown, LaTeX and JSON, and all as index.html; what stands there already is left."""
    files = {"index.html": reports_page(reports, extra)}
    for report in reports:
        files |= {name: text for name, text in table_files(report).items() if not name.endswith(".html")}
        if report.compares_heads:
            files |= _files(f"{report.experiment.name}_misalignment", report.misalignment)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        file = folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def _files(name: str, table: Table) -> dict[str, str]:
    return {f"{name}.{suffix}": render(table, form) + "\n" for form, suffix in SUFFIXES.items()}


def _fetch(uri: str, run_id: str, into: Path) -> Path:
    from orchestrator.tracking.artifacts import download
    from orchestrator.tracking.ledger import MATCHES

    return download(uri, run_id, f"detections/{MATCHES}", into)
