"""The verb `rnc data`: what a data set holds, and the same data in another format."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from model.config import DataConfig
from orchestrator.cli.options import FORMAT, bar, say, site
from orchestrator.cli.terminal import print_line, print_text, screen_columns
from orchestrator.errors import UserError
from orchestrator.homes import make_home

if TYPE_CHECKING:
    from model.data.formats.convert import Written


class _DataVerbs(click.Group):
    """Takes `rnc data DATA`, whose first word is none of its verbs, for `rnc data audit DATA`."""

    default = "audit"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if not args or args[0] in own else [self.default, *args])


@click.group(cls=_DataVerbs)
def data() -> None:
    """Say what a data set holds (rnc data DATA), or write it in another format.

    DATA is a folder or a file in any format that `rnc train` reads. One that is called like a verb is ./audit.
    """


@data.command()
@click.argument("root", metavar="DATA", type=click.Path(exists=True, path_type=Path))
@click.option("--short-edge", type=click.IntRange(min=32), default=DataConfig().short_edge, show_default=True)
@click.option("--long-edge", type=click.IntRange(min=32), default=DataConfig().long_edge, show_default=True)
@click.option("--quick", is_flag=True, help="Decode no image: looks for no duplicates.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="The folder for sheet and page.")
@FORMAT
@click.pass_context
def audit(
    ctx: click.Context, root: Path, short_edge: int, long_edge: int, quick: bool, output: Path | None, form: str
) -> None:
    """Say what DATA holds, and what is suspicious about it.

    Splits, images and boxes by class, sizes, boxes that are not learnt and why, images that occur twice (the same
    bytes, or the same view by a perceptual hash), doubled boxes, classes with few boxes. Boxes are measured at
    --short-edge and --long-edge, to which images are resized for training. A contact sheet that shows every class with
    its boxes, and a page with all of it, are written to RNC_HOME/reports/data/, or to --output.

    The exit code is 0 if all splits can be read, 1 if one cannot, and 2 if none can, or for a mistake in the call.
    """
    from model.data.faults import DataError
    from orchestrator.data.audit import audit as look_at
    from orchestrator.data.screens import SCREENS, head, speed, tables, write

    try:
        with bar("images", "images") as progress:
            found = look_at(root, (short_edge, max(short_edge, long_edge)), progress, read_images=not quick)
    except DataError as error:
        raise UserError(str(error)) from error
    folder = output or make_home(site().home) / "reports" / "data" / Path(os.path.abspath(root)).name
    page, told = write(found, folder)
    if form == "text" and screen_columns(sys.stdout) is not None:
        click.echo(head(found))
        for table in tables(found):
            click.echo()
            print_text(table)
    else:
        click.echo(page if form == "html" else SCREENS[form](found))
    say(told)
    say(speed(found))
    ctx.exit(1 if found.refused else 0)


@data.command()
@click.argument("root", metavar="DATA", type=click.Path(exists=True, path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(("coco", "yolo", "voc")), default="coco", show_default=True)
@click.option("--copy", is_flag=True, help="Copy the images, instead of giving their files a second name.")
def convert(root: Path, out: Path, form: "Written", copy: bool) -> None:
    """Write DATA into the folder OUT as COCO, YOLO or Pascal VOC.

    OUT must be new or empty. Data without a split to validate on are written as two, train and val. Outlines of masks
    are left out.

    \b
      rnc data convert photos/data.yaml photos-coco
      rnc data convert photos photos-yolo --format yolo
    """
    from model.data.faults import DataError
    from model.data.formats.convert import convert as convert_data

    try:
        convert_data(root, out, form, say, copy=copy)
    except DataError as error:
        raise UserError(str(error)) from error
    print_line(str(out))


VERBS = (data,)
