"""The report of a suite: its tables in every format, and all of them with figures and the lab on one page."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from model.config import CALIBRATION
from model.data.cache import file_sha256
from model.paths import inside, one_name
from orchestrator import names
from orchestrator.errors import Say, UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, row_keys
from orchestrator.experiment.prepare import require_one_version
from orchestrator.experiment.rows import Row
from orchestrator.figures.drawing import svg_sheet
from orchestrator.figures.lab import FORMAT, Lab, join, lab_section
from orchestrator.figures.page import Section, html_page, kept_section, render, table_html
from orchestrator.figures.table import GAIN, Table, ends_of, written
from orchestrator.homes import make_home
from orchestrator.report.classes.numbers import Classes, measure_classes
from orchestrator.report.classes.section import classes_section
from orchestrator.report.classes.table import classes_table
from orchestrator.report.figures import drawings, figures, with_matrix
from orchestrator.report.misalignment_table import has_several_heads, is_measured, misalignment_table
from orchestrator.report.results.rows import RowResult, measure, measured_on, with_references
from orchestrator.report.results.table import papers_gains, results_table
from orchestrator.report.statistics.resamples import OF_SIZES, Fetch, resampled, resampled_classes
from orchestrator.tracking.artifacts import download
from orchestrator.tracking.rest import Refused, ServerAway
from orchestrator.tracking.suite import Suite

MOST_HEADS = 6
"""So many heads, the first of a table, are in the lab of one page."""
BIBTEX = """@article{wu2020improvement,
  title   = {Improvement of Classification in One-Stage Detector},
  author  = {Wu, Kehe and Chen, Zuge and Zhang, Xiaoliang and Li, Wei},
  journal = {arXiv preprint arXiv:2011.10465},
  year    = {2020}
}"""
PARTS = "parts"
"""The folder of what each table looks like on the page of its suite."""
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
    newest: date | None = None
    """When the newest of its suite's evaluations was made (UTC)."""
    classes: Classes | None = None
    """The same rows class by class; None where their matches are not known, or were not asked for."""

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
        by_size: whether the rows know the intervals of APs to ARl, too, which takes another second; they do where a
            table shows one of them.
        say: told of tables that are left out since their results rest on two versions of the data; without it they
            are an error.

    Raises:
        UserError: the results of a table do so, and `say` is not given; the message names each such table. Or MLflow
            went away.
    """
    ledger, uri, folder = suite.ledger, suite.uri, suite.site.home / "statistics"
    wanted = suite.wanted.evaluations
    times = [run.start_time for run in suite.mlflow_runs if run.kind == "evaluation" and run.key in wanted]
    newest = datetime.fromtimestamp(max(times) / 1000, UTC).date() if times else None
    reports = []
    for place, (experiment, rows) in enumerate(measure_suite(suite, bootstrap=bootstrap, by_size=by_size, say=say)):
        labs = fetch_labs(uri, experiment.rows, ledger, folder) if uri and place == 0 else {}
        classes = None
        if bootstrap and uri is not None:
            keys = [seed.evaluation_key for row in experiment.rows for seed in row_keys(row)]
            classes = measure_classes(
                experiment, rows, resampled_classes(ledger, keys, matches_from(uri), folder), suite.site
            )
        table = results_table(experiment, rows, is_resampled=bootstrap and uri is not None)
        reports.append(
            Report(
                experiment=experiment,
                rows=rows,
                table=with_matrix(experiment, rows, table),
                figures=figures(experiment, rows),
                misalignment=misalignment_table(experiment, rows),
                labs=labs,
                newest=newest,
                classes=classes,
            )
        )
    return reports


def measure_suite(
    suite: Suite, *, bootstrap: bool = True, by_size: bool = False, say: Say | None = None
) -> list[tuple[Experiment, tuple[RowResult, ...]]]:
    """Measure the rows of each table, without drawing anything; see `make_reports`."""
    ledger, uri, samples = suite.ledger, suite.uri, None
    sound = _sound(suite.experiments, ledger, say)
    if bootstrap and uri is not None:
        folder = suite.site.home / "statistics"
        wanted = list(suite.wanted.evaluations)
        # What is decided, and what is bold, must not hang on who asks: a submit or a report, with claims or without.
        by_size = by_size or any(set(one.columns) & set(OF_SIZES) for one in sound)
        try:
            samples = resampled(ledger, wanted, matches_from(uri), folder, by_size=by_size, by_class=True)
        except (ServerAway, Refused) as error:  # of files; what it told of the runs is known already
            raise type(error)(f"{error}; `rnc report --no-bootstrap` needs no file of it") from error
    return [(experiment, measure(experiment, ledger, samples)) for experiment in sound]


def reports_page(reports: Sequence[Report], extra: Sequence[Table] = (), kept: Sequence[Section] = ()) -> str:
    """Return one page of all tables and figures, what was kept of others, and the first table's heads at work."""
    suites = ", ".join(dict.fromkeys(report.experiment.suite for report in reports))
    tables, drawn = [], []
    for report in reports:
        for table in report.tables():
            tables.append(table)
            drawn.append(report.figures if table is report.table else "")
    # The first lab alone: one takes up to two megabytes a head.
    lab = next((lab for report in reports if (lab := read_labs(report.labs)) is not None), None)
    sections = [*_class_sections(reports), *kept, *([] if lab is None else [lab_section(lab)])]
    title, found, facts = f"retinanet-conf: {suites}", _found(reports), _facts(reports)
    return html_page(title, [*tables, *extra], drawn, sections, found=found, facts=facts, cites=BIBTEX)


