"""The verbs of `rnc` that fetch and use checkpoints: pull, evaluate, predict, misalignment, sweep."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.config import METRICS
from orchestrator.cli.options import (
    CHECKPOINT,
    FORMAT,
    SETTINGS,
    bar,
    read_experiments,
    say,
    selection_options,
    settings_options,
    show,
    site,
)
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.figures.page import render

if TYPE_CHECKING:
    from orchestrator.checkpoint.inputs import Selection

RANGE = "START:STOP:STEP|LIST"


@click.command()
@click.argument("row", default="best")
@click.option("--table", help="The table that ROW stands in, or the beginning of its name.")
@click.option("--suite", help="The suite of experiments, where several have such a table.")
@click.option("--run", "run_id", help="A training or an evaluation, by its id in MLflow, instead of ROW.")
@click.option("--metric", type=click.Choice(METRICS), default="AP", help="What is best; also among a row's seeds.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to make; RNC_HOME/pulled/... if not given.")
def pull(row: str, table: str | None, suite: str | None, run_id: str | None, metric: str, output: Path | None) -> None:
    """Fetch a checkpoint from MLflow: that of ROW, or the best one.

    The folder holds weights, config, inference settings, the detections that were recorded, and a card that says where
    they come from; `model.load`, `rnc evaluate` and `rnc predict` take it. The weights are checked against the recorded
    sha256.

    \b
      rnc pull best --table table1
      rnc pull "RetinaNet-Conf" --table table1 --suite paper --metric AP75
      rnc pull --suite miniature            what is registered as its best
    """
    from orchestrator.checkpoint.find import Query
    from orchestrator.checkpoint.pull import pull as pull_checkpoint

    query = Query(row=row, table=table, suite=suite, run_id=run_id, metric=metric)
    with bar("weights", "bytes") as progress:
        folder = pull_checkpoint(query, site(), output, say, progress)
    click.echo(folder)


@click.command()
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--detections", type=click.Path(dir_okay=False, path_type=Path), help="A file of detections, instead of DIR."
)
@settings_options
@selection_options
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the detections as Parquet, for --detections."
)
@click.option("--coco-json", type=click.Path(dir_okay=False, path_type=Path), help="Write the detections as COCO JSON.")
@FORMAT
def evaluate(
    folder: Path | None,
    detections: Path | None,
    selection: "Selection",
    save: Path | None,
    coco_json: Path | None,
    form: str,
) -> None:
    """Score the checkpoint in DIR on a COCO-format data set, and compare the numbers with MLflow's.

    Images lie in <data>/<split>/, annotations in <data>/annotations/instances_<split>.json. Without --data it is
    RNC_COCO_ROOT, or the shapes that the project draws itself.

    With --detections, no checkpoint and no GPU are needed: every number is computed again from the stored detections,
    and compared with what the file records. `rnc pull` fetches such a file, and --save writes one. A results file of
    pycocotools does as well, whatever detector made it: [{image_id, category_id, bbox, score}, ...], as JSON.

    \b
      rnc evaluate DIR --data /data/coco --split val2017
      rnc evaluate DIR --exponent 0.2 --set inference.nms_iou=0.6 --save found.parquet
      rnc evaluate --detections DIR/detections.parquet --data /data/coco --coco-json found.json
      rnc evaluate --detections results.json --data /data/mine --split val
    """
    from orchestrator.checkpoint.evaluate import DetectionFiles, recompute
    from orchestrator.checkpoint.evaluate import evaluate as evaluate_checkpoint

    files = DetectionFiles(parquet=save, coco_json=coco_json)
    if folder is not None and detections is None:
        with bar("images", "images") as progress:
            table = evaluate_checkpoint(folder, selection, files, site(), say, progress)
    elif detections is not None and folder is None:
        table = recompute(detections, selection, files, site(), say)
    else:
        raise UserError("expected either the folder DIR of a checkpoint or --detections FILE")
    click.echo(render(table, form))


@click.command()
@CHECKPOINT
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to write to.")
@click.option("--score", type=click.FloatRange(0.0, 1.0), default=0.3, show_default=True, help="The least score shown.")
@settings_options
def predict(folder: Path, images: tuple[str, ...], out: Path, score: float, settings: tuple[str, ...]) -> None:
    """Detect with the checkpoint in DIR on pictures, and write them with their boxes drawn in.

    An IMAGE is a file, a folder or a pattern such as 'photos/*.jpg'. The detections are written to detections.json in
    COCO's format, the ids of the images being their places here. What does not decode is named and skipped, and the
    exit code is then 1.
    """
    from orchestrator.checkpoint.inputs import read_checkpoint
    from orchestrator.checkpoint.predict import predict as predict_on

    with bar("images", "images") as progress:
        broken = predict_on(read_checkpoint(folder, settings), images, out, score, say, progress)
    click.get_current_context().exit(1 if broken else 0)


@click.command()
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    metavar="DIR...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--images", type=click.IntRange(min=1), default=10, show_default=True, help="Images of the table and the pictures."
)
@click.option("--image-ids", metavar="ID,...", help="These images instead of the first ones.")
@click.option("--only", is_flag=True, help="Score these images alone; statistics and figures are of them, too.")
@settings_options
@selection_options
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="The folder for tables and figures.")
@FORMAT
def misalignment(
    folders: tuple[Path, ...],
    images: int,
    image_ids: str | None,
    only: bool,
    selection: "Selection",
    output: Path | None,
    form: str,
) -> None:
    """Show how well the scores of the checkpoints in DIR... say how well boxes are placed.

    For each checkpoint the paper's first Table 1: of the first images, boxes by class score and by IoU before and after
    NMS; beside it the paper's own counts of ten images, line by line, and the shares that NMS changes, image by image.
    Then all checkpoints side by side, over all images of the split: rank correlation and calibration of score and
    IoU, what an oracle that knows the IoUs would reach, and how many better boxes NMS dropped. Figures 1, 2, 4 and 5
    and the tables are written to RNC_HOME/reports/misalignment/, or to --output; so is a picture of each of the first
    images, boxes/ID.png, with its objects, what NMS kept and what it dropped although that is better placed. The page
    index.html holds all of it, and a lab: pick head, exponent and image there, and see the boxes change.

    Each checkpoint is used with its own inference settings, as pulled, or else with the paper's; --exponent and --set
    change those of all.

    \b
      rnc misalignment DIR --images 10
      rnc misalignment RETINANET CONF --image-ids 42,57
      rnc misalignment RETINANET IOU_AWARE CONF --data /data/coco --split val2017 --output looked
    """
    from orchestrator.checkpoint.misalignment import Closeup, analyse
    from orchestrator.figures.pictures import parse_image_ids

    closeup = Closeup(
        num_images=images, image_ids=parse_image_ids(image_ids) if image_ids is not None else (), only=only
    )
    with bar("images", "images") as progress:
        found = analyse(folders, closeup, selection, output, site(), say, progress)
    if form == "html":
        click.echo(found.page)
    else:
        show(list(found.tables.values()), form)
    say(f"tables, figures and pictures of boxes: {found.folder}")


@click.command()
@CHECKPOINT
@click.option(
    "--exponents", "confidence_exponent", metavar=RANGE, help="Confidence exponents, 0 to 1: 0:1:0.05 or 0,0.4,0.5."
)
@click.option("--nms-iou", metavar=RANGE, help="Overlaps above which NMS drops a box: 0.4:0.7:0.05.")
@click.option("--score-threshold", metavar=RANGE, help="Scores at or below which boxes are dropped: 0.01,0.05.")
@click.option(
    "--min-confidence", metavar=RANGE, help="Object filters: confidences at or below which boxes are dropped."
)
@SETTINGS
@selection_options
@click.option(
    "--beside",
    multiple=True,
    metavar="EXPERIMENT",
    callback=read_experiments,
    help="Show the paper's numbers that its rows hold for these settings, too; repeat it.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for table, page and figures; RNC_HOME/reports/sweep/... if not given.",
)
@FORMAT
def sweep(
    folder: Path,
    selection: "Selection",
    beside: list[Experiment],
    output: Path | None,
    form: str,
    **ranges: str | None,
) -> None:
    """Score the checkpoint in DIR under a range of inference settings, in one pass over the images.

    One setting of several values gives a curve for each metric, two give a grid. The table is printed, and written in
    every format with a page and a picture of the curves.

    \b
      rnc sweep DIR --exponents 0:1:0.05
      rnc sweep DIR --exponents 0:1:0.1 --beside experiments/paper/table5_exponents.yaml
      rnc sweep DIR --exponents 0:0.8:0.2 --nms-iou 0.4:0.7:0.05 --set inference.max_detections=300
    """
    from orchestrator.checkpoint.sweep import Grid, parse_axes
    from orchestrator.checkpoint.sweep import sweep as sweep_over
    from orchestrator.checkpoint.sweep_report import sweep_page, sweep_table, write_sweep

    grid, here = Grid(axes=parse_axes(ranges), beside=tuple(beside)), site()
    with bar("images", "images") as progress:
        found = sweep_over(folder, grid, selection, here, say, progress)
    written = output or here.home / "reports" / "sweep" / found.name
    write_sweep(written, found)
    click.echo(sweep_page(found) if form == "html" else render(sweep_table(found), form))
    say(f"written to {written}")


VERBS = (pull, evaluate, predict, misalignment, sweep)
