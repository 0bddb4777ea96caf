"""Labs stored with runs of a real server; expected values are what was stored."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from xml.etree import ElementTree

import pytest

from model.data.cache import file_sha256
from model.evaluation.coco.matches import match, write_matches
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, make_plan, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.figures.lab import FORMAT, Lab
from orchestrator.report import files
from orchestrator.report.files import (
    MOST_HEADS,
    fetch_labs,
    make_reports,
    read_labs,
    reports_page,
    table_files,
    write_reports,
)
from orchestrator.site import Site
from orchestrator.tracking.artifacts import delete
from orchestrator.tracking.ledger import begin_training, read_ledger
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.runs import Run, Tracking, open_tracking
from orchestrator.tracking.suite import Suite
from orchestrator.worker.scoring import record_lab, store_lab
from orchestrator.worker.task import TrainingTask
from orchestrator.worker.training_log import Note, read_log
from tests.detections import random_scene, table, write
from tests.orchestrator.ledgers import experiment, finished, ledger_of
from tests.orchestrator.report.classes.test_numbers import measured, samples_of

CONF = Row(label="ours", seeds=(0, 1))
OTHER = Row(label="theirs", train=replace(CONF.train, global_batch=8))


def lab(name: str, fingerprint: str = "data") -> Lab:
    head = {"label": name, "has_confidence": True, "candidates": []}
    return {"format": FORMAT, "fingerprint": fingerprint, "images": [], "heads": [head]}


@pytest.fixture
def suite(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


def begun(suite: Tracking, *rows: Row) -> dict[str, str]:
    """The runs of the rows' trainings, by key."""
    plan = make_plan([experiment("table", rows)], Ledger())
    return {key: begin_training(suite, run) for key, run in plan.trainings.items()}


def test_a_lab_is_stored_once_and_found_under_its_rows_label(suite: Tracking, tmp_path: Path) -> None:
    runs = begun(suite, CONF, OTHER)
    first, second = (row_keys(CONF)[seed].train_key for seed in (0, 1))
    assert store_lab(suite.uri, runs[first], lambda: lab("once"))
    assert not store_lab(suite.uri, runs[first], lambda: lab("again"))
    assert store_lab(suite.uri, runs[second], lambda: lab("second seed"))
    files = fetch_labs(suite.uri, [CONF, OTHER], read_ledger(suite), tmp_path)
    assert list(files) == ["ours"]
    assert json.loads(files["ours"].read_text())["heads"][0]["label"] == "once"
    joined = read_labs(files)
    assert joined is not None and [head["label"] for head in joined["heads"]] == ["ours"]


def test_a_lab_that_was_fetched_is_not_asked_for_again_and_a_lost_one_is_left_out(
    suite: Tracking, tmp_path: Path
) -> None:
    runs = begun(suite, OTHER)
    (run_id,) = runs.values()
    store_lab(suite.uri, run_id, lambda: lab("any"))
    ledger = read_ledger(suite)
    assert list(fetch_labs(suite.uri, [OTHER], ledger, tmp_path / "kept")) == ["theirs"]
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text('{"cut')
    assert read_labs(fetch_labs(suite.uri, [OTHER], ledger, tmp_path / "kept")) is not None  # it was fetched again
    delete(suite.uri, run_id, "lab")
    assert list(fetch_labs(suite.uri, [OTHER], ledger, tmp_path / "kept")) == ["theirs"]
    assert fetch_labs(suite.uri, [OTHER], ledger, tmp_path / "new") == {}
    assert read_labs({}) is None


def test_a_training_does_not_fail_of_its_lab(tmp_path: Path) -> None:
    def hear_run() -> str:
        raise UserError("MLflow is away")

    task = SimpleNamespace(folder=tmp_path, tracking_uri="http://127.0.0.1:9", hear_run=hear_run)
    record_lab(cast(TrainingTask, task), None, None)  # type: ignore[arg-type]
    (entry,) = read_log(tmp_path)
    assert entry.event == Note(text="nothing for the misalignment lab: MLflow is away")


def kept(rows: list[Row], folder: Path) -> Ledger:
    """Rows whose labs were fetched before."""
    folder.mkdir(parents=True)
    records = {}
    for place, row in enumerate(rows):
        content = json.dumps(lab(f"{place}")).encode()
        digest = hashlib.sha256(content).hexdigest()
        (folder / f"lab-{digest}.json").write_bytes(content)
        records[row_keys(row)[0].train_key] = Record(status="FINISHED", run_id="r", lab=digest)
    return Ledger(trainings=records)


def holding(experiments: list[Experiment], ledger: Ledger, uri: str | None, home: Path) -> Suite:
    """A suite of which MLflow would hold this."""
    return cast(Suite, type("Held", (Suite,), {"ledger": ledger, "uri": uri})(experiments, Site(home=home)))


