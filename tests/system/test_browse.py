"""What a user sees: a real Chromium on a real MLflow server that holds a made-up suite."""

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from model.config import METRICS, ConfidenceConfig, InferenceConfig, ModelConfig, ScheduleConfig, TrainConfig
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.experiment.search import Asha, Search
from orchestrator.report import pages as browse
from orchestrator.report import views
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking import runs, server
from orchestrator.tracking.recorder import Metric
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.tracking.suite import Suite
from orchestrator.worker.showcase import DETECTIONS, store_picture
from tests.browser import CHROMIUM, Browser, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

TRAINS = {
    "IoU-aware": TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))),
    "RetinaNet-Conf": TrainConfig(),
}
ROWS = tuple(
    Row(
        label=f"{name}, exponent {tenth / 10}",
        train=train,
        inference=InferenceConfig(confidence_exponent=tenth / 10),
        paper={"AP": 36.0 - abs(tenth - 4) / 2},
    )
    for name, train in TRAINS.items()
    for tenth in range(10)
)
TABLE = Experiment(
    name="table5", suite="made-up", title="Table 5", question="Which exponent?", rows=ROWS, path=Path("table5.yaml")
)
CLASS_ALONE = InferenceConfig(confidence_exponent=0.0)
HEADS = Experiment(
    name="table1",
    suite="shared",
    title="Table 1",
    rows=(
        Row(label="RetinaNet", train=TrainConfig(model=ModelConfig(confidence=None)), inference=CLASS_ALONE),
        Row(label="RetinaNet-Conf", inference=CLASS_ALONE, seeds=(0, 1, 2)),
    ),
    path=Path("table1.yaml"),
)
SCORES = Experiment(
    name="table4",
    suite="shared",
    title="Table 4",
    rows=(Row(label="cls*obj", inference=InferenceConfig(fusion="product")), Row(label="cls", inference=CLASS_ALONE)),
    path=Path("table4.yaml"),
)
DRAWN = {
    f"learning_rate {rate:g}": TrainConfig(schedule=ScheduleConfig(learning_rate=rate)) for rate in (0.02, 0.03, 0.04)
}
RATES = Experiment(
    name="rates",
    suite="shared",
    title="Learning rates",
    rows=tuple(Row(label=label, train=train) for label, train in DRAWN.items()),
    search=Search(
        labels=tuple(DRAWN),
        space={"train.schedule.learning_rate": {"choice": [0.02, 0.03, 0.04]}},
        num_samples=3,
        metric="AP",
        asha=Asha(),
        seed=0,
    ),
    path=Path("rates.yaml"),
)
SEEDED = replace(
    RATES,
    name="seeded",
    suite="seeded",
    rows=tuple(replace(row, seeds=(0, 1)) for row in RATES.rows),
    path=Path("seeded.yaml"),
)
ROWS_SHOWN = "[...document.querySelectorAll('.ag-center-cols-container .ag-row')]"
CELLS = "[...row.querySelectorAll('.ag-cell')].sort((a, b) => a.offsetLeft - b.offsetLeft).map(cell => cell.innerText)"
TEXTS = f"{ROWS_SHOWN}.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index')).map(row => {CELLS})"
PINNED = "[...document.querySelectorAll('.ag-pinned-left-cols-container .ag-row')]"
NAMES = f"{PINNED}.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index')).map(row => row.innerText)"
CHARTS = "[...document.querySelectorAll('.js-plotly-plot')]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(home=tmp_path_factory.mktemp("home"))
    yield site
    server.stop_server(site)


