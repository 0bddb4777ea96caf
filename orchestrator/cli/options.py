"""Arguments and options that verbs of `rnc` share, and how they print tables and progress."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from model.settings import Settings
from orchestrator.addresses import RAY, logins_apart
from orchestrator.api import OpenSuite
from orchestrator.cli.terminal import print_text, say_lines
from orchestrator.cluster.environment import require_cluster_settings
from orchestrator.errors import UserError
from orchestrator.experiment.layers import parse_overrides
from orchestrator.experiment.load import Experiment, load_experiments, load_sound
from orchestrator.experiment.search import MOST_ROWS, MOST_ROWS_EVER
from orchestrator.figures.page import FORMATS, html_page, render
from orchestrator.figures.table import Table
from orchestrator.homes import describe_home
from orchestrator.site import Site, site_from_environment

if TYPE_CHECKING:
    from orchestrator.report.files import Report


OVERRIDES = "rnc.overrides"
"""Where a call keeps what its `--set` says."""
SUITE = "rnc.suite"
"""Where it keeps what its `--suite` says."""
MANY_ROWS = "rnc.many_rows"
"""Whether a file may have more than MOST_ROWS, by its `--yes`."""
MISTAKES = "rnc.mistakes"
"""Where a call keeps what is wrong with the files that it leaves out."""


def read_experiments(ctx: click.Context, parameter: click.Parameter, paths: Sequence[str]) -> list[Experiment]:
    """Read the files that an argument names, with what --set changes in them."""
    return load_experiments(paths, _overrides(ctx), _most_rows(ctx)) if paths else []


def override_words(ctx: click.Context) -> list[str]:
    """The --set, --suite and --yes of this call, as words of another that reads the same files."""
    suite = ctx.meta.get(SUITE)
    words = [word for pair in ctx.meta.get(OVERRIDES, ()) for word in ("--set", pair)]
    words += ["--yes"] if ctx.meta.get(MANY_ROWS) else []
    return [*words, *([] if suite is None else ["--suite", suite])]


def _overrides(ctx: click.Context) -> Settings:
    suite = ctx.meta.get(SUITE)
    # Not as one of the pairs, whose values are YAML: a suite may be called 2.
    return parse_overrides(ctx.meta.get(OVERRIDES, ())) | ({} if suite is None else {"suite": suite})


def _most_rows(ctx: click.Context) -> int:
    return MOST_ROWS_EVER if ctx.meta.get(MANY_ROWS) else MOST_ROWS


def keep_overrides(ctx: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> None:
    """Keep what --set says in the context, where whoever reads experiment files finds it."""
    ctx.meta[OVERRIDES] = pairs


def _keep_many_rows(ctx: click.Context, parameter: click.Parameter, is_meant: bool) -> None:
    ctx.meta[MANY_ROWS] = is_meant


def _keep_suite(ctx: click.Context, parameter: click.Parameter, name: str | None) -> None:
    ctx.meta[SUITE] = name


def _read_sound(ctx: click.Context, parameter: click.Parameter, paths: Sequence[str]) -> list[Experiment]:
    """Read the files that have no mistakes; at the end of the verb name the others, and exit with code 1."""
    if not paths:
        return []
    experiments, mistakes = load_sound(paths, _overrides(ctx), _most_rows(ctx))
    ctx.meta[MISTAKES] = mistakes
    return experiments


def _telling_mistakes(verb: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(verb)
    def told(*context: Any, **values: Any) -> None:
        ctx = click.get_current_context()
        mistakes: list[str] = ctx.meta.get(MISTAKES, [])
        try:
            verb(*context, **values)
        finally:
            # Last, where they are seen below a long table.
            for mistake in mistakes:
                say(f"left out: {mistake}")
        if mistakes:
            ctx.exit(1)

    return told


def experiments_argument(
    *, required: bool = True, only_sound: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb EXPERIMENT..., with --set and --suite, which change settings of all of them, and --yes.

    Args:
        required: whether one has to be named.
        only_sound: whether the verb goes on without the files that have mistakes; its exit code is 1 then.
    """
    argument = click.argument(
        "experiments",
        nargs=-1,
        required=required,
        metavar="EXPERIMENT..." if required else "[EXPERIMENT]...",
        callback=_read_sound if only_sound else read_experiments,
    )
    option = click.option(
        "--set",
        multiple=True,
        is_eager=True,  # the files are read with it
        expose_value=False,
        callback=keep_overrides,
        metavar="SETTING=VALUE",
        help="Another setting in every row, such as train.schedule.epochs=3 or data.root=PATH; repeat it.",
    )
    suite = click.option(
        "--suite",
        is_eager=True,
        expose_value=False,
        callback=_keep_suite,
        metavar="NAME",
        help="Put the files into a suite of this name, which shares neither results nor turns with their own.",
    )
    many_rows = click.option(
        "--yes",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_keep_many_rows,
        help=f"Take files of more than {MOST_ROWS} rows, which may be a slip in a grid.",
    )
    return lambda verb: argument(option(suite(many_rows(_telling_mistakes(verb) if only_sound else verb))))


