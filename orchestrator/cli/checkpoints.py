"""The verbs of `rnc` that fetch and use checkpoints."""

from pathlib import Path

import click

from model.config import METRICS
from orchestrator.cli.options import (
    ALL_IMAGES,
    CHECKPOINT,
    DATA,
    FORMAT,
    SETTINGS,
    SPLIT,
    read_experiments,
    say,
    show,
    site,
)
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.figures.page import render

EXPONENT = click.option("--exponent", type=float, help="Another confidence exponent, 0 to 1.")


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
    from orchestrator.checkpoint.find import Choice
    from orchestrator.checkpoint.pull import pull as pull_checkpoint
    from orchestrator.cli.options import bar

    choice = Choice(row=row, table=table, suite=suite, run_id=run_id, metric=metric)
    with bar("weights", "bytes") as progress:
        folder = pull_checkpoint(choice, site(), output, say, progress)
    click.echo(folder)


@click.command()
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--detections", type=click.Path(dir_okay=False, path_type=Path), help="A file of detections, instead of DIR."
)
@DATA
@SPLIT
@EXPONENT
@SETTINGS
@ALL_IMAGES
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the detections as Parquet, for --detections."
)
@click.option("--coco-json", type=click.Path(dir_okay=False, path_type=Path), help="Write the detections as COCO JSON.")
@FORMAT
def evaluate(
    folder: Path | None,
    detections: Path | None,
    data: Path | None,
    split: str | None,
    exponent: float | None,
    settings: tuple[str, ...],
    all_images: bool,
    save: Path | None,
    coco_json: Path | None,
    form: str,
) -> None:
    """Score the checkpoint in DIR on a COCO-format data set, and compare the numbers with MLflow's.

    Images lie in <data>/<split>/, annotations in <data>/annotations/instances_<split>.json. Without --data it is
    RNC_COCO_ROOT, or the shapes that the project draws itself.

    With --detections, no checkpoint and no GPU are needed: every number is computed again from the stored detections,
    and compared with what the file records. `rnc pull` fetches such a file, and --save writes one.

    \b
      rnc evaluate DIR --data /data/coco --split val2017
      rnc evaluate DIR --exponent 0.2 --set inference.nms_iou=0.6 --save found.parquet
      rnc evaluate --detections DIR/detections.parquet --data /data/coco --coco-json found.json
    """
    if (folder is None) == (detections is None):
        raise UserError("expected either the folder DIR of a checkpoint or --detections FILE")
    changes = _settings(exponent, settings)
    if folder is None and (changes or all_images or save):
        raise UserError(
            "--exponent, --set, --all and --save need a checkpoint DIR; the detections of a file are what they are"
        )
    if detections is not None:
        from orchestrator.checkpoint.evaluate import recompute

        table = recompute(detections, data, split, coco_json, site(), say)
    else:
        from orchestrator.checkpoint.evaluate import Request
        from orchestrator.checkpoint.evaluate import evaluate as evaluate_checkpoint
        from orchestrator.cli.options import bar

        assert folder is not None
        request = Request(
            folder=folder,
            data=data,
            split=split,
            settings=changes,
            all_images=all_images,
            save=save,
            coco_json=coco_json,
        )
        with bar("images", "images") as progress:
            table = evaluate_checkpoint(request, site(), say, progress)
    click.echo(render(table, form))


@click.command()
@CHECKPOINT
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to write to.")
@click.option("--score", type=click.FloatRange(0.0, 1.0), default=0.3, show_default=True, help="The least score shown.")
@EXPONENT
@SETTINGS
@click.pass_context
def predict(
    ctx: click.Context,
    folder: Path,
    images: tuple[str, ...],
    out: Path,
    score: float,
    exponent: float | None,
    settings: tuple[str, ...],
) -> None:
    """Detect with the checkpoint in DIR on pictures, and write them with their boxes drawn in.

    An IMAGE is a file, a folder or a pattern such as 'photos/*.jpg'. The detections are written to detections.json in
    COCO's format, the ids of the images being their places here. What does not decode is named and skipped, and the
    exit code is then 1.
    """
    from orchestrator.checkpoint.predict import predict as predict_on
    from orchestrator.cli.options import bar

    with bar("images", "images") as progress:
        broken = predict_on(folder, images, out, score, _settings(exponent, settings), say, progress)
    ctx.exit(1 if broken else 0)


