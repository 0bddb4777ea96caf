"""The verbs of `rnc` for experiments: plan, submit, status, report, compare, run, settings."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from model.settings import suggestion
from orchestrator.cli.options import (
    EXPERIMENTS,
    FORMAT,
    SOUND_EXPERIMENTS,
    override_words,
    say,
    show,
    show_reports,
    site,
    suites,
    tell_home,
)
from orchestrator.cli.terminal import GOES_ON, print_log, when_interrupted
from orchestrator.cluster.environment import is_jobs_address
from orchestrator.errors import BAD_INPUT, INTERRUPTED, UserError
from orchestrator.experiment.cost.budget import require_budget
from orchestrator.experiment.load import Experiment
from orchestrator.figures.table import Table


def _require_finite(_ctx: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """Refuse what a range of numbers lets pass."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no throughput; give a number above 0")
    return value


IMAGES_PER_S = click.option(
    "--images-per-s",
    type=click.FloatRange(min=0, min_open=True),
    callback=_require_finite,
    help="Training throughput of one GPU (or CPU worker), where none was measured.",
)


@click.command()
@EXPERIMENTS
@FORMAT
@click.option("--gpus", type=click.IntRange(min=1), help="How many hours would it take on this many GPUs?")
@IMAGES_PER_S
@click.option("--verbose", is_flag=True, help="List every evaluation: where it is shown, and why it is missing.")
@click.option("--quick", is_flag=True, help="Look neither at the data nor whether MLflow still holds the files.")
@click.pass_context
def plan(
    ctx: click.Context,
    experiments: list[Experiment],
    form: str,
    gpus: int | None,
    images_per_s: float | None,
    verbose: bool,
    quick: bool,
) -> None:
    """Show what EXPERIMENT would train and score, what it and each row costs, and how much disk. Starts nothing.

    Weights, disk, resources and data are checked as a submit from here checks them, image files where there are at most
    5,000; what would stop it is named, and the exit code is then 2. With --gpus for more GPUs than this machine has, or
    with RAY_ADDRESS for jobs (http://HOST:8265), the plan is for another machine: what this one lacks is then said, and
    stops nothing.
    """
    from orchestrator.report.plan_table import costs_table, evaluations_table, plan_table, plans_json

    opened = suites(experiments)
    plans = [one.costed_plan(gpus=gpus, images_per_s=images_per_s, quick=quick) for one in opened]
    if form == "json":
        click.echo(json.dumps(plans_json(plans), indent=2))
    else:
        tables = []
        for one, time in plans:
            tables += [plan_table(one, time), *([] if one.is_complete else [costs_table(one, time)])]
            tables += [evaluations_table(one)] if verbose else []
        show(tables, form)
    if not quick:
        stops = [stop for suite in opened for stop in suite.look_ahead(say, gpus=gpus)]
        for stop in stops:
            say(f"a submit would stop here: {stop}")
        ctx.exit(BAD_INPUT if stops else 0)