@pytest.fixture(scope="module")
def suite(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """Two trainings with curves, and twenty evaluations that were recorded in no order."""
    suite = open_tracking(server.tracking_server(site), TABLE.suite)
    plan = make_plan([TABLE], Ledger())
    trainings = trained(suite, plan, tmp_path_factory.mktemp("checkpoint"))
    for run_id in trainings.values():
        send = runs.metrics_target(suite.uri, run_id).send
        for epoch in range(1, 4):
            points = {"train/loss": math.exp(-epoch), "perf/images_per_s": 20.0, "val/AP": 12.0 * epoch}
            send([Metric(name=n, value=v, step=100 * epoch, timestamp=runs.now()) for n, v in points.items()])
        store_picture(suite.uri, run_id, DETECTIONS, 0, lambda: Image.new("RGB", (640, 480), "orange"))
    for place, evaluation in sorted(enumerate(plan.evaluations.values()), key=lambda _: random.random()):
        numbers = {metric: 30 + place + offset / 7 for offset, metric in enumerate(METRICS)}
        run_id = trainings[evaluation.train_key]
        tracking.record_evaluation(suite, evaluation, numbers, detections=None, train_run_id=run_id)
    browse.show_suite(Suite([TABLE], site))
    return suite


@pytest.fixture(scope="module")
def shared(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """A row of three seeds in one table, the first of which has another label in a second table, and a search."""
    folder = tmp_path_factory.mktemp("shared")
    suite = open_tracking(server.tracking_server(site), HEADS.suite)
    plan = make_plan([HEADS, SCORES, RATES], Ledger())
    searched = {key for key in plan.trainings if plan.search_of(key) is not None}
    stopped = list(plan.trainings)[-1]
    trainings = trained(suite, plan, folder, {stopped})
    for place, key in enumerate(plan.trainings):
        runs.write(suite.uri, trainings[key], metrics={"val/AP": 10.0 * place} if key in searched else {})
    for place, evaluation in enumerate(plan.evaluations.values()):
        if evaluation.train_key != stopped:
            run_id = trainings[evaluation.train_key]
            numbers = dict.fromkeys(METRICS, 30.0 + 2 * place)
            tracking.record_evaluation(suite, evaluation, numbers, detections=None, train_run_id=run_id)
    browse.show_suite(Suite([HEADS, SCORES, RATES], site))
    return suite


def trained(suite: Tracking, plan: Plan, folder: Path, stopped: Collection[str] = ()) -> dict[str, str]:
    """Record the trainings of a plan, and return their runs by key."""
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").touch()
    trainings = {}
    for key, train_run in plan.trainings.items():
        trainings[key] = run_id = tracking.begin_training(suite, train_run)
        if key in stopped:
            tracking.stop_training(suite, run_id, "stopped early by ASHA", folder / "metrics.jsonl")
        else:
            tracking.record_checkpoint(suite, run_id, folder)
            tracking.end_training(suite, run_id, "FINISHED")
    return trainings


def test_the_table_shows_its_rows_in_the_papers_order_with_two_digits_and_the_papers_numbers(
    browser: Browser, suite: Tracking, tmp_path: Path
):
    link = browse.links(suite, [TABLE])["table5"]
    ordered = f"{ROWS_SHOWN}.length >= 20 && {TEXTS}[0][0].startsWith('00 ')"
    texts = browser.look(link, ordered, then=TEXTS, picture=tmp_path / "table.png")
    assert [text[0] for text in texts] == [f"{place:02d} {row.label}" for place, row in enumerate(ROWS)]
    # AP, the paper's and the difference of the fifth row: 30 + 4, 36 - 0 / 2; then AP50 = 34 + 1/7
    assert texts[4][1:5] == ["34", "36", "-2", "34.14"]


def test_its_charts_hold_every_row_by_its_label(browser: Browser, suite: Tracking, tmp_path: Path):
    link = browse.links(suite, [TABLE])["table5, charts"]
    points = "document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length"
    then = f"[{points}, document.body.innerText.split('\\n')]"
    found = browser.look(link, f"{points} >= 40", then=then, picture=tmp_path / "curves.png")
    assert found[0] == 2 * 20  # AP by exponent, and the paper's
    assert {f"{place:02d} {row.label}" for place, row in enumerate(ROWS)} <= set(found[1])  # the legend
    bars = "[...document.querySelectorAll('.js-plotly-plot .bars .point')].length"
    titles = "[...document.querySelectorAll('*')].filter(e => e.textContent.trim() == 'APm')"
    scroll = f"{titles}.at(-1)?.scrollIntoView()"
    until = f"{scroll}, {bars} >= 40 && {CHARTS}.length >= 2"  # charts out of sight are not drawn
    assert browser.look(link, until, then=bars, picture=tmp_path / "bars.png") % 20 == 0


def test_a_table_of_several_seeds_has_a_line_for_each_row_with_their_mean(
    browser: Browser, shared: Tracking, tmp_path: Path
):
    link = browse.links(shared, [HEADS])["table1"]
    found = browser.look(link, f"{PINNED}.length == 2", then=f"[{NAMES}, {TEXTS}]", picture=tmp_path / "seeds.png")
    assert "Group: 00 RetinaNet\n1" in found[0][0]
    assert "Group: 01 RetinaNet-Conf\n3" in found[0][1]
    # 30 of RetinaNet; then 32, 34 and 36
    assert [text[0].split()[0] for text in found[1]] == ["30", "34"]


def test_an_evaluation_is_called_by_the_row_of_the_table_one_looks_at(
    browser: Browser, shared: Tracking, tmp_path: Path
):
    links = browse.links(shared, [SCORES])
    found = browser.look(links["table4"], f"{ROWS_SHOWN}.length == 2", then=f"[{NAMES}, {TEXTS}]")
    # Placed, though the other table calls it RetinaNet-Conf; the name of the run is right in both.
    assert [text[0] for text in found[1]] == ["00 cls*obj", "01 cls"]
    assert "RetinaNet-Conf, resnet50, alpha 0, seed 0" in found[0][1]
    bars = f"{CHARTS}.flatMap(chart => chart.data.filter(trace => trace.type == 'bar').map(trace => trace.y))"
    charts = browser.look(
        links["table4, charts"], f"{bars}.length > 0", then=f"[{NAMES}, {bars}]", picture=tmp_path / "charts.png"
    )
    assert "Group: 00 cls*obj" in charts[0][0] and "Group: 01 cls" in charts[0][1]
    assert charts[1][0] == ["tag.row.table4.01 cls", "tag.row.table4.00 cls*obj"]  # from below


def test_a_search_shows_every_trial_stopped_ones_too(browser: Browser, shared: Tracking, tmp_path: Path):
    link = browse.links(shared, [RATES])["rates, all trials"]
    texts = browser.look(link, f"{ROWS_SHOWN}.length == 3", then=TEXTS, picture=tmp_path / "trials.png")
    labels = list(DRAWN)
    assert [text[0] for text in texts] == [f"02 {labels[2]}", f"01 {labels[1]}", f"00 {labels[0]}"]
    assert [text[1] for text in texts] == ["60", "50", "40"]
    assert "stopped early by ASHA" in texts[0]
    lines = "document.querySelectorAll('.parcoords svg').length"
    charts = link.replace("compareRunsMode=TABLE", "compareRunsMode=CHART")
    assert browser.look(charts, f"{lines} > 0 && {CHARTS}.length > 0", picture=tmp_path / "parallel.png")


def test_a_trial_of_several_seeds_is_one_line_with_their_mean(browser: Browser, site: Site, tmp_path: Path):
    suite = open_tracking(server.tracking_server(site), SEEDED.suite)
    plan = make_plan([SEEDED], Ledger())
    for place, run_id in enumerate(trained(suite, plan, tmp_path).values()):
        runs.write(suite.uri, run_id, metrics={"val/AP": 10.0 + place})
    browse.show_suite(Suite([SEEDED], site))
    link = browse.links(suite, [SEEDED])["seeded, all trials"]
    found = browser.look(link, f"{PINNED}.length == 3", then=f"[{NAMES}, {TEXTS}]", picture=tmp_path / "trials.png")
    labels = list(DRAWN)
    assert all(f"Group: 0{2 - line} {labels[2 - line]}\n2" in found[0][line] for line in range(3)), found
    assert [text[0].split()[0] for text in found[1]] == ["14.5", "12.5", "10.5"]  # of 14 and 15, 12 and 13, 10 and 11


def test_the_page_opens_on_trainings_and_without_an_assistant_beside_them(
    browser: Browser, suite: Tracking, tmp_path: Path
):
    shown = "document.body.innerText.includes('retinanet-conf/made-up')"
    text = "[location.hash, document.body.innerText]"
    place, said = browser.look(suite.uri, shown, then=text, picture=tmp_path / "front.png")
    assert place.startswith("#/experiments") and "Model registry" in said and "Prompts" not in said
    link = browse.links(suite, [TABLE])["table5"]
    wide = "document.querySelector('.ag-root').getBoundingClientRect().width"
    width, said = browser.look(link, f"{ROWS_SHOWN}.length >= 20", then=f"[{wide}, document.body.innerText]")
    assert "Ask questions about" not in said and width > 0.8 * 1600  # of the window; beside the assistant it is 0.58


def test_the_curves_and_the_example_detections_of_every_training_are_shown(
    browser: Browser, suite: Tracking, tmp_path: Path
):
    link = browse.links(suite, [TABLE])["made-up, training curves"]
    lines = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length"
    assert browser.look(link, f"{lines} >= 4", then=lines, picture=tmp_path / "curves.png") % 2 == 0
    pictures = "[...document.images].filter(image => image.src.includes('get-artifact'))"
    scroll = "[...document.querySelectorAll('span')].find(e => e.innerText == 'val/detections')?.scrollIntoView()"
    widths = browser.look(
        link,
        f"{scroll}, {pictures}.length >= 2 && {pictures}.every(image => image.naturalWidth > 0)",
        then=f"{pictures}.map(image => image.naturalWidth)",
        picture=tmp_path / "detections.png",
    )
    assert widths == [640, 640]


def test_the_page_of_a_training_says_which_rows_rest_on_it_and_lists_its_evaluations(
    browser: Browser, suite: Tracking, tmp_path: Path
):
    run_id = next(iter(tracking.read_ledger(suite).trainings.values())).run_id
    link = "[...document.querySelectorAll('a')].find(link => link.innerText == 'Its evaluations')"
    page = views.run_link(suite.uri, str(suite.experiment_id), run_id)
    found = browser.look(page, f"{link} != null", then=f"[{link}.href, document.body.innerText]")
    assert "table5: 00 IoU-aware, exponent 0.0; 01" in found[1] or "table5: 10 RetinaNet-Conf" in found[1]
    count = "document.body.innerText.includes('10 matching runs')"
    assert browser.look(found[0], count, picture=tmp_path / "evaluations.png")
