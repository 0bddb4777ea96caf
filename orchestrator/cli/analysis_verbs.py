"""The verbs of `rnc` that look at what checkpoints get right and wrong."""

from pathlib import Path

import click

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
from orchestrator.experiment.load import Experiment
from orchestrator.figures.page import render

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
    from orchestrator.cli.bars import bar
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
    from orchestrator.checkpoint.ranges import parse_axis
    from orchestrator.checkpoint.sweep import OPTIONS, Request
    from orchestrator.checkpoint.sweep import sweep as sweep_over
    from orchestrator.checkpoint.sweep_files import write_sweep
    from orchestrator.checkpoint.sweep_report import sweep_page, sweep_table
    from orchestrator.cli.bars import bar

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


VERBS = (misalignment, sweep)
