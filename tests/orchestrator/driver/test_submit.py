"""What a submit gives back: as a notebook shows it, and where a table has to be left out."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model.config import ConfidenceConfig, DataConfig, ModelConfig, TrainConfig
from model.evaluation import warmup
from model.names import EPOCH, IMAGES_PER_S
from orchestrator import names
from orchestrator.driver import lock
from orchestrator.driver import submit as module
from orchestrator.driver.cancel import cancel_row
from orchestrator.driver.submit import Bounds, Submitted, submit
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Evaluation, Ledger, Plan, row_keys
from orchestrator.experiment.rows import Row, SeedRule
from orchestrator.figures.table import Column, Table
from orchestrator.report import files
from orchestrator.report.claims.file import load_claims
from orchestrator.site import Site
from orchestrator.tracking.ledger import begin_training, finish_training, read_ledger, record_evaluation
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.runs import open_tracking, write
from orchestrator.tracking.server import unused_server
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL, Status
from tests.conftest import MakeCoco
from tests.orchestrator.ledgers import NUMBERS, experiment, finished, keep_checkpoint, record


def test_a_notebook_shows_all_tables_of_a_submit() -> None:
    tables = [Table(title=title, columns=(Column("AP"),), rows=((1.25,),)) for title in ("First <1>", "Second")]
    reports: Any = [SimpleNamespace(table=table) for table in tables]
    html = Submitted(exit_code=0, reports=reports)._repr_html_()
    assert html.count("<table>") == 2 and html.index("<h3>First &lt;1&gt;</h3>") < html.index("<h3>Second</h3>")


def test_nobody_ends_the_server_of_a_submit_from_its_beginning_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, seen = Site(home=tmp_path / "home"), list[bool]()

    def connect(suite: Suite, **_: bool) -> None:
        with unused_server(site) as is_unused:
            seen.append(is_unused)
        raise UserError("no server here")

    monkeypatch.setattr(Suite, "connect", connect)
    with pytest.raises(UserError, match="no server here"):
        submit(Suite([experiment("table", [Row(label="ours")])], site), lambda _: None)
    with unused_server(site) as is_unused:
        assert (seen, is_unused) == ([False], True)


def test_a_table_of_two_versions_of_the_data_is_left_out_and_the_others_are_written(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    suite, site = open_tracking(mlflow_uri, request.node.name), Site(home=tmp_path, tracking_uri=mlflow_uri)
    row = Row(label="ours", seeds=(0, 7))
    tables = [
        replace(experiment(name, [replace(row, seeds=seeds)]), suite=suite.suite)
        for name, seeds in (("both", (0, 7)), ("alone", (7,)))
    ]
    record(suite, tables, site.storage / suite.suite)
    older = read_ledger(suite).evaluations[row_keys(row)[0].evaluation_key]
    write(mlflow_uri, older.run_id, tags={names.FINGERPRINT: "older data"})
    said: list[str] = []
    submitted = submit(Suite(tables, site), said.append)
    assert submitted.exit_code == 1
    assert [report.experiment.name for report in submitted.reports] == ["alone"]
    (left_out,) = [line for line in said if line.startswith("left out: ")]
    assert "table both: row 'ours', seed 0, was scored on another version" in left_out
    assert "seed 7 (fingerprints older data and val data)" in left_out
    folder = site.home / "reports" / suite.suite
    assert (folder / "alone.txt").is_file() and not (folder / "both.txt").exists()
    write(mlflow_uri, older.run_id, tags={names.FINGERPRINT: "val data"})
    assert submit(Suite(tables, site), said.append).exit_code == 0 and (folder / "both.txt").is_file()


def test_a_finished_table_whose_labels_were_corrected_is_refused(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path, make_coco: MakeCoco
) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    suite = open_tracking(mlflow_uri, request.node.name)
    site = Site(home=tmp_path / "home", tracking_uri=mlflow_uri, coco_root=make_coco([box]))
    row = Row(label="ours", train=TrainConfig(data=DataConfig(train_split="train", val_split="train")), split="train")
    table = replace(experiment("heads", [row]), suite=suite.suite)
    record(suite, [table], site.storage / suite.suite)  # on data of the fingerprint "data"
    with pytest.raises(UserError, match="split train of coco has changed: training 'ours' rests on data of"):
        submit(Suite([table], site), lambda _: None)
    assert submit(Suite([table], replace(site, coco_root=None)), lambda _: None).exit_code == 0


def test_pictures_that_a_killed_training_left_are_shown_by_the_next_submit_without_training(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, site = open_tracking(mlflow_uri, request.node.name[:60]), Site(home=tmp_path, tracking_uri=mlflow_uri)
    site = replace(site, coco_root=tmp_path)
    table = replace(experiment("heads", [Row(label="ours", seeds=(0, 7))]), suite=suite.suite)
    plan = record(suite, [table], site.storage / suite.suite)
    left, _ = plan.trainings
    waiting = site.storage / suite.suite / left / "pictures" / "000000006.npz"
    waiting.parent.mkdir()
    waiting.write_bytes(b"")
    shown: list[str] = []

    def show(uri: str, run_id: str, dataset: str, folder: Path, data: object) -> int:
        shown.append(run_id)
        waiting.unlink()
        return 1

    monkeypatch.setattr("model.data.coco.read_for_scoring", lambda *_: None)
    monkeypatch.setattr("orchestrator.worker.showcase.show_examples", show)
    said: list[str] = []
    assert submit(Suite([table], site), said.append).exit_code == 0
    assert shown == [read_ledger(suite).trainings[left].run_id]
    assert any("example detections that MLflow lacked were stored (1)" in line for line in said)
    assert submit(Suite([table], site), said.append).exit_code == 0
    assert len(shown) == 1


@pytest.mark.parametrize("moment", ["waiting", "training"])
def test_after_ctrl_c_it_ends_with_130_though_mlflow_has_gone_away(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    table = replace(experiment("heads", [Row(label="ours")]), suite=request.node.name)
    suite = Suite([table], Site(home=tmp_path, tracking_uri=mlflow_uri))

    def away(*_: object, **__: object) -> None:
        raise UserError("the MLflow server does not answer")

    def interrupted(*_: object, **__: object) -> Any:
        monkeypatch.setattr(module, "make_reports", away)
        monkeypatch.setattr(module, "place_evaluations", away)
        if moment == "waiting":
            raise KeyboardInterrupt
        return nullcontext(lambda _: None)

    monkeypatch.setattr(module, "locked", interrupted)
    monkeypatch.setattr(module, "_run", lambda *_: (130, 0.0))
    said: list[str] = []
    submitted = submit(suite, said.append)
    assert (submitted.exit_code, submitted.reports) == (130, [])
    assert said[-1].endswith("the MLflow server does not answer")


@pytest.mark.parametrize(
    ("is_compiled", "ray_address", "starts"), [(False, None, 1), (True, None, 0), (False, "head:6379", 0)]
)
def test_functions_are_compiled_once_for_all_trainings_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_compiled: bool, ray_address: str | None, starts: int
) -> None:
    started: list[Any] = []

    class Process(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append((self, command[1:]))
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **options)

    monkeypatch.setattr(warmup, "is_compiled", lambda: is_compiled)
    monkeypatch.setattr(subprocess, "Popen", Process)
    with module._compiling(Site(home=tmp_path, ray_address=ray_address)):
        assert [command for _, command in started] == [["-P", "-m", "model.evaluation.warmup"]] * starts
        assert all(process.poll() is None for process, _ in started)
    assert all(process.poll() is not None for process, _ in started)  # it does not outlive the submit


BASE = Row(label="base", train=TrainConfig(model=ModelConfig(confidence=None)))
CLEAR, DIM = Row(label="clear"), Row(label="dim", train=TrainConfig(model=ModelConfig(backbone="resnet101")))
GAINS = {"base": 0.0, "clear": 5.0, "dim": 0.1, "box": 1.0}
"""AP over the reference; seeds scatter by a tenth of a point."""


def heads(suite: str, rule: SeedRule | None, *rows: Row) -> Experiment:
    start = tuple(replace(row, seeds=tuple(range(rule.at_least))) for row in rows) if rule else rows
    return replace(experiment("heads", start), suite=suite, reference="base", seed_rule=rule)


class FakeCluster:
    """Records what a plan lacks, at one image a second, without training anything; says what ran, launch by launch."""

    def __init__(self, suite: Suite, failing: str = "") -> None:
        self.suite, self.failing = suite, failing
        self.launches: list[list[str]] = []
        self.works: list[str] = []
        """What those who wait are told, once each training has made its first updates."""

    def launch(self, plan: Plan, suite: Suite, say: Callable[[str], None], watch: Callable[..., None]) -> Any:
        storage, failed = suite.storage, False
        self.launches.append([plan.trainings[key].label for key in plan.missing_trainings])
        for key in plan.missing_trainings:
            run = plan.trainings[key]
            run_id = begin_training(suite.connection, run)
            if run.label == self.failing:
                failed = True
                continue
            write(suite.connection.uri, run_id, metrics={IMAGES_PER_S: 1.0, EPOCH: float(run.config.schedule.epochs)})
            watch([Status(label=run.label, state="training", num_epochs=1, images_per_s=1.0)])
            self.works.append(getattr(lock.holder_of(suite), "work", ""))
            finish_training(suite.connection, run_id, keep_checkpoint(storage, key), storage / key / JOURNAL)
        for key in plan.missing_evaluations:
            evaluation = plan.evaluations[key]
            trained = read_ledger(suite.connection).trainings.get(evaluation.train_key)
            if trained is None or trained.status != "FINISHED":
                continue
            seed = plan.trainings[evaluation.train_key].config.seed
            numbers = NUMBERS | {"AP": 30 + ap_of(evaluation, seed)}
            record_evaluation(
                suite.connection,
                evaluation,
                numbers,
                detections=files_of(storage / evaluation.key),
                train_run_id=trained.run_id,
                data_fingerprint="val data",
            )
        return SimpleNamespace(endings=(), interrupted=False, lost="", exit_code=int(failed))


def files_of(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "detections.parquet").write_text(folder.name)
    return folder / "detections.parquet"


def ap_of(evaluation: Evaluation, seed: int) -> float:
    return GAINS[evaluation.label] + (0.1 if seed % 2 else -0.1) * (evaluation.label != "base")


@pytest.fixture
def cluster(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FakeCluster]:
    """Opens a suite of these rows on a cluster that trains at once, 360 images an epoch."""

    def opened(rule: SeedRule | None, *rows: Row, failing: str = "") -> FakeCluster:
        site = Site(home=tmp_path, tracking_uri=mlflow_uri)
        suite = Suite([heads(request.node.name.partition("[")[0], rule, *rows)], site)
        fake = FakeCluster(suite, failing)
        noise = 0.05 * np.random.default_rng(0).standard_normal((3, 200))

        def resampled(ledger: Any, keys: list[str], *_: Any, **_options: Any) -> Any:
            return {key: noise for key in keys if key in ledger.evaluations}

        monkeypatch.setattr(Site, "num_images", lambda self, data: 300)
        monkeypatch.setattr(files, "resampled", resampled)
        monkeypatch.setattr(module, "_ray", lambda *_: nullcontext())
        monkeypatch.setattr(module, "_prepare", lambda *_: None)
        monkeypatch.setattr(module, "_launch", fake.launch)
        return fake

    return opened


def test_seeds_are_added_to_open_rows_until_they_are_decided_or_have_them_all(cluster: Callable[..., Any]) -> None:
    fake = cluster(SeedRule(until="decided", at_least=2, most=4), BASE, CLEAR, DIM)
    suite, said = fake.suite, list[str]()
    assert submit(suite, said.append).exit_code == 0
    seeds = {row.label: len(row.seeds) for row in suite.experiments[0].rows}
    assert seeds["dim"] == seeds["base"] == 4 and seeds["clear"] < 4
    assert set(fake.launches[0]) == {f"{label}, seed {seed}" for label in ("base", "clear", "dim") for seed in (0, 1)}
    assert all("clear" not in label for label in fake.launches[-1]) and len(fake.launches) == 3
    assert fake.launches[-1] == ["base, seed 3", "dim, seed 3"]
    # the text says at each look what is decided, what is open, and what is added at which cost
    assert any("Open: dim" in line and "decided against base are clear +5.0" in line for line in said)
    assert "Added (CPU-hours): seed 3 of dim (2)." in said  # 12 epochs of 300 images at one a second, two trainings
    # nothing but the ledger knows: another process sees the same, and has nothing to do
    again = Suite(suite._listed.experiments, suite.site)
    assert again.experiments == suite.experiments and again.make_plan().is_complete
    before = len(fake.launches)
    assert submit(again, said.append).exit_code == 0 and len(fake.launches) == before
    (report,) = files.make_reports(again)
    assert {row.seed_rule for row in report.rows} == {again.experiments[0].seed_rule}  # no plain 95 % anywhere
    notes = report.table.notes
    assert any(note.startswith("Seeds are added until decided, 2 to 4: 3 looks so far") for note in notes)


def test_where_mlflow_goes_away_after_trainings_a_submit_says_that_nothing_is_lost_and_the_next_one_goes_on(
    cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = cluster(SeedRule(until="decided", at_least=2, most=3), BASE, DIM)

    def away(*_: object, **__: object) -> None:
        raise ServerAway("the MLflow server does not answer")

    num_launches = []
    for moment in ("measure_suite", "make_reports"):  # before a seed is added, and before the tables are written
        with monkeypatch.context() as patch:
            patch.setattr(module, moment, away)
            with pytest.raises(ServerAway, match="does not answer; nothing that was trained or scored is lost: the"):
                submit(fake.suite, lambda _: None)
        num_launches.append(len(fake.launches))
    assert submit(fake.suite, lambda _: None).exit_code == 0
    assert [*num_launches, len(fake.launches)] == [1, 2, 2]


def test_what_ray_prints_of_a_dead_worker_is_kept_out_of_the_standard_output(
    cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = cluster(None, BASE)

    def launch(*arguments: Any) -> Any:
        print("(raylet) A worker died")
        return fake.launch(*arguments)

    monkeypatch.setattr(module, "_launch", launch)
    assert submit(fake.suite, lambda _: None).exit_code == 0
    captured = capsys.readouterr()
    assert (captured.out, "A worker died" in captured.err) == ("", True)


def test_a_finished_suite_is_not_measured_to_add_seeds_that_no_row_may_have(
    cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = cluster(SeedRule(until="decided", at_least=2, most=3), BASE, DIM)
    said: list[str] = []
    assert submit(fake.suite, said.append).exit_code == 0
    assert any("Open: dim" in line and "by 3 seeds" in line for line in said)
    monkeypatch.setattr(module, "measure_suite", lambda *_, **__: pytest.fail("measured for nothing"))
    again, before = Suite(fake.suite._listed.experiments, fake.suite.site), len(fake.launches)
    assert submit(again, said.append).exit_code == 0 and len(fake.launches) == before


def test_a_claim_on_slopes_does_not_import_torch_into_a_submit_that_finds_all_rows_decided(
    cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = cluster(SeedRule(until="decided", at_least=2, most=4), BASE, CLEAR)
    assert submit(fake.suite, lambda _: None).exit_code == 0
    assert len(fake.suite.experiments[0].rows[1].seeds) < 4
    part = "{kind: at_least, table: gradients, rows: l1, metric: slope, value: 0.5}"
    (tmp_path / "claims.yaml").write_text(f"claims: [{{sentence: L1 is steep, parts: [{part}]}}]")
    again = Suite(fake.suite._listed.experiments, fake.suite.site)
    monkeypatch.setattr(module, "_claims", lambda suite: load_claims(tmp_path / "claims.yaml", suite.experiments))
    monkeypatch.setitem(sys.modules, "torch", None)  # from here on its import is an error
    before = len(fake.launches)
    assert submit(again, lambda _: None).exit_code == 0 and len(fake.launches) == before


def test_a_budget_ends_the_adding_of_seeds_and_a_later_submit_goes_on(cluster: Callable[..., Any]) -> None:
    fake = cluster(SeedRule(until="decided", at_least=2, most=4), BASE, DIM)
    said: list[str] = []
    # four trainings of one CPU-hour, and a pair of two more; a pair that does not fit is not begun
    first = submit(fake.suite, said.append, bounds=Bounds(hours=7.5, images_per_s=1.0))
    assert first.exit_code == 0 and first.hours == pytest.approx(6.0)
    assert [len(row.seeds) for row in fake.suite.experiments[0].rows] == [3, 3]
    assert "Beyond the budget of 7.5 CPU-hours: seed 3 of dim (2). A later submit adds them." in said
    again = Suite(fake.suite._listed.experiments, fake.suite.site)
    assert submit(again, said.append).exit_code == 0
    assert fake.launches[-1] == ["base, seed 3", "dim, seed 3"]


def test_what_fails_gets_no_more_seeds_and_the_other_rows_go_on(cluster: Callable[..., Any]) -> None:
    rule = SeedRule(until="decided", at_least=2, most=3)
    fake = cluster(rule, BASE, replace(DIM, label="clear", train=CLEAR.train), DIM, failing="dim, seed 1")
    assert submit(fake.suite, lambda _: None).exit_code == 1
    assert [label for launch in fake.launches for label in launch].count("dim, seed 1") == 1
    assert not any("dim" in label for launch in fake.launches[1:] for label in launch)


def test_what_is_cancelled_while_a_submit_waits_is_left_out_and_a_later_submit_takes_it_up(
    cluster: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = cluster(None, BASE, CLEAR)
    tables, site = fake.suite._listed.experiments, fake.suite.site
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)
    said: list[str] = []
    ended: list[Submitted] = []
    waiter = threading.Thread(target=lambda: ended.append(submit(fake.suite, said.append)))
    fake.suite.connect()
    with lock.locked(Suite(tables, site), lambda _: pytest.fail("waited")):
        waiter.start()
        deadline = time.monotonic() + 30.0
        while not any("is being run by process" in line for line in said) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not fake.launches
        cancel_row(Suite(tables, site), "clear", None, said.append)
    waiter.join(30.0)
    assert fake.launches == [["base"]] and ended[0].exit_code == 1
    assert (
        "clear: cancelled while this submit waited for its turn, so left out; a submit started now takes it up." in said
    )
    again = Suite(tables, site)
    assert submit(again, said.append).exit_code == 0 and fake.launches == [["base"], ["clear"]]
    assert not [record.stop for record in read_ledger(again.connection).trainings.values() if record.stop]


def test_those_who_wait_are_told_how_long_once_the_first_training_has_measured_it(cluster: Callable[..., Any]) -> None:
    fake = cluster(None, BASE, CLEAR)
    assert submit(fake.suite, lambda _: None).exit_code == 0
    # one process signs and asks, so the lock's file says it, and no claim
    assert len(fake.works) == 2 and all("by the estimate" in work for work in fake.works)
    assert fake.works[0].startswith("It trains and scores heads (")


def test_those_who_wait_for_scoring_alone_are_given_no_estimate(tmp_path: Path) -> None:
    ((_, trained, _),) = row_keys(BASE)
    held = Ledger(trainings={trained: finished()})
    suite = type("Trained", (Suite,), {"ledger": held})([experiment("heads", [BASE])], Site(home=tmp_path))
    work = module._work(suite, Bounds())
    assert (work.rows, work.until) == ("heads (base)", None)


def test_a_budget_leaves_out_what_does_not_fit_and_names_it_with_its_cost(cluster: Callable[..., Any]) -> None:
    box = Row(label="box", train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))))
    long = replace(CLEAR.train, schedule=replace(CLEAR.train.schedule, epochs=24, lr_drop_epochs=(17,)))
    fake = cluster(None, BASE, replace(CLEAR, train=long), box)
    said: list[str] = []
    ended = submit(fake.suite, said.append, bounds=Bounds(hours=2.5))
    assert fake.launches == [["base"], ["box"]]  # base tells that it took an hour; then two do not fit, and one does
    assert ended.exit_code == 0 and ended.hours == pytest.approx(2.0)
    assert any("What 'base' costs is not known yet: it runs first" in line for line in said)
    assert (
        "The budget of 2.5 CPU-hours reaches no further: 2 are spent, and left out are 1 of 3 trainings: clear (2). "
        "A later submit takes them up."
    ) in said
    with pytest.raises(UserError, match="expected more than 0 hours"):
        submit(fake.suite, said.append, bounds=Bounds(hours=0.0))
