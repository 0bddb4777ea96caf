"""The verbs of `rnc` that begin with data instead of an experiment: init, train."""

import os
from pathlib import Path

import click

from orchestrator.cli import experiments
from orchestrator.cli.options import FORMAT, OVERRIDES, keep_overrides, say, site
from orchestrator.experiment.layers import parse_overrides
from orchestrator.experiment.load import load_experiment

DATA = click.argument("root", metavar="DATA", type=click.Path(path_type=Path))
OUTPUT = click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The experiment file; NAME.yaml in this folder if not given, after the name of DATA.",
)
COMPARE = click.option(
    "--compare", type=click.Choice(["heads"]), help="heads: RetinaNet, IoU-aware Net and RetinaNet-Conf side by side."
)
SET = click.option(
    "--set",
    multiple=True,
    expose_value=False,
    callback=keep_overrides,
    metavar="SETTING=VALUE",
    help="Another setting than the one chosen, such as train.schedule.epochs=3; repeat it.",
)
NEXT = """\
What now?
  rnc predict best IMAGE        draw what it sees: a picture, a folder, a video
  rnc evaluate best --classes   its numbers again, class by class
  rnc ui {file} --open
                                curves, settings and examples in MLflow
  {file} holds every setting: change one, such as the epochs, and submit again: rnc submit {file}"""


@click.command()
@DATA
@COMPARE
@SET
@OUTPUT
@click.pass_context
def init(ctx: click.Context, root: Path, compare: str | None, output: Path | None) -> None:
    """Write an experiment file for DATA, with settings that suit the data and this machine. Trains nothing.

    DATA is a folder or a file in any format that `rnc data DATA` knows. Chosen are device, image size, batch, epochs,
    learning rate and first weights; each stands in the file with its reason, to be changed at will.

    \b
      rnc init photos
      rnc init photos --compare heads --output experiments/photos.yaml
      rnc init photos --set train.schedule.epochs=40
      rnc plan photos.yaml           what would it cost?
      rnc submit photos.yaml         train it
    """
    file = _written(ctx, root, compare, output)
    say(f"written to {file}; rnc submit {file} trains it")


@click.command()
@DATA
@COMPARE
@SET
@OUTPUT
@FORMAT
@click.option("--budget", type=float, metavar="GPU_HOURS", help="Start no training that would go beyond.")
@click.option("--detach", is_flag=True, help="Go on in the background, without this terminal.")
@click.pass_context
def train(
    ctx: click.Context,
    root: Path,
    compare: str | None,
    output: Path | None,
    form: str,
    budget: float | None,
    detach: bool,
) -> None:
    """Train a detector on DATA: write an experiment file with sensible settings, show it, and submit it.

    The file is made as by `rnc init DATA`. Where it is there already, it is taken as it stands, with what you changed
    in it, and only what is missing runs: after Ctrl-C the same command goes on.

    \b
      rnc train photos
      rnc train photos --compare heads --set train.schedule.epochs=40
      rnc predict best holiday.jpg   then: what does it see?
      rnc evaluate best --classes    its numbers again, class by class
    """
    from orchestrator.starter.write import Start, is_for

    file = Start(root=root, output=output).file
    if file.exists() and is_for(file, root):
        say(f"{file} is there already, and taken as it stands")
        overrides = ctx.meta.get(OVERRIDES, ())
    else:
        file = _written(ctx, root, compare, output)
        overrides = ctx.meta[OVERRIDES] = ()  # they stand in the file
    read = [load_experiment(file, parse_overrides(overrides))]
    try:
        ctx.invoke(experiments.submit, experiments=read, form=form, budget=budget, detach=detach)
    except click.exceptions.Exit as ended:  # as a verb of its own, submit ends with its exit code
        if ended.exit_code == 0:
            say(NEXT.format(file=file))
        raise


def _written(ctx: click.Context, root: Path, compare: str | None, output: Path | None) -> Path:
    """Write the file, and show it."""
    from orchestrator.starter.write import Start, start

    overrides = parse_overrides(ctx.meta.get(OVERRIDES, ()))
    asked = Start(root=root, output=output, compare="heads" if compare else None, overrides=overrides)
    experiment = start(asked, site(), os.environ, say)
    click.echo(experiment.path.read_text(encoding="utf-8"), err=True)  # as it is, where `say` wraps
    return experiment.path


VERBS = (train, init)
