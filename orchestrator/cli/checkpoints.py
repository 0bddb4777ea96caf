"""The verbs of `rnc` that fetch and use checkpoints: pull, evaluate, predict, misalignment, sweep."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.config import METRICS
from orchestrator.cli.options import (
    FORMAT,
    SETTINGS,
    bar,
    read_experiments,
    say,
    selection_options,
    settings_options,
    show,
    show_one,
    site,
)
from orchestrator.cli.terminal import GOES_ON, print_line, when_interrupted
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.homes import make_home

if TYPE_CHECKING:
    from orchestrator.checkpoint.find import Query
    from orchestrator.checkpoint.inputs import Selection
    from orchestrator.checkpoint.sweep import Grid
    from orchestrator.site import Site

RANGE = "START:STOP:STEP|LIST"
CHECKPOINT = click.argument("checkpoint", metavar="CHECKPOINT")
TABLE = click.option("--table", help="The table that a row stands in, or the beginning of its name.")
SUITE = click.option("--suite", help="The suite of a row, where several have such a table or row.")


def row_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb --table and --suite, in which it looks for a CHECKPOINT that is no folder; taken as one `query`."""

    @wraps(verb)
    def collected(*, table: str | None, suite: str | None, **others: Any) -> None:
        from orchestrator.checkpoint.find import Query

        verb(query=Query(table=table, suite=suite), **others)

    return TABLE(SUITE(collected))


def located(names: Sequence[str], query: "Query") -> list[Path]:
    """Return the folders of checkpoints, after pulling rows that are not there yet."""
    from orchestrator.checkpoint.pull import locate

    here = site()
    with bar("weights", "bytes") as progress:
        return [locate(name, query, here, say, progress) for name in names]


@click.command()
@click.argument("row", default="best")
@TABLE
@SUITE
@click.option("--run", "run_id", help="A training or an evaluation, by its id in MLflow, instead of ROW.")
@click.option("--metric", type=click.Choice(METRICS), default="AP", help="What is best; also among a row's seeds.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to make; RNC_HOME/pulled/... if not given.")
def pull(row: str, table: str | None, suite: str | None, run_id: str | None, metric: str, output: Path | None) -> None:
    """Fetch a checkpoint from MLflow: that of ROW, or the best one.

    ROW is `best`, the label of a row as the tables show it, or table:label. `best` is that of the suite that was
    submitted last from this RNC_HOME, unless --suite names another. A label under which several tables have different
    results is refused, with their APs.

    The folder holds weights, config, inference settings, the detections that were recorded, and a card that says where
    they come from; `model.load`, `rnc evaluate` and `rnc predict` take it. The weights are checked against the recorded
    sha256.

    \b
      rnc pull                              the best of the suite that ran last
      rnc pull best --table table1
      rnc pull "table5:alpha 0.4"
      rnc pull "RetinaNet-Conf" --table table1 --suite paper --metric AP75
      rnc pull --suite miniature            what is registered as its best
    """
    from orchestrator.checkpoint.find import Query
    from orchestrator.checkpoint.pull import pull as pull_checkpoint

    query = Query(row=row, table=table, suite=suite, run_id=run_id, metric=metric)
    with bar("weights", "bytes") as progress:
        folder = pull_checkpoint(query, site(), output, say, progress)
    print_line(str(folder))


@click.command()
@click.argument("checkpoint", metavar="[CHECKPOINT]", required=False)
@click.option(
    "--detections", type=click.Path(dir_okay=False, path_type=Path), help="A file of detections, instead of CHECKPOINT."
)
@row_options
@settings_options
@selection_options
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the detections as Parquet, for --detections."
)
@click.option("--coco-json", type=click.Path(dir_okay=False, path_type=Path), help="Write the detections as COCO JSON.")
@click.option("--classes", is_flag=True, help="Show AP of each class, too, with its interval; JSON always has it.")
@click.option("--by-ap", is_flag=True, help="With --classes: those of least AP first.")
@FORMAT
@when_interrupted(GOES_ON)
def evaluate(
    checkpoint: str | None,
    detections: Path | None,
    query: "Query",
    selection: "Selection",
    save: Path | None,
    coco_json: Path | None,
    classes: bool,
    by_ap: bool,
    form: str,
) -> None:
    """Score a checkpoint on a data set, and compare the numbers with MLflow's.

    CHECKPOINT is a folder, `best`, the label of a row or table:label; a row is pulled first, as `rnc pull` does.

    --data is a folder or a file in any format that `rnc data` knows. Without it, data of your own are looked for where
    they lay when the row was scored, and else, as COCO is, at RNC_COCO_ROOT; shapes are drawn.

    With --detections, no checkpoint and no GPU are needed: every number is computed again from the stored detections,
    and compared with what the file records. `rnc pull` fetches such a file, and --save writes one. A results file of
    pycocotools does as well, whatever detector made it: [{image_id, category_id, bbox, score}, ...], as JSON.

    \b
      rnc evaluate best
      rnc evaluate "RetinaNet-Conf" --table table1 --all
      rnc evaluate best --data /data/coco --split val2017
      rnc evaluate best --set inference.nms_iou=0.6 --save found.parquet
      rnc evaluate --detections found.parquet --coco-json found.json
      rnc evaluate --detections results.json --data /data/mine --split val
    """
    if (checkpoint is None) == (detections is None):
        raise UserError("expected either a CHECKPOINT (a folder, `best` or a row) or --detections FILE")
    if by_ap and not classes:
        raise UserError("--by-ap is for --classes")
    _require_a_file_each({"--detections": detections, "--save": save, "--coco-json": coco_json})
    # Before the imports below, which take seconds: a misspelt name is told at once.
    folder = None if checkpoint is None else located([checkpoint], query)[0]
    from orchestrator.checkpoint.evaluate import DetectionFiles, recompute
    from orchestrator.checkpoint.evaluate import evaluate as evaluate_checkpoint

    files = DetectionFiles(parquet=save, coco_json=coco_json)
    if folder is not None:
        with bar("images", "images") as progress:
            numbers = evaluate_checkpoint(folder, selection, files, site(), say, progress)
    else:
        assert detections is not None
        numbers = recompute(detections, selection, files, site(), say)
    if form == "json":
        click.echo(numbers.to_json(by_ap=by_ap))
    elif classes:
        show([numbers.table, numbers.classes(by_ap=by_ap)], form)
    else:
        show_one(numbers.table, form)


