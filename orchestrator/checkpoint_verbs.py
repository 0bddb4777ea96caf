"""The verbs of `rnc` that fetch and use checkpoints."""

import os
from pathlib import Path

import click

from orchestrator.experiment import METRICS
from orchestrator.site import site_from_environment


@click.command()
@click.argument("row", default="best")
@click.option("--table", help="The table that ROW stands in, or the beginning of its name.")
@click.option("--suite", help="The suite of experiments, where several have such a table.")
@click.option("--run", "run_id", help="A training or an evaluation, by its id in MLflow, instead of ROW.")
@click.option("--metric", type=click.Choice(METRICS), default="AP", help="What is best; also among a row's seeds.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to make; RNC_HOME/pulled/... if not given.")
def pull(row: str, table: str | None, suite: str | None, run_id: str | None, metric: str, output: Path | None) -> None:
    """Fetch a checkpoint from MLflow: that of ROW, or the best one.

    The folder holds weights, config, inference settings and a card that says where they come from; `model.load` takes
    it. The weights are checked against the recorded sha256.

    \b
      rnc pull best --table table1
      rnc pull "RetinaNet-Conf" --table table1 --suite paper --metric AP75
    """
    from orchestrator.bars import bar
    from orchestrator.choice import Choice
    from orchestrator.pull import pull as pull_checkpoint

    choice = Choice(row=row, table=table, suite=suite, run_id=run_id, metric=metric)
    with bar("weights", "bytes") as progress:
        folder = pull_checkpoint(choice, site_from_environment(os.environ), output, _say, progress)
    click.echo(folder)


def _say(text: str) -> None:
    click.echo(text, err=True)


VERBS = (pull,)