def write_reports(
    folder: Path, reports: Sequence[Report], extra: Mapping[str, Table] | None = None, *, keeps: bool = False
) -> None:
    """Write each table as text, Markdown, LaTeX and JSON, and all as index.html; what stands there already is left.

    Args:
        folder: is made.
        reports: of experiments.
        extra: more tables, by the name of their files.
        keeps: whether the page also shows tables that were written there before with other reports, as they stood;
            a submit may be of one file of its suite.
    """
    extra = extra or {}
    kept = _kept_sections(folder, reports) if keeps else []
    files = {"index.html": reports_page(reports, [*extra.values()], kept)}
    if keeps:
        files |= {f"{PARTS}/{report.experiment.name}.json": _part(folder, report) for report in reports}
    for name, table in extra.items():
        files |= every_format(name, table)
    for report in reports:
        files |= every_format(report.experiment.name, report.table) | _drawn(report)
        if report.compares_heads:
            files |= every_format(f"{report.experiment.name}_misalignment", report.misalignment)
        if report.classes is not None:
            files |= every_format(f"{report.experiment.name}_classes", classes_table(report.classes))
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        if not file.is_file() or file.read_bytes() != content:
            file.write_bytes(content)


def table_files(report: Report) -> Mapping[str, str]:
    """Return a table in every format, and its figure, by file name."""
    name, table = report.experiment.name, report.table
    sections, found, facts = _class_sections([report]), _found([report]), _facts([report])
    page = html_page(table.title, [table], [report.figures], sections, found=found, facts=facts)
    classes = {} if report.classes is None else every_format(f"{name}_classes", classes_table(report.classes))
    return every_format(name, table) | {f"{name}.html": page} | _drawn(report) | classes


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
        file = inside(folder, one_name(f"lab-{record.lab}.json"))
        # Rows that share a training share its lab.
        if file in files.values():
            continue
        if _is_lab(file, record.lab) or _fetch_lab(uri, record.run_id, record.lab, file):
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


def _part(folder: Path, report: Report) -> str:
    """Return what a later page shows of a report, with the time since when it stands so."""
    drawn = [report.figures, *[""] * (len(report.tables()) - 1)]
    content = {
        "file": str(report.experiment.path.absolute()),
        "facts": _facts([report]),
        "tables": [
            [table.title, table_html(table, figure)] for table, figure in zip(report.tables(), drawn, strict=True)
        ],
        "sections": [[section.title, section.anchor, section.html] for section in _class_sections([report])],
    }
    held = _read_part(folder / PARTS / f"{report.experiment.name}.json")
    same = held is not None and all(held.get(name) == value for name, value in content.items())
    written = held["written"] if held is not None and same else datetime.now(UTC).isoformat(timespec="minutes")
    return json.dumps(content | {"written": written}, ensure_ascii=False, indent=1) + "\n"


def _kept_sections(folder: Path, reports: Sequence[Report]) -> list[Section]:
    """Return the tables that were written to a folder and are none of these reports."""
    new, sections = {report.experiment.name for report in reports}, []
    for file in sorted((folder / PARTS).glob("*.json")):
        part = None if file.stem in new else _read_part(file)
        if part is None:
            continue
        when = f"as of {datetime.fromisoformat(part['written']):%d %B %Y, %H:%M} UTC"
        why = (
            "the last submit did not measure it anew"
            if Path(part["file"]).is_file()
            else f"its file {part['file']} is gone"
        )
        note = f"{when[0].upper()}{when[1:]}: {why}. {' · '.join(part['facts'])}"
        for place, (title, html) in enumerate(part["tables"]):
            anchor = f"kept-{file.stem}" + (f"-{place}" if place else "")
            sections.append(kept_section(title, anchor, html, when=when, note=note))
        sections += [Section(f"{title} ({when})", anchor, html) for title, anchor, html in part["sections"]]
    return sections


