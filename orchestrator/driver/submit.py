"""From experiments to tables: plan, prepare, launch, record, report."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from orchestrator.checkpoint.registry import register_best
from orchestrator.cluster.capacity import local_cluster, require_plan_fits
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.driver.cancel import forget_stops
from orchestrator.driver.cancel import prune as prune_suite
from orchestrator.driver.lock import my_turn, onlooker
from orchestrator.driver.repair import _repair
from orchestrator.errors import INTERRUPTED, Say
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.experiment.prepare import prepare
from orchestrator.report.files import Report, make_reports, report_suite, table_files, write_reports
from orchestrator.report.pages import show_suite
from orchestrator.site import Site
from orchestrator.tracking.ledger import check_plan, ledger_of, log_table, name_seeds, place_evaluations, read_ledger
from orchestrator.tracking.runs import Run
from orchestrator.tracking.server import tracking_server
from orchestrator.tracking.suite import Tracking, open_suite, read_runs


def submit(experiments: Sequence[Experiment], site: Site, say: Say, *, prune: bool = False) -> tuple[int, list[Report]]:
    """Run what a suite lacks, record it, write its tables; returns the exit code and what was measured.

    With `prune`, trainings that no row asks for any more are ended first.

    Raises:
        UserError: something that must be right before the start is not; nothing was started.
    """
    uri = tracking_server(site)
    suite = open_suite(uri, experiments[0].suite)
    if prune:
        prune_suite(experiments, suite, site, say)
    runs = read_runs(suite)
    ledger = ledger_of(runs)
    plan = make_plan(experiments, ledger)
    if _is_complete(make_plan(experiments, check_plan(uri, ledger, plan))):
        return _run_missing(experiments, suite, site, say, checked=runs)
    with ExitStack() as stack:
        try:
            with onlooker(experiments, suite, say) as waiting:
                stack.enter_context(my_turn(suite, site, waiting))
        except KeyboardInterrupt:
            return INTERRUPTED, report_suite(experiments, site)
        return _run_missing(experiments, suite, site, say)


def _run_missing(
    experiments: Sequence[Experiment],
    suite: Tracking,
    site: Site,
    say: Say,
    *,
    checked: Sequence[Run] | None = None,
) -> tuple[int, list[Report]]:
    """Do what is missing; `checked` are the suite's runs, if they were read just now and hold their files."""
    num_mended = _repair(experiments, suite, site, say, runs=checked)
    runs = read_runs(suite) if checked is None or num_mended else checked
    ledger = ledger_of(runs)
    plan = make_plan(experiments, ledger)
    name_seeds(suite, runs, plan.trainings.values())
    if _is_complete(plan):
        say(_complete(plan))
        return 0, _conclude(plan, suite, runs, site, say)
    forget_stops(suite)
    say(
        f"To do: {len(plan.missing_trainings)} of {len(plan.trainings)} trainings, "
        f"{len(plan.missing_evaluations)} of {len(plan.evaluations)} evaluations."
    )
    exit_code = _run(plan, ledger, site, suite.uri, say)
    return exit_code, _conclude(plan, suite, read_runs(suite), site, say, registers=exit_code != INTERRUPTED)


def check(experiments: Sequence[Experiment], site: Site, say: Say) -> tuple[Plan, str]:
    """Find what would stop a submit, as far as seconds can tell; return its plan and the address of MLflow.

    Raises:
        UserError: something that must be right before the start is not.
    """
    uri = tracking_server(site)
    suite = open_suite(uri, experiments[0].suite, create=False)
    ledger = read_ledger(suite)
    plan = make_plan(experiments, ledger)
    if site.ray_address is None:
        require_plan_fits(plan, local_cluster())
    prepare(plan, ledger, site, say, check_images=False)
    return plan, uri


def _conclude(
    plan: Plan, suite: Tracking, runs: Sequence[Run], site: Site, say: Say, *, registers: bool = True
) -> list[Report]:
    """Write the results tables as files and into MLflow, say where they are, and register the best checkpoint.

    What stands there already is left as it is.
    """
    if place_evaluations(suite, runs, plan.evaluations.values()):
        runs = read_runs(suite)
    reports = make_reports(plan.experiments, ledger_of(runs), suite.uri, site)
    folder = site.home / "reports" / suite.suite
    write_reports(folder, reports)
    for report in reports:
        log_table(suite, runs, report.experiment.name, table_files(report))
    for name, link in show_suite(suite, runs, plan.experiments).items():
        say(f"{name} in MLflow: {link}")
    say(f"tables as files: {folder}")
    if registers:
        register_best(suite, runs, say)
    return reports


def _complete(plan: Plan) -> str:
    stopped = len(plan.stopped_trainings)
    unscored = sum(len(plan.evaluations_on(key)) for key in plan.stopped_trainings)
    text = f"{len(plan.trainings) - stopped} trainings and {len(plan.evaluations) - unscored} evaluations stand"
    return f"Nothing is missing: {text}{f', {stopped} were stopped early' if stopped else ''}."


def _is_complete(plan: Plan) -> bool:
    return not (plan.missing_trainings or plan.missing_evaluations)


def _run(plan: Plan, ledger: Ledger, site: Site, uri: str, say: Say) -> int:
    if site.ray_address is None:
        require_plan_fits(plan, local_cluster())
    prepare(plan, ledger, site, say)
    set_ray_environment(is_local=site.ray_address is None)
    from orchestrator.cluster.connect import start_ray, stop_ray
    from orchestrator.driver.launch import launch
    from orchestrator.driver.live import live_view

    started = time.monotonic()
    try:
        start_ray(site)
        say(f"Ray is up after {time.monotonic() - started:.0f} s.")
        with live_view(sys.stderr) as show:
            outcome = launch(plan, site, uri, show=show)
    finally:
        stop_ray()
    for ending in outcome.endings:
        if ending.state != "finished":
            reason = ending.error or ending.state
            say(f"{ending.label}: {reason}{f' (log: {ending.log})' if ending.log else ''}")
        elif ending.startup_s is not None:
            say(f"{ending.label}: first update {ending.startup_s:.1f} s after its trial began")
    return outcome.exit_code