def on_versions(row: Row, *fingerprints: str) -> Ledger:
    """Both seeds of a row, scored on these versions of the data."""
    keys = row_keys(row)
    return Ledger(
        trainings={key.train_key: finished() for key in keys},
        evaluations={
            key.evaluation_key: replace(finished(AP=30.0), data_fingerprint=one)
            for key, one in zip(keys, fingerprints, strict=True)
        },
    )


def test_two_versions_of_the_data_are_never_averaged(tmp_path: Path) -> None:
    tables = [experiment("both", [CONF]), experiment("sound", [replace(CONF, seeds=(1,))])]
    mixed = holding(tables, on_versions(CONF, "old", "new"), None, tmp_path)
    with pytest.raises(UserError, match=r"table both: row 'ours', seed 0, .* seed 1 \(fingerprints old and new\)"):
        make_reports(mixed)
    heard: list[str] = []
    assert [report.experiment.name for report in make_reports(mixed, say=heard.append)] == ["sound"]
    assert len(heard) == 1 and heard[0].startswith("left out: table both: row 'ours', seed 0, was scored on")
    same = holding(tables, on_versions(CONF, "new", "new"), None, tmp_path)
    assert [report.table.cells()[0][1].value for report in make_reports(same, say=heard.append)] == [30.0, 30.0]
    assert len(heard) == 1


def test_rows_know_the_intervals_by_size_where_a_table_shows_a_size_or_a_report_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    write_matches(match(data, table(found)), tmp_path / "matches")
    record = replace(finished(AP=30.0, AR100=40.0, APm=20.0), matches=file_sha256(tmp_path / "matches"))
    monkeypatch.setattr(
        files, "matches_from", lambda uri: lambda _, into: Path(shutil.copy(tmp_path / "matches", into))
    )
    of_all = replace(experiment("one", [OTHER]), columns=("AP", "AR100"))
    held = holding([of_all], ledger_of((OTHER, [record])), "http://none", tmp_path / "home")
    plain, asked = (make_reports(held, by_size=by_size)[0].rows[0] for by_size in (False, True))
    assert [plain.estimate(metric) is not None for metric in ("AP", "AR100", "APm")] == [True, True, False]
    estimates = [asked.estimate(metric) for metric in ("AP", "AR100", "APm")]
    assert [one and (one.value, one.num_images) for one in estimates] == [(30.0, 8), (40.0, 8), (20.0, 8)]
    assert estimates[0] == plain.estimate("AP") and len({one and one.high - one.value for one in estimates}) == 3
    assert plain.is_resampled and not make_reports(held, bootstrap=False)[0].rows[0].is_resampled
    # a table that shows a size knows them, too: its best is bold by them
    of_size = replace(of_all, columns=("AP", "APm"))
    held = holding([of_size], ledger_of((OTHER, [record])), "http://none", tmp_path / "home")
    assert make_reports(held)[0].rows[0].estimate("APm") == estimates[2]


def test_where_files_are_not_given_a_report_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run_id: str, into: Path) -> Path:
        raise ServerAway("no file today")

    monkeypatch.setattr(files, "matches_from", lambda uri: away)
    record = replace(finished(AP=30.0, AR100=40.0, APm=20.0), matches="0" * 64)
    one = experiment("one", [OTHER])
    held = holding([one], ledger_of((OTHER, [record])), "http://none", tmp_path / "home")
    with pytest.raises(ServerAway, match="no file today; `rnc report --no-bootstrap` needs no file of it"):
        make_reports(held)
    assert make_reports(held, bootstrap=False)[0].rows[0].by_seed


def test_classes_of_a_table_are_in_its_files_and_on_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    write_matches(match(data, table(found)), tmp_path / "matches")
    record = replace(finished(AP=30.0), matches=file_sha256(tmp_path / "matches"))
    monkeypatch.setattr(
        files, "matches_from", lambda uri: lambda _, into: Path(shutil.copy(tmp_path / "matches", into))
    )
    tables = [experiment("one", [OTHER]), experiment("two", [CONF])]
    held = holding(tables, ledger_of((OTHER, [record])), "http://none", tmp_path / "home")
    reports = make_reports(held)
    assert [report.classes is not None for report in reports] == [True, False]
    page = reports_page(reports)
    assert page.count('<section id="classes-one">') == 1 and '<a href="#classes-one">one: classes</a>' in page
    assert "classes-two" not in page
    write_reports(tmp_path / "out", reports)
    own = {file.name for file in (tmp_path / "out").glob("*_classes.*")}
    assert own == {f"one_classes.{suffix}" for suffix in ("txt", "md", "tex", "json")}
    stored = table_files(reports[0])
    rows = json.loads(stored["one_classes.json"])["rows"]
    assert [row["class"] for row in rows] == ["thing 2", "thing 5", "thing 9", "thing 11"]
    assert '<section id="classes-one">' in stored["one.html"]
    assert make_reports(held, bootstrap=False)[0].classes is None