def _read_part(file: Path) -> dict[str, Any] | None:
    try:
        part: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half written when a disk was full: the next submit writes it
        return None
    return part if part.keys() >= {"file", "facts", "tables", "sections", "written"} else None


def _class_sections(reports: Sequence[Report]) -> list[Section]:
    held = [(report.experiment.name, report.classes) for report in reports]
    return [classes_section(classes, f"classes-{name}") for name, classes in held if classes is not None]


def _drawn(report: Report) -> dict[str, str]:
    # SVG, as matplotlib, which makes PNG, takes seconds to import: too long for a submit that finds nothing to do.
    sheet = svg_sheet(drawings(report.experiment, report.rows), report.experiment.title)
    return {f"{report.experiment.name}.svg": sheet} if sheet else {}


def _found(reports: Sequence[Report]) -> list[str]:
    """Say how far the best row of the first table with a reference is above it, and what the paper has there."""
    compared = [one for one in reports if one.experiment.reference is not None and len(one.rows) > 1]
    if not compared:
        return []
    report = next((one for one in compared if any(row.by_seed for row in one.rows)), compared[0])
    experiment, metric = report.experiment, report.experiment.columns[0]
    papers = dict(zip((row.label for row in experiment.rows), papers_gains(experiment), strict=True))
    means = [(mean, place) for place, row in enumerate(report.rows) if (mean := row.mean(metric)) is not None]
    best_first = sorted(means, reverse=metric not in CALIBRATION)
    pairs = with_references(experiment, report.rows)
    # The first is the best, beside what it is compared with.
    ranked = [
        (best, base)
        for best, base in (pairs[place] for _, place in best_first)
        if base is not None and best.is_on_images_of(base)
    ]
    if not ranked and any(base.by_seed for _, base in pairs if base is not None):
        return []
    if not ranked or (gain := ranked[0][0].gap(ranked[0][1], metric)) is None:
        printed = [(gain, label) for label, gain in papers.items() if gain is not None]
        if not printed:
            return []
        most, label = max(printed)
        begun = "The reference has not run yet" if means else "Nothing has run yet, and these are the paper's numbers"
        (over,) = [experiment.reference_of(row) for row in experiment.rows if row.label == label]
        return [f"{begun}: there {label} has {most:+.1f} {metric} over {over}, on COCO 2017."]
    best, base = ranked[0]
    found = best.difference(base, metric)
    over = f"{metric} over {base.row.label}"
    if found is None:
        said = f"{best.row.label} has {gain:+.1f} {over}; no interval is known."
    else:
        interval = (found.low, found.high)
        said = f"{best.row.label} has {written(gain, interval, GAIN)} {over}, "
        said += f"95 % interval {' to '.join(ends_of(interval, GAIN))}: "
        said += "it excludes 0." if found.excludes_zero else "it holds 0, so this leaves open which is better."
    theirs = papers[best.row.label]
    return [said] if theirs is None else [said, f"The paper has {theirs:+.1f} there, on COCO 2017."]


def _facts(reports: Sequence[Report]) -> list[str]:
    """Name data, seeds and the date of the newest evaluation."""
    rows = [row for report in reports for row in report.experiment.rows]
    seeds = sorted({seed for row in rows for seed in row.seeds})
    listed = ", ".join(map(str, seeds))
    data = measured_on([row for report in reports for row in report.rows])
    facts = ["; ".join(data), f"seed{'s' if len(seeds) > 1 else ''} {listed}"]
    newest = max((report.newest for report in reports if report.newest is not None), default=None)
    return facts if newest is None else [*facts, f"newest evaluation {newest:%d %B %Y}"]


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


def _is_lab(file: Path, digest: str) -> bool:
    """Whether it was fetched before, and is still what it was."""
    return file.is_file() and file_sha256(file) == digest


def _fetch_lab(uri: str, run_id: str, digest: str, file: Path) -> bool:
    make_home(file.parent.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        try:
            fetched = download(uri, run_id, f"{names.LAB}/{names.LAB_FILE}", Path(scratch))
        except UserError:
            return False
        if not _is_lab(fetched, digest):
            return False
        # From a folder beside it, as a rename is whole only within one file system.
        os.replace(fetched, file)
    return True