def _settings(exponent: float | None, settings: tuple[str, ...]) -> tuple[str, ...]:
    return settings if exponent is None else (f"confidence_exponent={exponent}", *settings)


RANGE = "START:STOP:STEP|LIST"


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
@DATA
@SPLIT
@click.option("--exponent", type=float, help="Another confidence exponent, 0 to 1.")
@SETTINGS
@ALL_IMAGES
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="The folder for tables and figures.")
@FORMAT
def misalignment(
    folders: tuple[Path, ...],
    images: int,
    image_ids: str | None,
    only: bool,
    data: Path | None,
    split: str | None,
    exponent: float | None,
    settings: tuple[str, ...],
    all_images: bool,
    output: Path | None,
    form: str,
) -> None:
    """Show how well the scores of the checkpoints in DIR... say how well boxes are placed.

    For each checkpoint the paper's first Table 1: of the first images, boxes by class score and by IoU before and after
    NMS. Then all checkpoints side by side, over all images of the split: rank correlation and calibration of score and
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
    from orchestrator.checkpoint.misalignment import Request, analyse
    from orchestrator.cli.options import bar
    from orchestrator.figures.pictures import numbers

    request = Request(
        folders=folders,
        num_images=images,
        image_ids=numbers(image_ids) if image_ids is not None else (),
        only=only,
        data=data,
        split=split,
        settings=settings if exponent is None else (f"confidence_exponent={exponent}", *settings),
        all_images=all_images,
        output=output,
    )
    with bar("images", "images") as progress:
        found = analyse(request, site(), say, progress)
    if form == "html":
        click.echo(found.page)
    else:
        show(found.tables, form)
    say(f"tables, figures and pictures of boxes: {found.folder}")


@click.command()
@CHECKPOINT
@click.option("--exponents", metavar=RANGE, help="Confidence exponents, 0 to 1: 0:1:0.05 or 0,0.4,0.5.")
@click.option("--nms-iou", metavar=RANGE, help="Overlaps above which NMS drops a box: 0.4:0.7:0.05.")
@click.option("--score-threshold", metavar=RANGE, help="Scores at or below which boxes are dropped: 0.01,0.05.")
@click.option(
    "--min-confidence", metavar=RANGE, help="Object filters: confidences at or below which boxes are dropped."
)
@SETTINGS
@DATA
@SPLIT
@ALL_IMAGES
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
    exponents: str | None,
    nms_iou: str | None,
    score_threshold: str | None,
    min_confidence: str | None,
    settings: tuple[str, ...],
    data: Path | None,
    split: str | None,
    all_images: bool,
    beside: list[Experiment],
    output: Path | None,
    form: str,
) -> None:
    """Score the checkpoint in DIR under a range of inference settings, in one pass over the images.

    One setting of several values gives a curve for each metric, two give a grid. The table is printed, and written in
    every format with a page and a picture of the curves.

    \b
      rnc sweep DIR --exponents 0:1:0.05
      rnc sweep DIR --exponents 0:1:0.1 --beside experiments/paper/table5_exponents.yaml
      rnc sweep DIR --exponents 0:0.8:0.2 --nms-iou 0.4:0.7:0.05 --set inference.max_detections=300
    """
    from orchestrator.checkpoint.sweep import OPTIONS, Request, parse_axis
    from orchestrator.checkpoint.sweep import sweep as sweep_over
    from orchestrator.checkpoint.sweep_report import sweep_page, sweep_table, write_sweep
    from orchestrator.cli.options import bar

    texts = (exponents, nms_iou, score_threshold, min_confidence)
    request = Request(
        folder=folder,
        axes=tuple(
            parse_axis(setting, option, text)
            for (setting, option), text in zip(OPTIONS.items(), texts, strict=True)
            if text is not None
        ),
        settings=settings,
        data=data,
        split=split,
        all_images=all_images,
        beside=tuple(beside),
    )
    here = site()
    with bar("images", "images") as progress:
        found = sweep_over(request, here, say, progress)
    written = output or here.home / "reports" / "sweep" / found.name
    write_sweep(written, found)
    click.echo(sweep_page(found) if form == "html" else render(sweep_table(found), form))
    say(f"written to {written}")


VERBS = (pull, evaluate, predict, misalignment, sweep)
