"""The verbs of `rnc` that look at what checkpoints get right and wrong."""

from pathlib import Path

import click

from orchestrator.options import ALL_IMAGES, DATA, FORMAT, SETTINGS, SPLIT, say, show, site


@click.command()
@click.argument(
    "folders",
    nargs=-1,
    required=True,
    metavar="DIR...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--images", type=click.IntRange(min=1), default=10, show_default=True, help="Images of the table by image."
)
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
    and the tables are written to RNC_HOME/reports/misalignment/, or to --output.

    Each checkpoint is used with its own inference settings, as pulled, or else with the paper's; --exponent and --set
    change those of all.

    \b
      rnc misalignment DIR --images 10
      rnc misalignment RETINANET IOU_AWARE CONF --data /data/coco --split val2017 --output looked
    """
    from orchestrator.bars import bar
    from orchestrator.misalignment import Request, analyse

    request = Request(
        folders=folders,
        num_images=images,
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
    say(f"tables and figures: {found.folder}")


VERBS = (misalignment,)