@click.command()
@EXPERIMENTS
@FORMAT
@click.option("--address", help="A Ray cluster, instead of RAY_ADDRESS: http://HOST:8265 to send a job, else to join.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="For the environment of a job; repeat it.")
@click.option(
    "--budget",
    type=float,
    metavar="GPU_HOURS",
    help="Start no training that would go beyond; where one takes no GPU, its CPU-hours count.",
)
@IMAGES_PER_S
@click.option("--prune", is_flag=True, help="First end trainings that no row of these tables asks for any more.")
@click.option("--detach", is_flag=True, help="Go on in the background, without this terminal.")
@click.option("--waiting-since", type=int, hidden=True)  # milliseconds since 1970, from a submit that starts a job
@click.pass_context
@when_interrupted(GOES_ON)
def submit(
    ctx: click.Context,
    experiments: list[Experiment],
    form: str,
    address: str | None,
    env: tuple[str, ...],
    budget: float | None,
    images_per_s: float | None,
    prune: bool,
    detach: bool,
    waiting_since: int | None,
) -> None:
    """Train and score what is missing of EXPERIMENT.

    Trainings run as Ray Train jobs that Ray Tune schedules, and are recorded in MLflow; then the tables are printed.
    What stands in MLflow already is not run again. Ctrl-C stops cleanly, and the next submit goes on from the last
    checkpoints. A suite that somebody else submits already is looked on at, and taken over when that submit ends.

    With --budget, trainings start in the order of `rnc plan`, as long as the estimated cost of the next fits into what
    is left; of those that ran, what they took counts. Where no throughput is known yet, the first training runs and
    tells. What does not fit is named with its cost and stays missing; the exit code is 0 if nothing else is wrong.

    With --detach, mistakes in files, settings and annotations are still found at once; then a process of its own goes
    on, and writes to RNC_HOME/submits/SUITE/.

    With an address http:// or https://, of the cluster's dashboard, the files that git tracks and the EXPERIMENTs are
    sent there as a job, and its log is followed until it ends, with its exit code. Ctrl-C stops the job as it stops a
    local submit; a second Ctrl-C leaves it to that. A job that runs the suite already is followed, and Ctrl-C leaves
    it alone. The cluster has to have the project's dependencies, and RNC_HOME, RNC_COCO_ROOT, RNC_WEIGHTS and
    MLFLOW_TRACKING_URI in its environment, as they are there, or from --env; of this machine's environment only
    MLFLOW_TRACKING_URI is passed on, and only if it is another machine's. Secrets, such as MLFLOW_TRACKING_PASSWORD,
    are never sent, because everybody who reads the Jobs API would see them: the cluster has to hold them. A cluster
    that wants a token takes it from RAY_AUTH_TOKEN, or from the file at RAY_AUTH_TOKEN_PATH.
    """
    require_budget(budget, name="--budget")
    here = site(address)
    opened = suites(experiments, here)
    passed_on = ["--format", form, *override_words(ctx), *(["--prune"] if prune else [])]
    passed_on += [] if budget is None else ["--budget", str(budget)]
    passed_on += [] if images_per_s is None else ["--images-per-s", str(images_per_s)]
    if is_jobs_address(here.ray_address):
        from orchestrator.cluster.jobs import Remote, submit_job

        if budget is not None and len(opened) > 1:
            raise UserError(f"--budget: each of these {len(opened)} suites is a job of its own; submit them one by one")
        remote = Remote(address=str(here.ray_address), env=env, options=tuple(passed_on), detach=detach)
        codes = []
        for suite in opened:
            codes.append(submit_job(suite.experiments, remote, say, partial(print_log, nl=False)))
            if codes[-1] == INTERRUPTED:
                break
        ctx.exit(max(codes))
    if env:
        raise UserError("--env is for a job; it needs --address http://HOST:8265")
    if detach:
        from orchestrator.driver.detach import submit_detached

        submit_detached(opened, [*passed_on, *(["--address", str(here.ray_address)] if address else [])], say)
        return
    codes, reports = [], []
    for suite in opened:
        if budget is not None and budget <= 0.0:
            say(f"Suite {suite.name}: the budget is spent; nothing was started.")
            reports += suite.reports()
            continue
        submitted = suite.submit(say, prune=prune, budget=budget, images_per_s=images_per_s, since=waiting_since)
        budget = None if budget is None else budget - submitted.hours
        codes.append(submitted.exit_code)
        reports += submitted.reports
        # Ctrl-C is meant for all suites, not for the first alone.
        if submitted.exit_code == INTERRUPTED:
            break
    if reports or form == "json":  # after a Ctrl-C while MLflow is away there are none
        show_reports(reports, form)
    # The worst of 0, 1 and 130.
    ctx.exit(max(codes))


@click.command()
@SOUND_EXPERIMENTS
@FORMAT
def status(experiments: list[Experiment], form: str) -> None:
    """Show how far each row of EXPERIMENT is, why not further, and who runs it now.

    Long reasons are cut, and the logs with the rest of them named; --format json has them whole. Files with mistakes
    are left out and named, and the exit code is 1.
    """
    from orchestrator.driver.lock import holder_of

    opened = suites(experiments)
    tell_home(opened)
    for suite in opened:
        if holder := holder_of(suite):
            say(" ".join(filter(None, (f"Suite {suite.name} is being run by {holder}.", holder.work))))
    show([suite.status(whole=form == "json") for suite in opened], form)


@click.command()
@SOUND_EXPERIMENTS
@FORMAT
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every format here, too, and index.html with all tables and figures.",
)
@click.option(
    "--no-bootstrap", is_flag=True, help="Leave out the intervals; they cost some seconds for each new evaluation."
)
@click.option(
    "--claims",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Judge the sentences of claims.yaml, of the paper's or of FILE; put this behind EXPERIMENT.",
)
@click.option("--rows", is_flag=True, help="Show every row, of tables that would be shown as a matrix, too.")
@click.option("--misalignment", is_flag=True, help="Show what scores say of placement: correlations, oracles, losses.")
@click.option("--classes", is_flag=True, help="Show AP of each class, of rows side by side.")
@click.option("--row", "label", metavar="LABEL", help="With --classes: one row, with intervals.")
@click.option("--by-ap", is_flag=True, help="With --classes: those of least AP first.")
def report(
    experiments: list[Experiment],
    form: str,
    output: Path | None,
    no_bootstrap: bool,
    claims: str | None,
    rows: bool,
    misalignment: bool,
    classes: bool,
    label: str | None,
    by_ap: bool,
) -> None:
    """Print the results tables of EXPERIMENT, or what they and the paper's own say to its claims, with its errata.

    Files with mistakes are left out and named, and the exit code is 1.

    With --classes, AP of each class: a table with AP of several rows, or of one --row with its intervals and its
    difference to the reference. --format json has all numbers of each class and row.
    """
    from orchestrator.report.claims.errata import errata, errata_table
    from orchestrator.report.claims.evidence import counts_from, papers_numbers
    from orchestrator.report.claims.file import find_claims, load_claims
    from orchestrator.report.claims.ledger import claims_table, judge
    from orchestrator.report.classes.table import tables_of
    from orchestrator.report.files import write_reports

    if classes and no_bootstrap:
        raise UserError("--classes rests on what the intervals are made of; leave out --no-bootstrap")
    if (label or by_ap) and not classes:
        raise UserError("--row and --by-ap are for --classes")
    if output is not None:
        _require_own_files(experiments)
    known = list(dict.fromkeys(row.label for one in experiments for row in one.rows))
    if label is not None and label not in known:
        raise UserError(f"--row {label!r} is no row; {suggestion(label, known)}")
    listed, paper = None, None
    judged: dict[str, Table] = {}
    if claims is not None:
        # Read first: a mistake in it should not wait for the intervals.
        file = Path(claims) if claims else find_claims([one.path for one in experiments])
        listed = load_claims(file, experiments)
        paper = papers_numbers(listed, experiments)
    reports = []
    opened = suites(experiments)
    tell_home(opened)
    for suite in opened:
        of_suite = suite.reports(bootstrap=not no_bootstrap, by_size=listed is not None)  # claims speak of sizes
        if rows:
            of_suite = [replace(one, table=replace(one.table, compact=None)) for one in of_suite]
        reports += of_suite
        if listed is not None and paper is not None:
            tables = {one.experiment.name: one.rows for one in of_suite}
            judgements = judge(listed, tables, paper, counts_from(suite.uri, suite.ledger))
            name = f"claims_{suite.name}" if judged else "claims"
            judged[name] = claims_table(judgements, tables, suite.experiments)
    if listed is not None and paper is not None:
        found = errata(listed, paper)
        judged |= {"errata": errata_table(found)} if found else {}
        show([*judged.values()], form)
    elif classes:
        show(tables_of([(one.experiment.name, one.classes) for one in reports], label, by_ap=by_ap), form)
    elif misalignment:
        show([one.misalignment for one in reports], form)
    else:
        show_reports(reports, form)
    if output is not None:
        try:
            write_reports(output, reports, judged)
        except OSError as error:
            raise UserError(f"--output: cannot write to {output} ({error.strerror}); name another folder") from error
        say(f"written to {output}")


