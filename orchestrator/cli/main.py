"""The command `rnc`: its verbs, its help, and how errors are shown and which exit code they give."""

import codecs
import locale
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from model.machine import limit_threads
from orchestrator.cli import checkpoints, data, experiments, suites, train
from orchestrator.cli.terminal import interruption, print_error, usage_error
from orchestrator.errors import BAD_INPUT, INTERRUPTED, UserError, refusal

UNFIT = ("PYTHONOPTIMIZE", "PYTHONWARNINGS")
"""Python without docstrings, of which help and MLflow's modules are made; and a warning of any library as an error."""
ANEW = "RNC_STARTED_ANEW"
"""Says that a process was started again, which it is once."""


class _Verbs(click.Group):
    """Shows what a user can mend as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            print_error(str(error))
            ctx.exit(BAD_INPUT)
        except KeyboardInterrupt:  # click would end with exit code 1
            click.echo(interruption(ctx), err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if (said := refusal(error)) is None:
                raise
            print_error(said)
            ctx.exit(BAD_INPUT)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run a verb; mistakes in the call look like all others, where click would print its usage before them."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            sys.exit(super().main(args, standalone_mode=False, **extra))
        except click.ClickException as error:
            print_error(usage_error(error))
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(1)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="retinanet-conf")
def cli() -> None:
    """Run the experiments of the RetinaNet-Conf paper, and your own, on a Ray cluster.

    DATA is a folder or a file of yours, in whatever format its annotations are. An EXPERIMENT is a YAML file, such as
    one table of the paper; a folder stands for the files in it. A CHECKPOINT is a folder, `best` or the label of a row.

    \b
      rnc train photos                  train a detector on data of your own
      rnc predict best holiday.jpg      and look what it sees
      rnc plan experiments/paper        what would it cost?
      rnc submit experiments/miniature  train and score what is missing
      rnc report experiments/miniature  print the tables
      rnc ui                            browse everything in MLflow

    \b
    Environment (everything works with none of it set):
      RNC_HOME             data, records and checkpoints (default: ./runs)
      RNC_COCO_ROOT        COCO 2017, or the data of files that name none
      RNC_WEIGHTS          a folder of pretrained weights
      MLFLOW_TRACKING_URI  an MLflow server (default: our own, on localhost)
      RAY_ADDRESS          a Ray cluster (default: this machine)
    """


for verb in (*train.VERBS, *data.VERBS, *experiments.VERBS, *suites.VERBS, *checkpoints.VERBS):
    cli.add_command(verb)


def main() -> None:
    """Entry point of the console script."""
    _start_anew()
    os.umask(os.umask(0o077) & 0o077)  # whatever it keeps from others, this user reads what he writes
    limit_threads()
    cli(prog_name="rnc")


def _start_anew() -> None:
    """Start this process again if variables have made Python another than it is tested as; its children go with it."""
    is_other = sys.flags.optimize or any(one.startswith("error") for one in sys.warnoptions)
    changed = bool(is_other and [name for name in UNFIT if os.environ.pop(name, None)])
    # Under LANG=C files would be written in ASCII, and a label with an accent end a submit.
    if codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        changed = True
    if changed and ANEW not in os.environ:  # once
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {ANEW: "1"})
    os.environ.pop(ANEW, None)


if __name__ == "__main__":
    main()
