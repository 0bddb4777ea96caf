"""The verb `rnc data`: what a data set holds, and the same data in another format."""

from pathlib import Path

import click


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


VERBS = (data,)
