"""The verbs of `rnc` that look after a suite: cancel, logs, gc, verify, repair, ui, doctor."""

import sys
from functools import partial

import click

from orchestrator.cli.options import (
    EXPERIMENTS,
    FORMAT,
    SOUND_EXPERIMENTS,
    bar,
    experiments_argument,
    override_words,
    say,
    show,
    site,
    suites,
    tell_home,
)
from orchestrator.cli.terminal import print_line, print_log, screen_columns
from orchestrator.cluster.environment import is_jobs_address
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, find_row
from orchestrator.site import Site


@click.command()
@SOUND_EXPERIMENTS
@click.option("--row", "label", required=True, help="The label of the row to end.")
@click.option("--seed", type=int, help="One of the row's seeds; all of them if not given.")
def cancel(experiments: list[Experiment], label: str, seed: int | None) -> None:
    """End the training of a row that a submit in another terminal runs.

    Its checkpoints stay, the other rows go on, and the next submit takes it up from its last checkpoint.
    """
    experiment, _ = find_row(experiments, label, seed)
    (suite,) = suites([one for one in experiments if one.suite == experiment.suite])
    suite.cancel(label, seed, say=print_line)


@click.command()
@SOUND_EXPERIMENTS
@click.option("--row", "label", help="The label of the row.")
@click.option("--seed", type=int, help="One of the row's seeds; the first if not given.")
@click.option("--follow", is_flag=True, help="Go on with what is added, until the training ends.")
@click.option("--address", help="A cluster, http://HOST:8265, whose job's log is printed.")
def logs(experiments: list[Experiment], label: str | None, seed: int | None, follow: bool, address: str | None) -> None:
    """Print what the training of a row wrote: its last metrics, its errors, and its log in sentences.

    The log itself is training.jsonl in the training's folder below RNC_HOME, a JSON object for each event.

    With an --address, or one in RAY_ADDRESS, that is http:// or https://, print the log of the suite's last job on
    that cluster, or with --row the lines of it that name the row.
    """
    from orchestrator.driver.logs import print_logs

    address = site(address).ray_address
    if is_jobs_address(address):
        from orchestrator.cluster.jobs import print_job_log

        for suite in suites(experiments):
            print_job_log(suite.experiments, label, str(address), partial(print_log, nl=False), follow=follow)
        return
    if label is None:
        raise UserError("--row is missing; name the row whose training is asked for")
    print_logs(experiments, label, seed, site(), print_log, say, follow=follow)


@click.command()
@EXPERIMENTS
@FORMAT
@click.option("--delete", "deletes", is_flag=True, help="Free it; without this nothing is touched.")
def gc(experiments: list[Experiment], form: str, deletes: bool) -> None:
    """Show which checkpoints and caches no table, alias or pin needs, and free them with --delete.

    Checkpoints to resume from go once their training is finished; weights in MLflow only where no row of these files,
    no other table of the suite, no alias of the model registry and no tag `pin` of the run asks for them.
    """
    opened = suites(experiments)
    tell_home(opened)
    show([table for suite in opened for table in suite.gc(delete=deletes)], form)


@click.command()
@EXPERIMENTS
@click.pass_context
def verify(ctx: click.Context, experiments: list[Experiment]) -> None:
    """Read every file of the suites of EXPERIMENT against its digest.

    Checkpoints on the storage (weights, state to resume from, card), and all that MLflow holds of finished trainings
    and evaluations. Nothing is written; what somebody trains just now is left out. Each damaged file is named with what
    mends it: `rnc repair --deep`. Files that an earlier version recorded without a digest are compared by size.

    The exit code is 0 if all are sound, 1 if any is damaged, and 2 for a mistake in the call.
    """
    opened = suites(experiments)
    tell_home(opened)
    with bar("files", "bytes") as progress:
        sound = [suite.verify(say=print_line, progress=progress) for suite in opened]
    if not all(sound):
        say("`rnc repair --deep` with the same files does what the lines say; the next submit makes the rest again.")
        ctx.exit(1)