def _require_own_files(experiments: list[Experiment]) -> None:
    """Refuse tables whose files would be written over each other."""
    first: dict[str, Experiment] = {}
    for one in experiments:
        other = first.setdefault(one.name, one)
        if other is not one:
            raise UserError(
                f"--output: {other.path} of suite {other.suite} and {one.path} of suite {one.suite} are both called "
                f"{one.name!r}, and so would their files be; write each suite to a folder of its own"
            )


@click.command()
@EXPERIMENTS
@click.option("--row", "label", required=True, help="The label of a row.")
@click.option("--over", "other", required=True, metavar="TEXT", help="The label of the row to compare it with.")
@click.option("--metric", type=click.Choice(["AP", "AP50", "AP75"]), default="AP", show_default=True)
@click.option(
    "--images",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Name so many images that decide; 0 is much quicker.",
)
@FORMAT
def compare(experiments: list[Experiment], label: str, other: str, metric: str, images: int, form: str) -> None:
    """Show by how much one row is above another, of one table of EXPERIMENT or of two, and which images decide it.

    A results table compares its rows with its reference; this compares any two, over the seeds that both have.
    """
    opened = suites(experiments)
    if len(opened) > 1:
        names = ", ".join(suite.name for suite in opened)
        raise UserError(f"rows of one suite are compared, and these files are of {names}; name those of one")
    found = opened[0].compare(label, other, metric=metric, images=images > 0)
    show([found.to_table(most=images)], form)


@click.command()
@EXPERIMENTS
@click.option("--row", "label", required=True, help="The label of the row to train.")
@click.option("--seed", type=int, help="One of the row's seeds; the first if not given.")
@FORMAT
@when_interrupted(GOES_ON)
def run(experiments: list[Experiment], label: str, seed: int | None, form: str) -> None:
    """Train and score one row in this process, to debug it.

    Neither Ray nor MLflow takes part; the checkpoints stay under RNC_HOME/local.
    """
    from orchestrator.worker.local import run_row

    show([run_row(experiments, label, seed, site(), say)], form)


@click.command()
@click.argument("pattern", default="")
@FORMAT
def settings(pattern: str, form: str) -> None:
    """List what an EXPERIMENT can set: type, default, what a change costs, meaning.

    With PATTERN those alone whose name or meaning has it, such as nms, or fits it, such as "train.*.weight*".
    """
    from orchestrator.experiment.settings_table import settings_table

    show([settings_table(pattern)], form)


VERBS = (plan, submit, status, report, compare, run, settings)