def test_a_page_shows_the_lab_of_its_first_table_and_none_where_no_training_has_one(tmp_path: Path) -> None:
    ledger = kept([CONF, OTHER], tmp_path / "statistics")
    tables = [experiment("first", [CONF, OTHER]), experiment("second", [OTHER])]
    page = reports_page(make_reports(holding(tables, ledger, "http://none", tmp_path), bootstrap=False))
    assert page.count('<section id="lab"') == 1 and page.count('"has_confidence"') == 2
    assert page.index('"label":"ours"') < page.index('"label":"theirs"')
    assert 'id="lab"' not in reports_page(
        make_reports(holding(tables, Ledger(), "http://none", tmp_path), bootstrap=False)
    )


def test_a_lab_of_another_format_is_not_shown(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(lab("old") | {"format": FORMAT - 1}))
    new.write_text(json.dumps(lab("new")))
    joined = read_labs({"older": old, "newer": new})
    assert joined is not None and [head["label"] for head in joined["heads"]] == ["newer"]


def test_rows_of_one_training_are_one_head_and_a_page_has_so_many_at_most(tmp_path: Path) -> None:
    rows = [Row(label=f"row {n}", train=replace(CONF.train, global_batch=n)) for n in range(1, MOST_HEADS + 3)]
    ledger = kept(rows, tmp_path / "kept")
    files = fetch_labs("http://none", [rows[0], replace(rows[0], label="again"), *rows[1:]], ledger, tmp_path / "kept")
    assert list(files) == [f"row {n}" for n in range(1, MOST_HEADS + 1)]


BASE = Row(label="base", train=replace(CONF.train, global_batch=4), paper={"AP": 35.3})
BETTER = Row(label="better", paper={"AP": 36.0})
SHAPES = replace(CONF.train, data=replace(CONF.train.data, dataset="shapes", val_split="val"))
FOUND, SVG = '<p class="found">', "{http://www.w3.org/2000/svg}"


def first_screen(rows: list[Row], ledger: Ledger, home: Path) -> str:
    """What a page says before its first table."""
    table = replace(experiment("table", rows), reference="base")
    return reports_page(make_reports(holding([table], ledger, None, home))).split("<h2>")[0]


def test_a_page_says_first_how_far_the_best_row_is_above_the_reference(tmp_path: Path) -> None:
    held = ledger_of((BASE, [finished(AP=35.0)]), (BETTER, [finished(AP=36.26)]))
    page = first_screen([BASE, BETTER], held, tmp_path)
    assert f"{FOUND}better has +1.3 AP over base; no interval is known.</p>" in page
    assert f"{FOUND}The paper has +0.7 there, on COCO 2017.</p>" in page
    assert '<p class="facts">COCO val2017 · seed 0</p>' in page
    two = replace(BETTER, seeds=(0, 1))
    held = ledger_of((BASE, [finished(AP=35.0)]), (two, [finished(AP=36.26), finished(AP=39.0)]))
    assert "better has +1.3 AP over base" in first_screen([BASE, two], held, tmp_path)  # by the seed that both have
    elsewhere = replace(BETTER, split="minival")
    held = ledger_of((BASE, [finished(AP=35.0)]), (elsewhere, [finished(AP=36.26)]))
    assert FOUND not in first_screen([BASE, elsewhere], held, tmp_path)


def test_before_any_run_a_page_says_what_the_paper_found(tmp_path: Path) -> None:
    page = first_screen([BASE, replace(BETTER, train=SHAPES, split="val", seeds=(0, 1))], Ledger(), tmp_path)
    said = (
        "Nothing has run yet, and these are the paper&#39;s numbers: there better has +0.7 AP over base, on COCO 2017."
    )
    assert FOUND + said in page and '<p class="facts">COCO val2017; shapes val · seeds 0, 1</p>' in page
    assert FOUND not in first_screen([replace(BASE, paper={}), replace(BETTER, paper={})], Ledger(), tmp_path)


def test_a_page_names_the_day_of_the_newest_evaluation_that_its_tables_rest_on(tmp_path: Path) -> None:
    table = replace(experiment("table", [BASE, BETTER]), reference="base")
    held = ledger_of((BASE, [finished(AP=35.0)]), (BETTER, [finished(AP=36.0)]))
    suite = holding([table], held, None, tmp_path)
    keys = [row_keys(row)[0].evaluation_key for row in (BASE, BETTER)]
    # 14 November 2023 22:13 UTC, a day before, and one of another table a month later
    times = {keys[0]: 1_700_000_000_000, keys[1]: 1_699_913_600_000, "another": 1_702_592_000_000}
    suite._runs = [
        Run(
            run_id=key, name=key, status="FINISHED", start_time=time, tags={"kind": "evaluation", "evaluation_key": key}
        )
        for key, time in times.items()
    ]
    assert "newest evaluation 14 November 2023" in reports_page(make_reports(suite, bootstrap=False))


