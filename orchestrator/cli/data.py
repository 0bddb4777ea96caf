"""The verb `rnc data`: what a data set holds, and the same data in another format."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import say
from orchestrator.errors import UserError

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
def audit(root: Path) -> None:
    """Say what DATA holds."""
    from model.data.layout import find_layout

    for split in find_layout(root).splits.values():
        click.echo(f"{split.name}: {split.format}, images in {split.images}")


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
    click.echo(out)


VERBS = (data,)
