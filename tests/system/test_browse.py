"""What a user sees: a real Chromium on a real MLflow server that holds a made-up suite."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from model.config import METRICS, ConfidenceConfig, InferenceConfig, ModelConfig, TrainConfig
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
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
ROWS_SHOWN = "[...document.querySelectorAll('.ag-center-cols-container .ag-row')]"
CELLS = "[...row.querySelectorAll('.ag-cell')].sort((a, b) => a.offsetLeft - b.offsetLeft).map(cell => cell.innerText)"
TEXTS = f"{ROWS_SHOWN}.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index')).map(row => {CELLS})"
CHARTS = "[...document.querySelectorAll('.js-plotly-plot')]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    """Two trainings with curves, and twenty evaluations that were recorded in no order."""
    site = Site(home=tmp_path_factory.mktemp("home"))
    suite = open_tracking(server.tracking_server(site), TABLE.suite)
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    plan = make_plan([TABLE], Ledger())
    trainings = {}
    for key, train_run in plan.trainings.items():
        trainings[key] = tracking.begin_training(suite, train_run)
        send = runs.metrics_target(suite.uri, trainings[key]).send
        for epoch in range(1, 4):
            points = {"train/loss": math.exp(-epoch), "perf/images_per_s": 20.0, "val/AP": 12.0 * epoch}
            send([Metric(name=n, value=v, step=100 * epoch, timestamp=runs.now()) for n, v in points.items()])
        tracking.record_checkpoint(suite, trainings[key], folder)
        tracking.end_training(suite, trainings[key], "FINISHED")
        store_picture(suite.uri, trainings[key], DETECTIONS, 0, lambda: Image.new("RGB", (640, 480), "orange"))
    for place, evaluation in sorted(enumerate(plan.evaluations.values()), key=lambda _: random.random()):
        numbers = {metric: 30 + place + offset / 7 for offset, metric in enumerate(METRICS)}
        run_id = trainings[evaluation.train_key]
        tracking.record_evaluation(suite, evaluation, numbers, detections=None, train_run_id=run_id)
    browse.show_suite(Suite([TABLE], site))
    yield suite
    server.stop_server(site)


def test_the_table_shows_its_rows_in_the_papers_order_with_two_digits_and_the_papers_numbers(
    browser: Browser, suite: Tracking, tmp_path: Path
):
    link = browse.links(suite, [TABLE])["table5"]
    ordered = f"{ROWS_SHOWN}.length >= 20 && {TEXTS}[0][0].startsWith('00 ')"
    texts = browser.look(link, ordered, then=TEXTS, picture=tmp_path / "table.png")
    assert [text[0] for text in texts] == [f"{place:02d} {row.label}" for place, row in enumerate(ROWS)]
    # AP, the paper's and the difference of the fifth row: 30 + 4, 36 - 0 / 2; then AP50 = 34 + 1/7
    assert texts[4][1:5] == ["34", "36", "-2", "34.14"]


def test_its_charts_hold_every_row(browser: Browser, suite: Tracking, tmp_path: Path):
    link = browse.links(suite, [TABLE])["table5, charts"]
    bars = "[...document.querySelectorAll('.js-plotly-plot .bars .point')].length"
    then = f"[{bars}, document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length, {CHARTS}.length]"
    found = browser.look(link, f"{bars} >= 20 && {CHARTS}.length >= 3", then=then, picture=tmp_path / "charts.png")
    assert found[0] % 20 == 0
    assert found[1] == 20  # AP by exponent


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