@click.command()
@EXPERIMENTS
@click.option("--dry-run", is_flag=True, help="Only say what is wrong.")
@click.option("--deep", is_flag=True, help="Also read every file against its digest, as `rnc verify` does.")
def repair(experiments: list[Experiment], dry_run: bool, deep: bool) -> None:
    """Mend what killed processes, damaged and deleted files, and edits in MLflow left behind.

    Runs that say RUNNING and that nobody works on are closed; metrics that wait on this side are sent; weights that
    MLflow lost are stored again from the last checkpoint; trainings whose last checkpoint is damaged are set back to
    the newest sound one; tags that somebody edited are written anew; what else lost its files or its numbers is marked,
    and made again by the next submit. Every submit does the same by itself, but for --deep, which finds files that
    changed and kept their size.
    """
    with bar("files", "bytes") as progress:
        number = sum(
            suite.repair(say=say, dry_run=dry_run, deep=deep, progress=progress) for suite in suites(experiments)
        )
    click.echo(f"{number} to mend." if dry_run else f"{number} mended." if number else "Nothing to mend.")


@click.command()
@experiments_argument(required=False, only_sound=True)
@click.option("--open", "opens", is_flag=True, help="Open the first address in a browser.")
@click.option("--stop", is_flag=True, help="End the server instead, if no submit records in it.")
def ui(experiments: list[Experiment], opens: bool, stop: bool) -> None:
    """Start the MLflow UI, or find the one that runs.

    With EXPERIMENT, print where it shows their tables, charts and training curves.
    """
    from orchestrator.tracking.server import stop_server, tracking_server, unused_server

    if stop:
        with unused_server(site()) as is_unused:
            if not is_unused:
                raise UserError(_used(site()))
            click.echo("The server has ended." if stop_server(site()) else "No server was running.")
        return
    from orchestrator.report.views import front_page

    uri = tracking_server(site())
    found = [(name, link) for suite in suites(experiments) for name, link in suite.links().items()]
    for name, link in found:
        print_line(f"{name}: {link}")
    if not found:
        found = [("", front_page(uri))]
        click.echo(found[0][1])
    if opens:
        click.launch(found[0][1])
    click.echo("The server stays until `rnc ui --stop`.", err=True)


def _used(here: Site) -> str:
    """Say that a submit's results would wait for the server, or find another one at its address."""
    from orchestrator.driver.lock import running_here

    # None has signed yet of those that begin, or that write the tables of what has run already.
    named = ", ".join(f"{suite} ({holder})" for suite, holder in running_here(here).items())
    return (
        f"the server takes the results of a submit that is running{': ' if named else ''}{named}; wait for its end, or "
        "end it with Ctrl-C or SIGTERM, after which the next submit goes on"
    )


@click.command()
@experiments_argument(required=False)
@FORMAT
@click.option("--address", help="A Ray cluster, instead of RAY_ADDRESS: http://HOST:8265 to send a job, else to join.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="For the environment of a job; repeat it.")
@click.pass_context
def doctor(
    ctx: click.Context, experiments: list[Experiment], form: str, address: str | None, env: tuple[str, ...]
) -> None:
    """Check machines, storage, data and services before GPU time is spent.

    Looks from here, and from every node of the cluster if one is named: packages (pyproject.toml bounds them so that
    releases with known vulnerabilities stay out), GPUs and whether nodes reach one another, shared memory, disks,
    clocks, the storage and its speed, MLflow and whether it can be written to, data and weights and whether they are
    the same everywhere, and what listens without a key. With EXPERIMENT, what these need. Everything that is written
    for it is deleted again.

    Green is right, yellow deserves a look, red stops trainings or spoils their numbers. The exit code is 0 without red,
    1 with, and 2 for a mistake in the call.
    """
    from orchestrator.doctor.finding import SEEN_BROKEN, SEEN_WIDTH, exit_code, findings_table

    here = site(address)
    if is_jobs_address(here.ray_address):
        from orchestrator.cluster.jobs import Remote, run_job

        remote = Remote(address=str(here.ray_address), env=env, options=("--format", form, *override_words(ctx)))
        printed: list[str] = []
        tell = printed.append if form == "json" else partial(print_log, nl=False)
        code = run_job("doctor", experiments, remote, say, tell)
        if printed:  # a job's output and what it says beside it come as one
            beside, _, tables = "".join(printed).partition("\n[{")
            click.echo(f"[{{{tables}" if tables else beside, nl=False, err=not tables)
        ctx.exit(code)
    if env:
        raise UserError("--env is for a job; it needs --address http://HOST:8265")
    from orchestrator.doctor.diagnose import diagnose

    findings = diagnose(experiments, here, say)
    most = SEEN_WIDTH if screen_columns(sys.stdout) is None else SEEN_BROKEN
    show([findings_table(findings, for_people=form == "text", most=most)], form)
    ctx.exit(exit_code(findings))


VERBS = (cancel, logs, gc, verify, repair, ui, doctor)
