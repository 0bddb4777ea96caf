"""The command `rnc`: each verb parses, calls one function and prints one thing."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.checkpoint_verbs import VERBS
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, load_experiments
from orchestrator.job_environment import is_jobs_address, require_cluster_settings
from orchestrator.page import FORMATS, html_page, render
from orchestrator.plan import make_plan
from orchestrator.site import Site, site_from_environment
from orchestrator.table import Table

if TYPE_CHECKING:
    from orchestrator.report import Report

BAD_INPUT = 2
INTERRUPTED = 130


class _Verbs(click.Group):
    """Shows what a user can mend as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("Interrupted. What is recorded stays; the same command goes on from there.", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"error: {error.filename}: the disk is full; free some, or set RNC_HOME to another", err=True)
            ctx.exit(BAD_INPUT)


def _experiments(ctx: click.Context, parameter: click.Parameter, paths: Sequence[str]) -> list[Experiment]:
    return load_experiments(paths) if paths else []


EXPERIMENTS = click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...", callback=_experiments)
FORMAT = click.option("--format", "form", type=click.Choice(FORMATS), default="text", help="How tables are printed.")


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="retinanet-conf")
def cli() -> None:
    """Run the experiments of the RetinaNet-Conf paper, and your own, on a Ray cluster.

    An EXPERIMENT is a YAML file, one table of the paper; a folder stands for the files in it.

    \b
      rnc plan experiments/paper        what would it cost?
      rnc submit experiments/miniature  train and score what is missing
      rnc report experiments/miniature  print the tables
      rnc ui                            browse everything in MLflow

    \b
    Environment (everything works with none of it set):
      RNC_HOME             data, records and checkpoints (default: ./runs)
      RNC_COCO_ROOT        COCO 2017: train2017/ val2017/ annotations/
      RNC_WEIGHTS          a folder of pretrained weights
      MLFLOW_TRACKING_URI  an MLflow server (default: one of our own, on localhost)
      RAY_ADDRESS          a Ray cluster (default: this machine)
    """


@cli.command()
@EXPERIMENTS
@FORMAT
@click.option("--gpus", type=click.IntRange(min=1), help="How many hours would it take on this many GPUs?")
@click.option(
    "--images-per-s",
    type=click.FloatRange(min=0, min_open=True),
    help="Training throughput of one GPU (or CPU worker), where none was measured.",
)
@click.option("--verbose", is_flag=True, help="List every evaluation: where it is shown, and why it is missing.")
@click.option("--quick", is_flag=True, help="Do not look whether MLflow still holds the files of what stands.")
def plan(
    experiments: list[Experiment],
    form: str,
    gpus: int | None,
    images_per_s: float | None,
    verbose: bool,
    quick: bool,
) -> None:
    """Show what EXPERIMENT would train and score, how long that takes, and how much disk. Starts nothing."""
    from orchestrator.estimate import estimate
    from orchestrator.plan_table import evaluations_table, plan_table, plans_json
    from orchestrator.submit import checked_suite, read_suite

    site = _site()
    plans = []
    for suite, group in _by_suite(experiments).items():
        ledger = read_suite(suite, site) if quick else checked_suite(group, site)
        one = make_plan(group, ledger)
        cpus = float(os.cpu_count() or 1)
        time = estimate(one, ledger, site.num_images, gpus=gpus, cpus=cpus, images_per_s=images_per_s)
        plans.append((one, time))
    if form == "json":
        click.echo(json.dumps(plans_json(plans), indent=2))
        return
    tables = [[plan_table(one, time), *([evaluations_table(one)] if verbose else [])] for one, time in plans]
    _print([table for of_suite in tables for table in of_suite], form)


