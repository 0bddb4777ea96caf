"""The verbs of `rnc` that fetch and use checkpoints."""

from pathlib import Path

import click

from orchestrator.cli.options import ALL_IMAGES, CHECKPOINT, DATA, FORMAT, SETTINGS, SPLIT, say, site
from orchestrator.errors import UserError
from orchestrator.experiment.load import METRICS
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
    from orchestrator.cli.bars import bar

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
        from orchestrator.checkpoint.recompute import recompute

        table = recompute(detections, data, split, coco_json, site(), say)
    else:
        from orchestrator.checkpoint.evaluate import Request
        from orchestrator.checkpoint.evaluate import evaluate as evaluate_checkpoint
        from orchestrator.cli.bars import bar

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
    from orchestrator.cli.bars import bar

    with bar("images", "images") as progress:
        broken = predict_on(folder, images, out, score, _settings(exponent, settings), say, progress)
    ctx.exit(1 if broken else 0)


def _settings(exponent: float | None, settings: tuple[str, ...]) -> tuple[str, ...]:
    return settings if exponent is None else (f"confidence_exponent={exponent}", *settings)


VERBS = (pull, evaluate, predict)
