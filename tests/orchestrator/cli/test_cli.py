"""The verbs as a shell sees them: exit codes, messages, formats, and how soon they answer."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.driver import lock
from orchestrator.driver.submit import Submitted
from orchestrator.experiment.load import load_experiments
from orchestrator.homes import remember
from orchestrator.site import Site
from orchestrator.tracking.runs import open_tracking
from orchestrator.tracking.suite import Suite
from tests.conftest import MakeCoco

ROOT = Path(__file__).parents[3]
MINIATURE = ROOT / "experiments" / "miniature"

Rnc = Callable[..., Result]


@pytest.fixture
def rnc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rnc:
    for name in ("RNC_COCO_ROOT", "RNC_WEIGHTS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(result: Result, *said: str) -> bool:
    assert result.exit_code == 2, result.output
    assert "\nerror: " in f"\n{result.stderr}"
    for text in said:
        assert text in result.stderr
    return True


def test_plan_counts_rows_trainings_and_evaluations_and_leaves_no_trace(rnc: Rnc, tmp_path: Path):
    plan = json.loads(rnc("plan", MINIATURE, "--format", "json").stdout)
    assert {name: plan[name] for name in ("rows", "trainings", "evaluations")} == {
        "rows": 45,
        "trainings": 19,  # 13, and 3 of them with two seeds more
        "evaluations": 42,
    }
    assert plan["missing"] == {"trainings": 19, "evaluations": 42}
    assert not (tmp_path / "home").exists()


def test_plan_says_how_long_the_paper_takes_on_so_many_gpus_and_lists_every_row(rnc: Rnc):
    paper = ROOT / "experiments" / "paper"
    said = rnc("plan", paper, "--gpus", "8", "--images-per-s", "10", "--verbose").stdout
    # 12 trainings of 12 epochs and one of 24, 117,266 images each, at 8 x 10 images/s
    hours = (12 * 12 + 24) * 117_266 / 80 / 3600
    assert f"Time: {8 * hours:.1f} GPU-hours" in said
    assert f"Largest first on 8 GPUs the training takes {hours:.1f} hours." in said
    assert said.count("waits for its training") == 45
    costs = said[said.index("Cost of each row") :].split("\n\n")[1].splitlines()
    assert max(map(len, costs)) <= 120 and sum("1            1" in line for line in costs) == 45
    assert rnc("plan", paper, "--gpus", "0").exit_code == 2


@pytest.mark.parametrize(
    ("hours", "expected"), [*((one, "more than 0") for one in ("0", "-2", "nan")), ("inf", "a finite number of")]
)
def test_a_budget_of_nothing_is_refused_before_anything_starts(rnc: Rnc, hours: str, expected: str) -> None:
    refusal = f"--budget is {hours}, expected {expected} hours; leave it out for no bound"
    assert refused(rnc("submit", MINIATURE, "--budget", hours), refusal)


@pytest.mark.parametrize(
    ("form", "sign"), [("text", "───"), ("markdown", "|---"), ("latex", r"\toprule"), ("html", "<table")]
)
@pytest.mark.parametrize("verb", ["plan", "status", "report"])
def test_every_verb_that_prints_a_table_prints_it_in_every_format(rnc: Rnc, verb: str, form: str, sign: str):
    result = rnc(verb, MINIATURE, "--format", form)
    assert result.exit_code == 0, result.output
    assert "RetinaNet-Conf" in result.stdout
    assert sign in result.stdout


@pytest.mark.parametrize("verb", ["status", "report", "gc", "verify"])
def test_where_nothing_is_recorded_it_is_said_which_home_was_looked_in_and_which_was_the_last(
    rnc: Rnc, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "before").mkdir()
    remember("miniature", MINIATURE, tmp_path / "before")
    looked = rnc(verb, MINIATURE / "table1_heads.yaml")
    assert looked.exit_code == 0 and "Nothing" not in looked.stdout, looked.output
    assert f"Nothing of suite miniature is recorded. RNC_HOME {tmp_path / 'home'} is new" in looked.stderr
    assert f"To go on there: RNC_HOME={tmp_path / 'before'}" in looked.stderr


def test_status_says_that_a_submit_runs_which_has_recorded_nothing_yet(rnc: Rnc, tmp_path: Path) -> None:
    suite = Suite(load_experiments([MINIATURE / "table1_heads.yaml"]), Site(home=tmp_path / "home"))
    with lock.locked(suite, lambda _: None, lambda: lock.Work(rows="table1_heads (RetinaNet)")):
        said = rnc("status", MINIATURE / "table1_heads.yaml").stderr
    assert f"Suite miniature is being run by process {os.getpid()} on " in said
    assert "It trains and scores table1_heads (RetinaNet)" in said


@pytest.mark.parametrize("verb", ["status", "report"])
def test_json_is_one_document(rnc: Rnc, verb: str):
    tables = json.loads(rnc(verb, MINIATURE, "--format", "json").stdout)
    assert len(tables) == {"status": 1, "report": 6}[verb]


@pytest.mark.parametrize("verb", ["plan", "submit", "status", "report"])
def test_a_misspelt_setting_is_named_and_nothing_starts(rnc: Rnc, verb: str, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {MINIATURE}/table1_heads.yaml\ndefaults: {{train: {{schedule: {{epoch: 3}}}}}}\n")
    assert refused(rnc(verb, file), "mine.yaml", "train.schedule.epoch", "did you mean", "epochs")
    assert not (tmp_path / "home").exists()


@pytest.fixture
def half_broken(tmp_path: Path) -> Path:
    """A folder of a sound file and of one that has a mistake."""
    folder = tmp_path / "half"
    folder.mkdir()
    data = "train: {data: {dataset: shapes, train_split: train, val_split: val}}"
    (folder / "good.yaml").write_text(f"title: Good\nrows: [{{label: A, {data}, split: val}}]")
    (folder / "bad.yaml").write_text("rows: [{label: B, trian: {}}]")
    return folder


@pytest.mark.parametrize("arguments", [("status",), ("report",), ("report", "--format", "json")])
def test_a_broken_file_is_named_and_the_rest_of_its_folder_shown(rnc: Rnc, half_broken: Path, arguments: Any):
    result = rnc(*arguments, half_broken)
    assert result.exit_code == 1 and "good" in result.stdout.lower()
    assert f"left out: {half_broken}/bad.yaml, row 'B': trian is not a setting; did you mean train?" in result.stderr
    assert rnc(*arguments, half_broken / "good.yaml").exit_code == 0
    assert refused(rnc(*arguments, half_broken / "bad.yaml"), "trian is not a setting")


def test_logs_of_a_row_are_looked_for_in_the_sound_files(rnc: Rnc, half_broken: Path):
    told = refused(rnc("logs", half_broken, "--row", "A"), "row 'A': its training has written nothing in")
    assert told and refused(rnc("logs", half_broken, "--row", "B"), "--row 'B' is no row", "left out: ")


@pytest.mark.parametrize("verb", ["plan", "submit", "gc"])
def test_a_broken_file_stops_what_needs_the_whole_folder_and_the_way_out_is_named(
    rnc: Rnc, half_broken: Path, tmp_path: Path, verb: str
):
    way = f"To go on without them, name the sound files alone: {half_broken}/good.yaml"
    assert refused(rnc(verb, half_broken), "trian is not a setting", way)
    assert not (tmp_path / "home").exists()


def test_a_suite_of_another_name_has_no_results_of_the_files_own(rnc: Rnc, half_broken: Path):
    good = half_broken / "good.yaml"
    assert "Plan of suite half\n" in rnc("plan", good).stdout
    assert "Plan of suite second\n" in rnc("plan", good, "--suite", "second").stdout
    assert "Status of suite 2\n" in rnc("status", "--suite", "2", good, "--set", "seeds=[3]").stdout
    assert refused(rnc("report", good, "--suite", "../up"), "suite is '../up', expected a letter or digit")


def test_another_process_that_reads_the_same_files_is_told_their_suite_and_settings(
    rnc: Rnc, half_broken: Path, monkeypatch: pytest.MonkeyPatch
):
    heard: list[str] = []
    monkeypatch.setattr(
        "orchestrator.driver.detach.submit_detached", lambda suites, options, say: heard.extend(options)
    )
    rnc("submit", half_broken / "good.yaml", "--detach", "--suite", "2", "--set", "seeds=[3]")
    assert heard == ["--format", "text", "--set", "seeds=[3]", "--suite", "2"]


def test_a_file_that_is_not_there_is_named(rnc: Rnc):
    assert refused(rnc("plan", "experiments/nowhere.yaml"), "experiments/nowhere.yaml")


def test_coco_without_a_root_is_refused_before_anything_is_trained(rnc: Rnc):
    assert refused(rnc("run", ROOT / "experiments" / "paper", "--row", "RetinaNet"), "RNC_WEIGHTS is not set")


def test_a_row_that_does_not_exist_is_answered_with_those_that_do(rnc: Rnc):
    assert refused(rnc("run", MINIATURE, "--row", "RetinaNet-Cnf"), "did you mean RetinaNet-Conf?")


def test_tables_of_one_name_are_not_written_over_each_other(rnc: Rnc, tmp_path: Path):
    result = rnc("report", "experiments/paper", "experiments/miniature", "--no-bootstrap", "--output", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "are both called 'table1_heads'" in result.stderr and "a folder of its own" in result.stderr


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "0"])
def test_a_throughput_that_is_no_number_is_refused(rnc: Rnc, number: str):
    result = rnc("plan", "experiments/demo", "--images-per-s", number)
    assert result.exit_code == 2 and "images-per-s" in result.stderr


def test_rows_of_two_suites_are_not_compared(rnc: Rnc):
    refused = rnc("compare", MINIATURE, ROOT / "experiments" / "paper", "--row", "RetinaNet", "--over", "RetinaNet")
    assert refused.exit_code == 2
    assert "these files are of miniature, paper; name those of one" in refused.stderr


def test_ctrl_c_in_one_suite_does_not_start_the_next(rnc: Rnc, monkeypatch: pytest.MonkeyPatch):
    started: list[str] = []

    def interrupted(suite: Suite, *_: object, **__: object) -> Submitted:
        started.append(suite.name)
        return Submitted(exit_code=130, reports=[])

    monkeypatch.setattr("orchestrator.driver.submit.submit", interrupted)
    result = rnc("submit", MINIATURE / "table1_heads.yaml", ROOT / "experiments" / "coco-subset.yaml")
    assert (result.exit_code, started) == (130, ["miniature"])


def test_a_row_that_stands_in_two_files_is_not_guessed(rnc: Rnc):
    both = (MINIATURE / "table1_heads.yaml", ROOT / "experiments" / "coco-subset.yaml")
    assert refused(rnc("run", *both, "--row", "RetinaNet"), "table1_heads.yaml", "coco-subset.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds: [2147483648]", "2147483647"),
        ("suite: '..'", "expected a letter or digit"),
        ("defaults: {train: {schedule: {epochs: 4, lr_drop_epochs: [8]}}}", "beyond the last of 4 epochs"),
    ],
)
def test_what_could_not_run_as_meant_is_refused_by_plan(rnc: Rnc, tmp_path: Path, text: str, said: str):
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {MINIATURE}/table1_heads.yaml\n{text}\n")
    assert refused(rnc("plan", file), "mine.yaml", said)


def test_a_training_that_can_never_fit_is_refused_before_ray_starts(
    rnc: Rnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setattr("orchestrator.cluster.connect.start_ray", lambda *_: pytest.fail("Ray was started"))
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {MINIATURE}/table1_heads.yaml\nsuite: vast\nresources: {{cpus_per_worker: 4096}}\n")
    assert refused(rnc("submit", file), "mine, row 'RetinaNet, seed 0'", "4096 CPU", "cpus_per_worker")


@pytest.mark.parametrize("arguments", [("run", "--row", "RetinaNet"), ("submit",)])
def test_a_home_that_cannot_be_written_is_named(rnc: Rnc, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]):
    monkeypatch.setenv("RNC_HOME", "/proc/nowhere")
    assert refused(rnc(arguments[0], MINIATURE / "table1_heads.yaml", *arguments[1:]), "RNC_HOME", "/proc/nowhere")


def test_a_folder_for_reports_that_cannot_be_made_is_named(rnc: Rnc):
    assert refused(rnc("report", MINIATURE, "--output", "/proc/nowhere"), "--output", "/proc/nowhere")


def test_a_seed_that_the_row_does_not_have_is_refused(rnc: Rnc):
    assert refused(rnc("run", MINIATURE, "--row", "RetinaNet", "--seed", "9"), "--seed 9", "0 to 7")


def test_more_images_than_the_drawn_data_set_has_are_refused(rnc: Rnc, tmp_path: Path):
    file = tmp_path / "more.yaml"
    file.write_text(
        f"extends: {MINIATURE}/table1_heads.yaml\ndefaults: {{train: {{data: {{num_train_images: 9000}}}}}}\n"
    )
    assert refused(rnc("run", file, "--row", "RetinaNet"), "num_train_images is 9000", "2000")


def test_a_disk_that_is_too_full_is_refused_before_anything_is_drawn(rnc: Rnc, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr("orchestrator.experiment.prepare.shutil.disk_usage", lambda _: usage)
    assert refused(rnc("run", MINIATURE, "--row", "RetinaNet"), "RNC_HOME", "0.0 GB free")


def test_a_tracking_server_that_does_not_answer_is_named(rnc: Rnc, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert refused(rnc("submit", MINIATURE), "127.0.0.1:9")


BOX = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}


@pytest.fixture
def on_coco(rnc: Rnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str) -> Callable[..., Result]:
    """Submits a training on a COCO-format data set that must be refused: Ray may not start."""
    monkeypatch.setattr("orchestrator.cluster.connect.start_ray", lambda *_: pytest.fail("Ray was started"))

    def submit(root: Path) -> Result:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
        monkeypatch.setenv("RNC_COCO_ROOT", str(root))
        data = "{dataset: coco, train_split: train, val_split: train, num_train_images: null, num_val_images: null}"
        file = tmp_path / "mine.yaml"
        file.write_text(f"extends: {MINIATURE}/table1_heads.yaml\ndefaults: {{train: {{data: {data}}}}}\n")
        return rnc("submit", file)

    return submit


def test_truncated_annotations_are_refused_before_ray_starts(on_coco: Callable[..., Result], make_coco: MakeCoco):
    root = make_coco([BOX])
    (root / "annotations" / "instances_train.json").write_text('{"images": [')
    assert refused(on_coco(root), "instances_train.json", "line 1")


def test_all_faults_of_the_data_are_told_at_once_with_the_way_out(on_coco: Callable[..., Result], make_coco: MakeCoco):
    flat = BOX | {"id": 2, "bbox": [10, 10, 0, 20]}
    stray = BOX | {"id": 3, "category_id": 99}
    root = make_coco([BOX, flat, stray], sizes=[(60, 80), (60, 80)])
    (root / "train" / "2.jpg").unlink()
    said = ("zero or negative size (1): annotation 2", "unknown categories (1): annotation 3", "image 2", "quarantine")
    assert refused(on_coco(root), *said)


def test_a_split_without_a_folder_is_refused(on_coco: Callable[..., Result], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert refused(on_coco(tmp_path / "empty"), "instances_train.json")


def test_report_shows_a_matrix_and_its_rows_on_request(rnc: Rnc):
    table = str(ROOT / "experiments" / "paper" / "table5_exponents.yaml")
    shown, rows = rnc("report", table).stdout, rnc("report", table, "--rows").stdout
    assert "RetinaNet-Conf, alpha 0.9" not in shown and "RetinaNet-Conf  35.7" in shown
    assert "RetinaNet-Conf, alpha 0.9  28.0" in rows
    programs = [json.loads(rnc("report", table, *more, "--format", "json").stdout) for more in ((), ("--rows",))]
    assert programs[0] == programs[1] and len(programs[0][0]["rows"]) == 20
    assert max(map(len, [*shown.splitlines()[3:60], *rows.splitlines()[3:25]])) <= 120


def test_report_of_classes_says_what_it_needs(rnc: Rnc):
    table = MINIATURE / "table1_heads.yaml"
    assert refused(rnc("report", table, "--classes"), "table1_heads", "submit it first")
    assert refused(rnc("report", table, "--classes", "--no-bootstrap"), "--no-bootstrap")
    assert refused(rnc("report", table, "--row", "RetinaNet"), "--row", "--classes")


def test_report_shows_misalignment_in_every_format(rnc: Rnc):
    table = MINIATURE / "table1_heads.yaml"
    for form in ("text", "markdown", "latex", "html", "json"):
        shown = rnc("report", table, "--misalignment", "--format", form)
        assert shown.exit_code == 0, shown.output
        assert "oracle NMS AP" in shown.stdout and "not run" in shown.stdout


def test_report_judges_the_papers_claims_before_anything_has_run(rnc: Rnc, tmp_path: Path):
    for form in ("text", "markdown", "latex", "html", "json"):
        shown = rnc("report", ROOT / "experiments" / "paper", "--claims", "--format", form, "--output", tmp_path / form)
        assert shown.exit_code == 0, shown.output
        told = " ".join(shown.stdout.split())
        assert "21 supported, 2 contradicted, 2 partly, 3 to be measured" in told and "Measured: 28 not yet run" in told
        assert "Errata of the paper" in told
        assert "Errata of the paper" in (tmp_path / form / "index.html").read_text()


def test_a_claim_on_a_row_that_does_not_exist_is_refused_with_what_was_probably_meant(rnc: Rnc, tmp_path: Path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "claims: [{sentence: CE is best, kind: best, table: table1_heads, rows: RetinaNet-Con, over: RetinaNet}]"
    )
    shown = rnc("report", MINIATURE, "--claims", own)
    assert refused(shown, "own.yaml: claim 1, 'CE is best': 'RetinaNet-Con' is no row", "did you mean RetinaNet-Conf?")


def test_no_line_of_any_help_is_wider_than_80_columns():
    def texts(context: click.Context) -> Iterator[str]:
        yield context.get_help()
        for verb, command in getattr(context.command, "commands", {}).items():
            yield from texts(click.Context(command, context, verb))

    helps = list(texts(click.Context(cli, info_name="rnc", terminal_width=80, **cli.context_settings)))
    assert len(helps) > 20
    assert [line for text in helps for line in text.splitlines() if len(line) > 80] == []


def test_help_and_plan_answer_without_torch_ray_mlflow_or_numpy(tmp_path: Path):
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from orchestrator.cli.main import cli\n"
        f"for arguments in (['--help'], ['plan', {str(ROOT / 'experiments' / 'paper')!r}, '--gpus', '8']):\n"
        "    assert CliRunner().invoke(cli, arguments).exit_code == 0\n"
        "print([name for name in ('torch', 'ray', 'mlflow', 'numpy', 'pandas', 'rich') if name in sys.modules])\n"
    )
    # Data that are there are looked at, which takes NumPy.
    environment = {name: value for name, value in os.environ.items() if name != "RNC_COCO_ROOT"}
    environment |= {"RNC_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_before_anything_runs_is_told_in_a_sentence_and_exits_130(rnc: Rnc, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.driver.submit.submit", interrupted)
    result = rnc("submit", MINIATURE)
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. What is recorded stays; the same command goes on from there.\n"


def test_ui_prints_and_opens_where_the_tables_of_an_experiment_are(
    rnc: Rnc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: {MINIATURE}/table1_heads.yaml\nsuite: browsed\n")
    assert refused(rnc("ui", file), "holds nothing of suite browsed yet")
    open_tracking(mlflow_uri, "browsed")
    shown = rnc("ui", file, "--open")
    assert shown.exit_code == 0, shown.output
    names, links = zip(*(line.split(": ") for line in shown.stdout.splitlines()), strict=True)
    assert names == ("mine", "mine, charts", "browsed, training curves")
    assert all(link.startswith(mlflow_uri) and "workflowType=machine_learning" in link for link in links)
    assert opened == [links[0]]
    assert rnc("ui").stdout == f"{mlflow_uri}/#/experiments?workflowType=machine_learning\n"


def test_settings_of_a_call_change_every_row_of_every_file(rnc: Rnc) -> None:
    table = MINIATURE / "table1_heads.yaml"

    def trainings(*words: str) -> dict[str, str]:
        """Epochs by key."""
        lines = rnc("plan", table, "--quick", *words).stdout.splitlines()
        return dict(re.findall(r"([0-9a-f]{12}) +(\d+)  1 CPU worker", "\n".join(lines)))

    plain, short = trainings(), trainings("--set", "train.schedule.epochs=2", "--set", "train.data.long_edge=256")
    assert set(plain.values()) == {"5"} and set(short.values()) == {"2"}
    assert len(plain) == len(short) and not {*plain} & {*short}
    assert refused(rnc("status", MINIATURE, "--set", "train.schedule.epocs=2"), "did you mean train.schedule.epochs?")


def test_a_checkpoint_takes_no_setting_of_its_training(rnc: Rnc) -> None:
    said = "--set train.schedule.epochs=3: a checkpoint is trained already; what can be set is how it is scored"
    assert refused(rnc("evaluate", "best", "--set", "train.schedule.epochs=3"), said)


def test_a_plan_says_what_would_stop_a_submit(rnc: Rnc, make_coco: MakeCoco, tmp_path: Path) -> None:
    root = make_coco([{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 500, 30], "area": 900, "iscrowd": 0}])
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"data: {{root: {root}}}\ndefaults: {{train: {{data: {{train_split: train, val_split: train}}}}}}\n"
        "rows: [{label: A}]"
    )
    stopped = rnc("plan", file)
    assert stopped.exit_code == 2 and "1 row of 1 table" in stopped.stdout
    assert "a submit would stop here: " in stopped.stderr and "cannot learn" in stopped.stderr
    assert f"RNC_HOME {tmp_path / 'home'} is new" in stopped.stderr
    words = ("--set", "train.model.backbone_norm=group", "--set", "train.model.frozen_stages=0")
    assert "boxes that leave their image" in rnc("plan", file, *words).stderr
    left_out = rnc("plan", file, *words, "--set", "train.data.faults=quarantine")
    assert left_out.exit_code == 0, left_out.output
    assert rnc("plan", file, "--quick").exit_code == 0


@pytest.mark.parametrize(
    ("words", "environment", "exit_code"),
    [
        ((), {}, 2),
        (("--gpus", "8"), {}, 0),  # a plan for a larger machine
        ((), {"RAY_ADDRESS": "http://cluster:8265"}, 0),
        ((), {"RAY_ADDRESS": "cluster:6379"}, 2),  # whose driver reads weights and data here
    ],
)
def test_a_plan_ends_with_2_where_a_submit_from_here_would(
    rnc: Rnc, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], environment: dict[str, str], exit_code: int
) -> None:
    monkeypatch.setattr("orchestrator.cluster.capacity.count_gpus", lambda: 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    planned = rnc("plan", ROOT / "experiments" / "paper" / "table1_heads.yaml", *words)
    assert planned.exit_code == exit_code, planned.output
    stops = [line for line in planned.stderr.splitlines() if line.startswith("a submit would stop here: ")]
    assert any("resources ask for" in stop for stop in stops) == (not environment and not words)
    assert any("RNC_WEIGHTS is not set" in stop for stop in stops) == bool(exit_code)
    assert "RNC_COCO_ROOT is not set" in planned.stderr