def _require_a_file_each(named: Mapping[str, Path | None]) -> None:
    """Refuse a file that two options name, of which one would overwrite what the other has read or written."""
    option_of: dict[str, str] = {}
    for option, file in named.items():
        # realpath, as a link or a `..` may lead to the same file.
        other = option if file is None else option_of.setdefault(os.path.realpath(file), option)
        if other != option:
            raise UserError(f"{option} {file}: that is the file of {other}, and would overwrite it; name another file")


@click.command()
@CHECKPOINT
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER|VIDEO...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write to; RNC_HOME/predictions/... if not given.",
)
@click.option("--score", type=click.FloatRange(0.0, 1.0), default=0.3, show_default=True, help="The least score shown.")
@click.option(
    "--every", type=click.IntRange(min=1), default=1, metavar="N", help="Of a video, take each N-th frame alone."
)
@row_options
@settings_options
@when_interrupted(f"{GOES_ON} A video that was not ended is begun anew.")
def predict(
    checkpoint: str,
    images: tuple[str, ...],
    out: Path | None,
    score: float,
    every: int,
    query: "Query",
    settings: tuple[str, ...],
) -> None:
    """Detect with a checkpoint on pictures and videos, and write them with their boxes drawn in.

    CHECKPOINT is a folder, `best`, the label of a row or table:label; a row is pulled first, as `rnc pull` does. `best`
    is that of the suite that was submitted last from this RNC_HOME.

    What follows are files, folders, without those inside them, and patterns such as 'photos/**/*.jpg'. Frames of
    videos (mp4, mov, avi, mkv, webm, ...) need PyAV: pip install 'retinanet-conf[video]'. Animated GIF, WebP and PNG do
    not, but without PyAV their frames are written as single pictures instead of an MP4. Sound is left out.

    The detections are written to detections.json in COCO's format, the ids of the images being their places here;
    frames are numbered behind them, and say their video, number and second. A photograph is turned as its EXIF
    orientation says, and its boxes count in turned pixels. What does not decode is named and skipped,
    and the exit code is then 1. Each core works on one image. The same command again skips what is done already, also
    after Ctrl-C and SIGTERM, and but for the last half minute where it was killed; a video that was not ended is begun
    anew. A detections.json that is not the command's own is not overwritten.

    \b
      rnc predict best photos/
      rnc predict best clip.mp4 --every 5 --score 0.5 --out drawn
      rnc predict "table1:RetinaNet-Conf" 'photos/**/*.jpg' --suite miniature
      rnc predict best a.jpg b.jpg --set inference.nms_iou=0.6
    """
    from orchestrator.checkpoint.prediction.files import find_files, plan_job

    if math.isnan(score):  # of which every comparison is false, that with a range as well
        raise UserError("--score nan: expected 0 to 1")
    files = find_files(images)
    (folder,) = located([checkpoint], query)
    job = plan_job(folder, images, files, out, site(), score, every)
    # All of the above without torch, whose import takes seconds: a misspelt name is told at once.
    from orchestrator.checkpoint.inputs import read_checkpoint
    from orchestrator.checkpoint.prediction.run import predict as predict_on

    with bar("images", "images") as progress:
        broken = predict_on(read_checkpoint(folder, settings), job, say, progress)
    click.get_current_context().exit(1 if broken else 0)


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option(
    "--images", type=click.IntRange(min=1), default=10, show_default=True, help="Images of the table and the pictures."
)
@click.option("--image-ids", metavar="ID,...", help="These images instead of the first ones.")
@click.option("--only", is_flag=True, help="Score these images alone; statistics and figures are of them, too.")
@row_options
@settings_options
@selection_options
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="The folder for tables and figures.")
@FORMAT
@when_interrupted(GOES_ON)
def misalignment(
    checkpoints: tuple[str, ...],
    images: int,
    image_ids: str | None,
    only: bool,
    query: "Query",
    selection: "Selection",
    output: Path | None,
    form: str,
) -> None:
    """Show how well the scores of checkpoints say how well boxes are placed.

    A CHECKPOINT is a folder, `best`, the label of a row or table:label; a row is pulled first, as `rnc pull` does.

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
      rnc misalignment best --images 10
      rnc misalignment RetinaNet RetinaNet-Conf --table table1 --image-ids 42,57
      rnc misalignment RETINANET IOU_AWARE CONF --data /data/coco --output looked
    """
    from orchestrator.checkpoint.misalignment import Closeup, analyse
    from orchestrator.figures.pictures import parse_image_ids

    closeup = Closeup(
        num_images=images, image_ids=parse_image_ids(image_ids) if image_ids is not None else (), only=only
    )
    folders = located(checkpoints, query)  # before torch is imported, which takes seconds
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
@click.option("--suppression", metavar="LIST", help="What overlapping boxes come to: nms,soft_gaussian,voting.")
@click.option(
    "--suppression-sigma", metavar=RANGE, help="Widths of Gaussian soft-NMS and matrix NMS, or of voting: 0.3:0.9:0.2."
)
@SETTINGS
@row_options
@selection_options
@click.option(
    "--fit",
    "fit_split",
    metavar="SPLIT",
    help="Choose the exponent and recalibrate scores on this split; report both on the one that is scored.",
)
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
@when_interrupted(GOES_ON)
def sweep(
    checkpoint: str,
    query: "Query",
    selection: "Selection",
    fit_split: str | None,
    beside: list[Experiment],
    output: Path | None,
    form: str,
    **ranges: str | None,
) -> None:
    """Score a checkpoint under a range of inference settings, in one pass over the images.

    CHECKPOINT is a folder, `best`, the label of a row or table:label; a row is pulled first, as `rnc pull` does.

    One setting of several values gives a curve for each metric, two give a grid. The table is printed, and written in
    every format with a page and a picture of the curves. `rnc settings suppression` says what suppressions there are.

    With --fit, nothing is tuned on what is scored: the exponent is the best one on SPLIT (of --exponents, or 0:1:0.05),
    and so are a temperature and an isotonic regression that make scores say the IoU of their boxes. Reported is what
    they are worth on the split that is scored (--split, or the row's), beside the exponent that was there before, and
    the optimum on that split, as what it is. Both recalibrations are written as JSON.

    \b
      rnc sweep best --exponents 0:1:0.05
      rnc sweep best --exponents 0:1:0.1 --beside experiments/paper
      rnc sweep best --exponents 0:0.8:0.2 --nms-iou 0.4:0.7:0.05
      rnc sweep best --suppression nms,soft_linear,soft_gaussian,voting
      rnc sweep best --fit val --split test
    """
    from orchestrator.checkpoint.sweep import Grid, parse_axes
    from orchestrator.checkpoint.sweep import sweep as sweep_over
    from orchestrator.checkpoint.sweep_report import sweep_page, sweep_table, write_sweep

    # Before a checkpoint is fetched, and torch imported: a mistake in the call is told at once.
    grid, here = Grid(axes=parse_axes(ranges), beside=tuple(beside)), site()
    if fit_split is not None:
        _sweep_and_fit(checkpoint, query, fit_split, grid, selection, here, output, form)
        return
    (folder,) = located([checkpoint], query)
    with bar("images", "images") as progress:
        found = sweep_over(folder, grid, selection, here, say, progress)
    written = output or make_home(here.home) / "reports" / "sweep" / found.name
    write_sweep(written, found)
    if form == "html":
        click.echo(sweep_page(found))
    else:
        show_one(sweep_table(found), form)
    say(f"written to {written}")


def _sweep_and_fit(
    checkpoint: str,
    query: "Query",
    split: str,
    grid: "Grid",
    selection: "Selection",
    here: "Site",
    output: Path | None,
    form: str,
) -> None:
    """What `rnc sweep --fit` does."""
    from orchestrator.checkpoint.fit.report import fit_json, fit_tables, write_fit
    from orchestrator.checkpoint.fit.run import fit

    if grid.beside:
        raise UserError("--beside stands beside every setting of a sweep; leave it out with --fit")
    (folder,) = located([checkpoint], query)
    with bar("images", "images") as progress:
        found = fit(folder, split, grid.axes, selection, here, say, progress)
    written = output or make_home(here.home) / "reports" / "sweep" / found.name
    page = write_fit(written, found)
    if form == "html":
        click.echo(page)
    elif form == "json":
        click.echo(fit_json(found))
    else:
        show(list(fit_tables(found).values()), form)
    say(f"written to {written}")


VERBS = (pull, evaluate, predict, misalignment, sweep)