@cli.command()
@EXPERIMENTS
@FORMAT
@click.option("--address", help="A Ray cluster, instead of RAY_ADDRESS: http://HOST:8265 to send a job, else to join.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="For the environment of a job; repeat it.")
@click.option("--prune", is_flag=True, help="First end trainings that no row of these tables asks for any more.")
@click.option("--detach", is_flag=True, help="Go on in the background, without this terminal.")
@click.pass_context
def submit(
    ctx: click.Context,
    experiments: list[Experiment],
    form: str,
    address: str | None,
    env: tuple[str, ...],
    prune: bool,
    detach: bool,
) -> None:
    """Train and score what is missing of EXPERIMENT.

    Trainings run as Ray Train jobs that Ray Tune schedules, and are recorded in MLflow; then the tables are printed.
    What stands in MLflow already is not run again. Ctrl-C stops cleanly, and the next submit goes on from the last
    checkpoints. A suite that somebody else submits already is looked on at, and taken over when that submit ends.

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
    from orchestrator.submit import submit as submit_suite

    site = _site()
    if address:
        site = replace(site, ray_address=address)
    if is_jobs_address(site.ray_address):
        from orchestrator.jobs import Remote, submit_job

        options = ["--format", form, *(["--prune"] if prune else [])]
        remote = Remote(address=str(site.ray_address), env=env, options=tuple(options), detach=detach)
        codes = []
        for group in _by_suite(experiments).values():
            codes.append(submit_job(group, remote, _say, lambda text: click.echo(text, nl=False)))
            if codes[-1] == INTERRUPTED:
                break
        ctx.exit(max(codes))
    if env:
        raise UserError("--env is for a job; it needs --address http://HOST:8265")
    if detach:
        from orchestrator.detach import submit_detached

        options = ["--format", form, *(["--address", address] if address else []), *(["--prune"] if prune else [])]
        submit_detached(list(_by_suite(experiments).values()), site, options, _say)
        return
    codes = []
    for group in _by_suite(experiments).values():
        codes.append(submit_suite(group, site, _say, prune=prune))
        if codes[-1] == INTERRUPTED:
            break
    _print_results(experiments, site, form)
    ctx.exit(max(codes))


@cli.command()
@EXPERIMENTS
@FORMAT
def status(experiments: list[Experiment], form: str) -> None:
    """Show how far each row of EXPERIMENT is, and why not further.

    Long reasons are cut, and the logs with the rest of them named; --format json has them whole.
    """
    from orchestrator.status import status_table
    from orchestrator.submit import read_suite

    site = _site()
    ledgers = {suite: read_suite(suite, site) for suite in _by_suite(experiments)}
    plans = [make_plan(group, ledgers[suite]) for suite, group in _by_suite(experiments).items()]
    whole = form == "json"
    _print([status_table(p, ledgers[p.suite], None if whole else site.storage / p.suite) for p in plans], form)


@cli.command()
@EXPERIMENTS
@FORMAT
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every format here, too, and index.html with all tables and figures.",
)
@click.option("--no-bootstrap", is_flag=True, help="Leave out the intervals; they cost a second for a new evaluation.")
@click.option(
    "--claims",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Judge the sentences of claims.yaml, of the paper's or of FILE; put this behind EXPERIMENT.",
)
def report(
    experiments: list[Experiment], form: str, output: Path | None, no_bootstrap: bool, claims: str | None
) -> None:
    """Print the results tables of EXPERIMENT, or what they say to the claims of the paper."""
    from orchestrator.claims import claims_table, find_claims, judge, load_claims
    from orchestrator.report import write_reports
    from orchestrator.submit import report_suite

    site, judged = _site(), []
    listed = None
    if claims is not None:
        listed = load_claims(Path(claims) if claims else find_claims([one.path for one in experiments]))
    reports = []
    for group in _by_suite(experiments).values():
        of_suite = report_suite(group, site, bootstrap=not no_bootstrap)
        reports += of_suite
        if listed is not None:
            judged.append(claims_table(judge(listed, {one.experiment.name: one.rows for one in of_suite})))
    if judged:
        _print(judged, form)
    else:
        _print_reports(reports, form)
    if output is not None:
        try:
            write_reports(output, reports, judged)
        except OSError as error:
            raise UserError(f"--output: cannot write to {output} ({error.strerror}); name another folder") from error
        _say(f"written to {output}")


@cli.command()
@EXPERIMENTS
@click.option("--row", "label", required=True, help="The label of the row to train.")
@click.option("--seed", type=int, help="One of the row's seeds; the first if not given.")
@FORMAT
def run(experiments: list[Experiment], label: str, seed: int | None, form: str) -> None:
    """Train and score one row in this process, to debug it.

    Neither Ray nor MLflow takes part; the checkpoints stay under RNC_HOME/local.
    """
    from orchestrator.local import run_row

    _print([run_row(experiments, label, seed, _site(), _say)], form)


@cli.command()
@EXPERIMENTS
@click.option("--row", "label", required=True, help="The label of the row to end.")
@click.option("--seed", type=int, help="One of the row's seeds; all of them if not given.")
def cancel(experiments: list[Experiment], label: str, seed: int | None) -> None:
    """End the training of a row that a submit in another terminal runs.

    Its checkpoints stay, the other rows go on, and the next submit takes it up from its last checkpoint.
    """
    from orchestrator.cancel import cancel_row

    cancel_row(experiments, label, seed, _site(), click.echo)


@cli.command()
@EXPERIMENTS
@click.option("--row", "label", help="The label of the row.")
@click.option("--seed", type=int, help="One of the row's seeds; the first if not given.")
@click.option("--follow", is_flag=True, help="Go on with what is added, until the training ends.")
@click.option("--address", help="A cluster, http://HOST:8265, whose job's log is printed.")
def logs(experiments: list[Experiment], label: str | None, seed: int | None, follow: bool, address: str | None) -> None:
    """Print what the training of a row wrote: its log, its last metrics, and its errors.

    With an --address, or one in RAY_ADDRESS, that is http:// or https://, print the log of the suite's last job on
    that cluster, or with --row the lines of it that name the row.
    """
    from orchestrator.logs import print_logs

    address = address or _site().ray_address
    if is_jobs_address(address):
        from orchestrator.jobs import print_job_log

        for group in _by_suite(experiments).values():
            print_job_log(group, label, str(address), lambda text: click.echo(text, nl=False), follow=follow)
        return
    if label is None:
        raise UserError("--row is missing; name the row whose training is asked for")
    print_logs(experiments, label, seed, _site(), click.echo, follow=follow)


@cli.command()
@EXPERIMENTS
@FORMAT
@click.option("--delete", "deletes", is_flag=True, help="Free it; without this nothing is touched.")
def gc(experiments: list[Experiment], form: str, deletes: bool) -> None:
    """Show which checkpoints and caches no table, alias or pin needs, and free them with --delete.

    Checkpoints to resume from go once their training is finished; weights in MLflow only where no row of these files,
    no other table of the suite, no alias of the model registry and no tag `pin` of the run asks for them.
    """
    from orchestrator.submit import collect_garbage

    site = _site()
    groups = _by_suite(experiments).values()
    _print([table for group in groups for table in collect_garbage(group, site, deletes=deletes)], form)


@cli.command()
@EXPERIMENTS
@click.option("--dry-run", is_flag=True, help="Only say what is wrong.")
def repair(experiments: list[Experiment], dry_run: bool) -> None:
    """Mend what killed processes and deleted files left behind in MLflow.

    Runs that say RUNNING and that nobody works on are closed; metrics that wait on this side are sent; weights that
    MLflow lost are stored again from the last checkpoint; what else lost its files is marked, and made again by the
    next submit. Every submit does the same by itself.
    """
    from orchestrator.submit import repair_suite

    site = _site()
    number = sum(repair_suite(group, site, _say, dry_run=dry_run) for group in _by_suite(experiments).values())
    click.echo(f"{number} to mend." if dry_run else f"{number} mended." if number else "Nothing to mend.")


@cli.command()
@click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...", callback=_experiments)
@click.option("--open", "opens", is_flag=True, help="Open the first address in a browser.")
@click.option("--stop", is_flag=True, help="End the server instead.")
def ui(experiments: list[Experiment], opens: bool, stop: bool) -> None:
    """Start the MLflow UI, or find the one that runs.

    With EXPERIMENT, print where it shows their tables, charts and training curves.
    """
    from orchestrator.server import stop_server, tracking_server

    if stop:
        click.echo("The server has ended." if stop_server(_site()) else "No server was running.")
        return
    from orchestrator.browse import suite_links
    from orchestrator.views import front_page

    uri = tracking_server(_site())
    found = [
        (name, link) for group in _by_suite(experiments).values() for name, link in suite_links(uri, group).items()
    ]
    for name, link in found:
        click.echo(f"{name}: {link}")
    if not found:
        found = [("", front_page(uri))]
        click.echo(found[0][1])
    if opens:
        click.launch(found[0][1])
    click.echo("The server stays until `rnc ui --stop`.", err=True)


for _verb in VERBS:
    cli.add_command(_verb)


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="rnc")


def _site() -> Site:
    require_cluster_settings(os.environ)
    return site_from_environment(os.environ)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _by_suite(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    suites: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        suites.setdefault(experiment.suite, []).append(experiment)
    return suites


def _print_results(experiments: Sequence[Experiment], site: Site, form: str) -> None:
    from orchestrator.submit import report_suite

    suites = _by_suite(experiments).values()
    _print_reports([report for group in suites for report in report_suite(group, site)], form)


def _print_reports(reports: "Sequence[Report]", form: str) -> None:
    from orchestrator.report import reports_page

    if form == "html":
        click.echo(reports_page(reports))
    else:
        _print([report.table for report in reports], form)


def _print(tables: Sequence[Table], form: str) -> None:
    if form == "html":
        click.echo(html_page(tables[0].title, list(tables)))
    elif form == "json":
        click.echo("[" + ",\n".join(table.to_json() for table in tables) + "]")
    else:
        click.echo("\n\n".join(render(table, form) for table in tables))


if __name__ == "__main__":
    main()
