"""From experiments to tables: plan, prepare, launch, record, report."""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from orchestrator.checkpoint.registry import register_best
from orchestrator.cluster.capacity import local_cluster, require_plan_fits
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.driver.cancel import forget_stops, prune_trainings
from orchestrator.driver.live import live_view, onlooker
from orchestrator.driver.lock import locked
from orchestrator.driver.repair import repair
from orchestrator.errors import INTERRUPTED, Say
from orchestrator.experiment.plan import Plan
from orchestrator.experiment.prepare import prepare
from orchestrator.report.files import Report, make_reports, table_files, write_reports
from orchestrator.report.pages import show_suite, why_no_views
from orchestrator.tracking.ledger import log_table, name_seeds, place_evaluations
from orchestrator.tracking.suite import Suite


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """How a submit ended."""

    exit_code: int
    """0 if all is measured or was stopped by its search, 1 if a row failed or a table is left out, 130 after Ctrl-C."""
    reports: list[Report]
    """What is measured by now, a report a table; those whose results rest on two versions of the data are left out."""

    def _repr_html_(self) -> str:
        """What a notebook shows: all tables."""
        return "\n".join(report.table.to_html() for report in self.reports)


def submit(suite: Suite, say: Say, *, prune: bool = False) -> Submitted:
    """Run what a suite lacks, record it, write its tables.

    With `prune`, trainings that no row asks for any more are ended first.

    Raises:
        UserError: something that must be right before the start is not; nothing was started.
    """
    suite.connect()
    if prune:
        prune_trainings(suite, say)
    with ExitStack() as stack:
        # With a look at files, as a run whose files were deleted has to be made again.
        if not suite.make_plan(verified=True).is_complete:
            try:
                with onlooker(suite, say) as waiting:
                    stack.enter_context(locked(suite, waiting))
            except KeyboardInterrupt:
                suite.refresh()
                return Submitted(exit_code=INTERRUPTED, reports=make_reports(suite, say=say))
            suite.refresh()  # whoever had the lock before may have done some of it
        repair(suite, say)
        plan, exit_code = suite.make_plan(), 0
        name_seeds(suite.connection, suite.mlflow_runs, plan.trainings.values())
        if plan.is_complete:
            say(_complete(plan))
        else:
            exit_code = _run(plan, suite, say)
            suite.refresh()
        reports = _conclude(suite, say, registers=exit_code != INTERRUPTED)
        if len(reports) < len(suite.experiments):
            exit_code = max(exit_code, 1)
        return Submitted(exit_code=exit_code, reports=reports)


def check(suite: Suite, say: Say) -> Plan:
    """Find what would stop a submit, as far as seconds can tell; return its plan.

    Raises:
        UserError: something that must be right before the start is not.
    """
    suite.connect(create=False)
    plan = suite.make_plan()
    if suite.site.ray_address is None:
        require_plan_fits(plan, local_cluster())
    prepare(plan, suite.ledger, suite.site, say, check_images=False)
    return plan


def _run(plan: Plan, suite: Suite, say: Say) -> int:
    """Train and score what the plan lacks, and return the exit code."""
    site = suite.site
    forget_stops(suite.connection)
    say(
        f"To do: {len(plan.missing_trainings)} of {len(plan.trainings)} trainings, "
        f"{len(plan.missing_evaluations)} of {len(plan.evaluations)} evaluations."
    )
    if site.ray_address is None:
        require_plan_fits(plan, local_cluster())
    # Checked before Ray, whose start alone takes 8 to 20 s.
    prepare(plan, suite.ledger, site, say)
    set_ray_environment(is_local=site.ray_address is None)  # Ray reads it when it is imported
    from orchestrator.cluster.connect import start_ray, stop_ray
    from orchestrator.driver.launch import launch
    from orchestrator.worker.trainer import why_public

    started = time.monotonic()
    try:
        start_ray(site)
        say(f"Ray is up after {time.monotonic() - started:.0f} s.")
        if why := why_public():
            say(f"Trainings take Ray's public trainer, which starts some seconds later than the lean one: {why}.")
        with live_view(sys.stderr) as show:
            outcome = launch(plan, site, suite.connection.uri, show=show)
    finally:
        stop_ray()
    for ending in outcome.endings:
        if ending.state != "finished":
            reason = ending.error or ending.state
            say(f"{ending.label}: {reason}{f' (log: {ending.log})' if ending.log else ''}")
        elif ending.startup_s is not None:
            say(f"{ending.label}: first update {ending.startup_s:.1f} s after its trial began")
    return outcome.exit_code


def _conclude(suite: Suite, say: Say, *, registers: bool) -> list[Report]:
    """Write the results tables as files and into MLflow, say where they are, and register the best checkpoint.

    What stands there already is left as it is. A table whose results rest on two versions of the data is named and
    left out: the work is done, and the other tables are sound.
    """
    if place_evaluations(suite.connection, suite.mlflow_runs, suite.wanted.evaluations.values()):
        suite.refresh()
    reports = make_reports(suite, say=say)
    folder = suite.site.home / "reports" / suite.name
    write_reports(folder, reports)
    for report in reports:
        log_table(suite.connection, suite.mlflow_runs, report.experiment.name, table_files(report))
    for name, link in show_suite(suite).items():
        say(f"{name} in MLflow: {link}")
    if why := why_no_views(suite.connection.uri):
        say(why)
    say(f"tables as files: {folder}")
    if registers:
        register_best(suite, say)
    suite.refresh()  # tables and notes were written; who asks next, such as a notebook, reads them
    return reports


def _complete(plan: Plan) -> str:
    stopped = len(plan.stopped_trainings)
    unscored = sum(len(plan.evaluations_on(key)) for key in plan.stopped_trainings)
    text = f"{len(plan.trainings) - stopped} trainings and {len(plan.evaluations) - unscored} evaluations stand"
    return f"Nothing is missing: {text}{f', {stopped} were stopped early' if stopped else ''}."