EXPERIMENTS = experiments_argument()
SOUND_EXPERIMENTS = experiments_argument(only_sound=True)
FORMAT = click.option("--format", "form", type=click.Choice(FORMATS), default="text", help="How tables are printed.")
DATA = click.option(
    "--data", type=click.Path(exists=True, path_type=Path), help="A data set: a folder, or a file that describes it."
)
SPLIT = click.option("--split", help="Such as val2017; that of the checkpoint's row if not given.")


def check_settings(ctx: click.Context, parameter: click.Parameter, settings: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse inference settings that are none, or have no such value, before a checkpoint is fetched for them."""
    from orchestrator.checkpoint.inputs import typed_changes

    for text in settings:
        if text.strip().startswith("train."):
            raise UserError(
                f"--set {text}: a checkpoint is trained already; what can be set is how it is scored, such as "
                "inference.nms_iou=0.6, or the row's training in an experiment file"
            )
    typed_changes(settings)
    return settings


def check_exponent(ctx: click.Context, parameter: click.Parameter, exponent: float | None) -> float | None:
    """Refuse an exponent that is none, likewise."""
    check_settings(ctx, parameter, () if exponent is None else (f"confidence_exponent={exponent}",))
    return exponent


EXPONENT = click.option("--exponent", type=float, callback=check_exponent, help="Another confidence exponent, 0 to 1.")
SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    callback=check_settings,
    metavar="SETTING=VALUE",
    help="Another inference setting: inference.nms_iou=0.6",
)
ALL_IMAGES = click.option(
    "--all", "all_images", is_flag=True, help="Score all images, not the first ones as in the training."
)


def settings_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb --exponent and --set, which it takes together as `settings`."""

    @wraps(verb)
    def collected(*, exponent: float | None, settings: tuple[str, ...], **others: Any) -> None:
        own = () if exponent is None else (f"confidence_exponent={exponent}",)
        verb(settings=(*own, *settings), **others)

    return EXPONENT(SETTINGS(collected))


def selection_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb --data, --split and --all, which it takes with its `settings` as one `selection`."""

    @wraps(verb)
    def collected(
        *, data: Path | None, split: str | None, all_images: bool, settings: tuple[str, ...], **others: Any
    ) -> None:
        from orchestrator.checkpoint.inputs import Selection

        verb(selection=Selection(data=data, split=split, all_images=all_images, settings=settings), **others)

    return DATA(SPLIT(ALL_IMAGES(collected)))


def site(address: str | None = None) -> Site:
    """Return the site that the environment names, its Ray cluster another where an address says so."""
    require_cluster_settings(os.environ)
    named = {RAY: address} if address else {}
    apart = logins_apart(os.environ | named)
    os.environ.update(apart)  # for the clients, and for processes that are started from here
    return site_from_environment(os.environ | named | apart)


def say(text: str) -> None:
    """Print to standard error, so that the output stays what a program can read."""
    with suppress(OSError):  # its terminal is gone, or its pipe, or its disk is full; what is being done goes on
        click.echo(say_lines(text), err=True)


def suites(experiments: Sequence[Experiment], at: Site | None = None) -> list[OpenSuite]:
    """Open the suites of the experiments, in the order of the files."""
    groups: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.suite, []).append(experiment)
    here = at or site()
    return [OpenSuite(group, here) for group in groups.values()]


def tell_home(opened: Sequence[OpenSuite]) -> None:
    """Say where it was looked for suites of which nothing is recorded, and where they were last submitted."""
    for suite in opened:
        if not suite.mlflow_runs:
            home = describe_home(suite.name, suite.experiments[0].path.parent, suite.site.home)
            server = f" at {suite.site.tracking_uri}" if suite.site.tracking_uri else ""
            say(f"Nothing of suite {suite.name} is recorded{server}. {home}")


def show(tables: Sequence[Table], form: str) -> None:
    """Print tables."""
    if form == "html":
        click.echo(html_page(tables[0].title, list(tables)))
    elif form == "json":
        click.echo("[" + ",\n".join(table.to_json() for table in tables) + "]")
    else:
        for place, table in enumerate(tables):
            click.echo("\n" if place else "", nl=False)
            show_one(table, form)


def show_one(table: Table, form: str) -> None:
    """Print one table, of which JSON is no list."""
    if form == "text":
        print_text(table)
    else:
        click.echo(render(table, form))


def show_reports(reports: "Sequence[Report]", form: str) -> None:
    """Print results tables, on a page with their figures."""
    from orchestrator.report.files import reports_page

    if form == "html":
        click.echo(reports_page(reports))
    else:
        show([report.table for report in reports], form)


@contextmanager
def bar(text: str, unit: Literal["bytes", "images"]) -> Iterator[Callable[[int, int], None]]:
    """Yield a progress bar as a function of (done, total); it appears with its first call, and only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=None, visible=False)
        yield lambda done, total: shown.update(task, completed=done, total=total, visible=True)