def test_the_figure_of_a_table_is_a_file_beside_it_here_and_in_mlflow(tmp_path: Path) -> None:
    table = experiment("table", [BASE, BETTER])
    held = ledger_of((BASE, [finished(AP=35.0)]), (BETTER, [finished(AP=36.0)]))
    (report,) = make_reports(holding([table], held, None, tmp_path))
    files = table_files(report)
    assert set(files) == {f"table.{suffix}" for suffix in ("txt", "md", "tex", "json", "html", "svg")}
    root = ElementTree.fromstring(files["table.svg"])
    assert {"base", "better", "35.0", "36.0"} <= {text.text for text in root.iter(f"{SVG}text")}
    write_reports(tmp_path / "out", [report])
    assert (tmp_path / "out" / "table.svg").read_text() == files["table.svg"]
    (nothing,) = make_reports(holding([table], Ledger(), None, tmp_path))
    assert "table.svg" not in table_files(nothing)


def test_the_page_of_a_suite_keeps_the_tables_of_earlier_submits_and_says_how_old_they_are(tmp_path: Path) -> None:
    held = ledger_of((BASE, [finished(AP=35.0)]), (BETTER, [finished(AP=36.0)]))
    first, second = (experiment(name, [BASE, BETTER]) for name in ("first", "second"))
    reports = {}
    for one in (first, second):
        file = tmp_path / f"{one.name}.yaml"
        file.touch()
        reports[one.name] = make_reports(holding([replace(one, path=file)], held, None, tmp_path))
    out = tmp_path / "out"
    write_reports(out, reports["first"], keeps=True)
    part = json.loads((out / "parts" / "first.json").read_text())
    (out / "parts" / "first.json").write_text(json.dumps(part | {"written": "2026-01-02T03:04+00:00"}))
    write_reports(out, reports["second"], keeps=True)
    page = (out / "index.html").read_text()
    ElementTree.fromstring(page.split("</style>")[1].split("<body>")[1].split("</body>")[0].replace("&nbsp;", " "))
    assert "<h2>second</h2>" in page and "<h2>first</h2>" in page and page.count("<figure>") == 2
    assert page.index("<h2>second</h2>") < page.index("<h2>first</h2>")
    assert page.count("As of 02 January 2026, 03:04 UTC: the last submit did not measure it anew.") == 1
    assert '<a href="#kept-first">first (as of 02 January 2026, 03:04 UTC)</a>' in page
    # what was written again as it was stands since then
    write_reports(out, reports["first"], keeps=True)
    assert json.loads((out / "parts" / "first.json").read_text())["written"] == "2026-01-02T03:04+00:00"
    # one page of all, and nothing of it is older than the rest
    write_reports(out, [*reports["first"], *reports["second"]], keeps=True)
    assert "As of" not in (out / "index.html").read_text()
    (tmp_path / "second.yaml").unlink()
    write_reports(out, reports["first"], keeps=True)
    assert f"its file {tmp_path}/second.yaml is gone" in (out / "index.html").read_text()
    (out / "parts" / "second.json").write_text("{")  # half written
    write_reports(out, reports["first"], keeps=True)
    assert "<h2>second</h2>" not in (out / "index.html").read_text()


def test_the_classes_of_a_table_are_kept_with_it(tmp_path: Path) -> None:
    held = ledger_of((BASE, [finished(AP=35.0)]))
    (first,), (second,) = (
        make_reports(holding([experiment(name, [BASE])], held, None, tmp_path)) for name in ("first", "second")
    )
    classes = measured([BASE], [[samples_of([30.0], [[29.0, 30.0, 31.0]])]], None)
    write_reports(tmp_path, [replace(first, classes=classes)], keeps=True)
    assert '<section id="classes-first">' in (tmp_path / "index.html").read_text()
    write_reports(tmp_path, [second], keeps=True)
    page = (tmp_path / "index.html").read_text()
    section = '<section id="classes-first">'
    assert page.count(section) == 1 and page.index("<h2>first</h2>") < page.index(section)
    assert '<a href="#classes-first">table: classes (as of ' in page


def test_a_page_that_is_written_elsewhere_holds_what_was_asked_for_alone(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_reports(tmp_path, make_reports(holding([experiment(name, [BASE])], Ledger(), None, tmp_path)))
    assert "<h2>first</h2>" not in (tmp_path / "index.html").read_text() and not (tmp_path / "parts").exists()
