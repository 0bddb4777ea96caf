"""From experiments to tables: plan, prepare, launch, record, report."""

import math
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from model.evaluation import warmup
from orchestrator.checkpoint.registry import register_best
from orchestrator.cluster.capacity import local_cluster, require_plan_fits
from orchestrator.cluster.environment import set_ray_environment
from orchestrator.driver.cancel import Stops, forget_stops, prune_trainings, stopped_since, stops_asked
from orchestrator.driver.live import Show, giving_way, live_view, onlooker, working
from orchestrator.driver.lock import Tell, Work, locked, work_of
from orchestrator.driver.repair.defects import repair
from orchestrator.errors import INTERRUPTED, Say, UserError
from orchestrator.experiment.cost.budget import Part, hours_unit, next_part, require_budget, spent_hours
from orchestrator.experiment.cost.estimate import PlanTime, estimate_time
from orchestrator.experiment.cost.seeds import Asked, Seed, cheapest_seeds, next_seeds
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Plan, lacking, why_training_is_missing
from orchestrator.experiment.prepare import prepare, require_known_data
from orchestrator.figures.table import GAIN, Cell, show
from orchestrator.homes import describe_home, last_home, remember
from orchestrator.process import interruptible
from orchestrator.report.claims.file import ClaimsFile, claims_beside, load_claims
from orchestrator.report.claims.ledger import open_rows
from orchestrator.report.files import Report, make_reports, measure_suite, table_files, write_reports
from orchestrator.report.pages import show_suite, why_no_views
from orchestrator.report.results.rows import differences_to_reference
from orchestrator.report.statistics.intervals import Estimate
from orchestrator.site import Site
from orchestrator.tracking.ledger import log_table, name_trainings, place_evaluations
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.server import using_server
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import Status
from orchestrator.worker.training_log import losses_since

if TYPE_CHECKING:
    from orchestrator.driver.launch import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """How a submit ended."""

    exit_code: int
    """0 if all is measured, stopped by its search or beyond the budget, 1 if a row failed or a table is left out, 130
    after Ctrl-C."""
    reports: list[Report]
    """What is measured by now, a report a table; those whose results rest on two versions of the data are left out."""
    hours: float = 0.0
    """What its trainings took of a budget."""

    def _repr_html_(self) -> str:
        """What a notebook shows: all tables."""
        return "\n".join(report.table.to_html() for report in self.reports)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How much a submit may run."""

    hours: float | None = None
    """Of GPUs, or of CPUs where a training takes no GPU; None runs all that is missing."""
    images_per_s: float | None = None
    """Training throughput of one worker, where none was measured."""


def submit(
    suite: Suite, say: Say, *, prune: bool = False, bounds: Bounds | None = None, since: int | None = None
) -> Submitted:
    """Run what a suite lacks, as far as the bounds allow it, record it, write its tables.

    Args:
        suite: what is submitted.
        say: told what happens.
        prune: first end trainings that no row asks for any more.
        bounds: how much may run.
        since: when somebody began to wait for this submit, in milliseconds since 1970; None where nobody did.

    Raises:
        UserError: something that must be right before the start is not; nothing was started.
        ServerAway: MLflow went away after that; all that ran stands.
    """
    bounds = bounds or Bounds()
    require_budget(bounds.hours)
    _claims(suite)  # a mistake in them should not wait for the first trainings
    with interruptible(), ExitStack() as stack:
        _note_home(suite, say)
        stack.enter_context(using_server(suite.site))
        stack.enter_context(_compiling(suite.site))
        with working("starting MLflow"):
            suite.connect()
        if prune:
            prune_trainings(suite, say)
        before = stops_asked(suite.connection, since)
        tell: Tell = lambda _: None  # noqa: E731 - nobody waits for a submit that runs nothing
        # With a look at files, as a run whose files were deleted has to be made again.
        plan = suite.make_plan(verified=True)
        if plan.is_complete:  # `prepare` compares the others, once their weights and disk are known to be sound
            require_known_data(plan, suite.ledger, suite.site, say)
        if not plan.is_complete or any(one.seed_rule for one in suite.experiments):
            try:
                with onlooker(suite, say) as waiting:
                    turn = locked(suite, waiting, lambda: _work(suite, bounds), lost=giving_way(say))
                    tell = stack.enter_context(turn)
            except KeyboardInterrupt:
                return Submitted(exit_code=INTERRUPTED, reports=_measured(suite, say))
            suite.refresh()  # whoever had the lock before may have done some of it
        repair(suite, say)
        name_trainings(suite.connection, suite.mlflow_runs, suite.wanted.trainings.values())
        with _nothing_lost():
            exit_code, hours = _run(suite, say, bounds, before, tell)
        if exit_code != INTERRUPTED:
            _show_waiting(suite, say)
        try:
            with _nothing_lost():
                reports = _conclude(suite, say, registers=exit_code != INTERRUPTED)
        except (UserError, OSError) as error:
            if exit_code != INTERRUPTED:
                raise
            say(f"No tables are written: {error}")
            reports = []
        if len(reports) < len(suite.experiments):
            exit_code = max(exit_code, 1)
        return Submitted(exit_code=exit_code, reports=reports, hours=hours)


@contextmanager
def _nothing_lost() -> Iterator[None]:
    """Say, where MLflow goes away while a submit works, what becomes of its work."""
    try:
        yield
    except ServerAway as error:
        raise type(error)(
            f"{error}; nothing that was trained or scored is lost: the next submit goes on from there, and writes the "
            "tables"
        ) from error


def _measured(suite: Suite, say: Say) -> list[Report]:
    """Measure the tables after an interruption, which is all that counts where MLflow does not answer any more."""
    try:
        suite.refresh()
        return make_reports(suite, say=say)
    except UserError as error:
        say(f"No tables are shown: {error}")
        return []


def _note_home(suite: Suite, say: Say) -> None:
    """Say where results go if the suite was last submitted with another RNC_HOME, and note this one."""
    folder, home = suite.experiments[0].path.parent, suite.site.home
    if last_home(suite.name, folder) not in (None, home):
        say(describe_home(suite.name, folder, home))
    remember(suite.name, folder, home)


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


def _run(suite: Suite, say: Say, bounds: Bounds, before: Stops, tell: Tell) -> tuple[int, float]:
    """Train and score what the suite lacks, part by part; return the exit code and the hours that trainings took.

    What somebody asked to end since `before`, while this submit waited, is left out. Those who wait now are told what
    runs, and for how long.
    """
    stopped = stopped_since(suite, before)
    for key, note in stopped.items():
        label = suite.wanted.trainings[key].label
        say(f"{label}: {note} while this submit waited for its turn, so left out; a submit started now takes it up.")
    tried = set(stopped)  # and what failed is left to a later submit
    exit_code, spent, has_begun = int(bool(stopped)), 0.0, False
    with ExitStack() as stack:
        while True:
            plan, ledger = suite.make_plan(), suite.ledger
            left = None if bounds.hours is None else bounds.hours - spent
            part = next_part(plan, _time(suite, plan, bounds), left, tried)
            if part.plan.is_complete:
                if not part.left_out and _add_seeds(suite, say, bounds, left, tried):
                    continue
                if part.left_out or plan.is_complete:
                    say(_left_out(plan, part, bounds, spent) if part.left_out else _complete(plan))
                return exit_code, spent
            if not has_begun:
                forget_stops(suite.connection, before)
            say(_to_do(plan, part))
            _prepare(part.plan, suite, say)
            if not has_begun:
                # Ray prints that a worker died to the standard output, which is for the tables alone.
                stack.enter_context(redirect_stdout(sys.stderr))
                stack.enter_context(_ray(suite.site, say))
            has_begun = True
            tell(_work(suite, bounds))
            outcome = _launch(part.plan, suite, say, _estimating(suite, bounds, tell))
            exit_code = max(exit_code, outcome.exit_code)
            tried |= {*part.plan.missing_trainings, *part.plan.missing_evaluations}
            suite.refresh()
            try:
                spent += spent_hours(part.plan, ledger, suite.ledger, suite.site.num_images)
            except UserError:
                if not outcome.interrupted:
                    raise
            if outcome.lost:
                say(f"{outcome.lost}. What ran is interrupted; submit again, which goes on from the last checkpoints.")
            if outcome.interrupted or outcome.lost:
                return exit_code, spent


def _add_seeds(suite: Suite, say: Say, bounds: Bounds, left: float | None, tried: Collection[str]) -> bool:
    """Add a seed to each row that its looks or a claim leave open, the cheapest first, within the budget; say why.

    Rows are decided one by one, so that a seed for each at once adds no more seeds than one after another would.
    """
    # A suite that was finished before, with all the seeds it may have, is not measured for nothing.
    if not tried and not any(map(_may_grow, suite.experiments)):
        return False
    seeds: list[Seed] = []
    claims = _claims(suite)
    measured = measure_suite(suite, by_size=claims is not None, say=lambda _: None)
    tables = {experiment.name: rows for experiment, rows in measured}
    for experiment, rows in measured:
        if experiment.seed_rule is not None:
            found = differences_to_reference(experiment, rows)
            labels = {label for label, gain in found.items() if not gain.excludes_zero}
            claimed = open_rows(claims, tables, experiment.seed_rule.most).get(experiment.name, []) if claims else []
            seeds += next_seeds(experiment, labels | {*claimed})
            say(_standing(experiment, found, claimed))
    # What has failed in this submit would fail again.
    seeds = [seed for seed in seeds if not any(key in tried for _, key in seed.asked if _lacks(suite, key))]

    def cost(asked: Asked) -> float | None:
        plan = lacking(suite.wanted_with(asked), suite.ledger)
        hours = [one.hours for one in _time(suite, plan, bounds).trainings if one.key not in tried]
        return None if None in hours else sum(one for one in hours if one is not None)

    added, left_out = cheapest_seeds(seeds, cost, left)
    unit = hours_unit(suite.wanted)
    if added:
        say(f"Added ({unit}): {', '.join(map(str, added))}.")
        suite.ask_for(frozenset(asked for seed in added for asked in seed.asked))
    if left_out:
        say(f"Beyond the budget of {bounds.hours:g} {unit}: {', '.join(map(str, left_out))}. A later submit adds them.")
    return bool(added)


def _may_grow(experiment: Experiment) -> bool:
    return bool(next_seeds(experiment, {row.label for row in experiment.rows}))


def _lacks(suite: Suite, train_key: str) -> bool:
    return why_training_is_missing(suite.ledger, train_key) is not None


def _claims(suite: Suite) -> ClaimsFile | None:
    """Return the claims that may ask for seeds: those beside a suite that adds seeds; None where there are none.

    Raises:
        UserError: they have mistakes.
    """
    if not any(experiment.seed_rule for experiment in suite.experiments):
        return None
    file = claims_beside([experiment.path for experiment in suite.experiments])
    return None if file is None else load_claims(file, suite.experiments)


def _standing(experiment: Experiment, found: Mapping[str, Estimate], claimed: Sequence[str]) -> str:
    """Say which rows of a table are decided, and which are open, with their differences."""
    shown: dict[bool, list[str]] = {True: [], False: []}
    own = {row.label: f" (against {row.reference})" for row in experiment.rows if row.reference}
    for label, gain in found.items():
        difference = show(Cell(gain.value, interval=(gain.low, gain.high)), GAIN)
        said = f"{label}{own.get(label, '')} {difference}"
        shown[gain.excludes_zero].append(f"{said} by {gain.num_seeds} seeds")
    asked = f" Left open by claims: {', '.join(claimed)}." if claimed else ""
    return (
        f"{experiment.name}: decided against {experiment.reference} are {'; '.join(shown[True]) or 'no rows'}."
        f" Open: {'; '.join(shown[False]) or 'no rows'}.{asked}"
    )


def _time(suite: Suite, plan: Plan, bounds: Bounds) -> PlanTime:
    return estimate_time(plan, suite.ledger, suite.site.num_images, images_per_s=bounds.images_per_s)


def _work(suite: Suite, bounds: Bounds) -> Work:
    """Say what the suite lacks, and how long that takes on this machine; on a cluster nobody knows what is free."""
    plan, hours = suite.make_plan(), None
    if plan.missing_trainings and suite.site.ray_address is None:  # of scoring alone there is no estimate
        here, images = local_cluster(), suite.site.num_images
        gpus, cpus = here.total("GPU") or None, here.total("CPU")
        hours = estimate_time(plan, suite.ledger, images, gpus=gpus, cpus=cpus, images_per_s=bounds.images_per_s).hours
    return work_of(plan, hours)


def _estimating(suite: Suite, bounds: Bounds, tell: Tell) -> Show:
    """Return what tells those who wait how long it takes, once the first training has measured it."""
    is_known = (
        suite.site.ray_address is not None
        or not suite.make_plan().missing_trainings
        or _work(suite, bounds).until is not None
    )
    fresh = Suite(suite.experiments, suite.site)  # called from another thread than the one that owns the suite

    def watch(statuses: Sequence[Status]) -> None:
        nonlocal is_known
        if is_known or not any(status.images_per_s for status in statuses):
            return
        with suppress(UserError):  # the server is away; the next look asks again
            fresh.look_again()
            work = _work(fresh, bounds)
            is_known = work.until is not None
            tell(work)

    return watch


def _prepare(plan: Plan, suite: Suite, say: Say) -> None:
    """Check what can be checked before Ray, whose start alone takes 8 to 20 s."""
    if suite.site.ray_address is None:
        require_plan_fits(plan, local_cluster())
    prepare(plan, suite.ledger, suite.site, say)


@contextmanager
def _compiling(site: Site) -> Iterator[None]:
    """Compile what scoring needs compiled, beside what follows; at the end, a process that is still at it is ended.

    Else every training of this machine would compile it for itself, at the same time as the others.
    """
    if site.ray_address is not None or warmup.is_compiled():
        yield
        return
    # While MLflow's server and Ray start and data are drawn, one core has nothing else to do.
    command = [sys.executable, "-P", "-m", warmup.__name__]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _ray(site: Site, say: Say) -> Iterator[None]:
    """Start Ray, which all parts of a submit share, and stop it."""
    set_ray_environment(is_local=site.ray_address is None)  # Ray reads it when it is imported
    started = time.monotonic()
    with working("starting Ray"):
        from orchestrator.cluster.connect import start_ray, stop_ray
        from orchestrator.worker.trainer import why_public
    try:
        with working("starting Ray"):
            start_ray(site)
        say(f"Ray is up after {time.monotonic() - started:.0f} s.")
        if why := why_public():
            say(f"Trainings take Ray's public trainer, which starts some seconds later than the lean one: {why}.")
        yield
    finally:
        stop_ray()


def _launch(plan: Plan, suite: Suite, say: Say, watch: Show) -> "Outcome":
    """Train and score what a plan lacks, and say how each training ended; `watch` sees what the live view shows."""
    from orchestrator.driver.launch import launch

    with live_view(sys.stderr) as show:

        def look(statuses: Sequence[Status]) -> None:
            show(statuses)
            watch(statuses)

        begun = datetime.now(UTC)
        outcome = launch(plan, suite.site, suite.connection.uri, show=look)
    for ending in outcome.endings:
        for lost in losses_since(suite.storage / ending.key, begun):
            say(f"{ending.label}: {lost}")
        if ending.state != "finished":
            reason = ending.error or ending.state
            say(f"{ending.label}: {reason}{f' (log: {ending.log})' if ending.log else ''}")
        elif ending.startup_s is not None:
            say(f"{ending.label}: first update {ending.startup_s:.1f} s after its trial began")
    return outcome


def _show_waiting(suite: Suite, say: Say) -> None:
    """Show the example detections of finished trainings that MLflow lacks: their process was killed, or it was away."""
    from orchestrator.worker.showcase import show_examples, waiting_examples

    for key, run in suite.wanted.trainings.items():
        record, folder = suite.ledger.trainings.get(key), suite.storage / key
        # Those of one that runs are sent by itself.
        if record is None or record.status != "FINISHED" or not waiting_examples(folder):
            continue
        from model.data.coco import read_for_scoring

        config = run.config.data
        try:
            data = read_for_scoring(suite.site.data_root(config.dataset), config, config.val_split)
            number = show_examples(suite.connection.uri, record.run_id, config.dataset, folder, data)
        except Exception as error:  # good to have, and the numbers stand
            say(f"{run.label}: its last example detections are not in MLflow yet; a later submit stores them ({error})")
        else:
            say(f"{run.label}: example detections that MLflow lacked were stored ({number})")


def _conclude(suite: Suite, say: Say, *, registers: bool) -> list[Report]:
    """Write the results tables as files and into MLflow, say where they are, and register the best checkpoint.

    What stands there already is left as it is. A table whose results rest on two versions of the data is named and
    left out: the work is done, and the other tables are sound.
    """
    tables = [experiment.name for experiment in suite.experiments]
    if place_evaluations(suite.connection, suite.mlflow_runs, suite.wanted.evaluations.values(), tables):
        suite.refresh()
    reports = make_reports(suite, say=say)
    folder = suite.site.home / "reports" / suite.name
    write_reports(folder, reports, keeps=True)
    logged = {
        log_table(suite.connection, suite.mlflow_runs, report.experiment.name, table_files(report))
        for report in reports
    }
    if not logged <= {run.run_id for run in suite.mlflow_runs}:
        suite.refresh()  # the pages lead to the runs of tables
    for name, link in show_suite(suite).items():
        say(f"{name} in MLflow: {link}")
    if why := why_no_views(suite.connection.uri):
        say(why)
    say(f"tables as files: {folder}")
    if registers:
        register_best(suite, say)
    suite.refresh()  # tables and notes were written; who asks next, such as a notebook, reads them
    return reports


def _to_do(plan: Plan, part: Part) -> str:
    text = (
        f"To do: {len(part.plan.missing_trainings)} of {len(plan.trainings)} trainings, "
        f"{len(part.plan.missing_evaluations)} of {len(plan.evaluations)} evaluations."
    )
    if part.probe is None:
        return text
    return (
        f"{text} What {plan.trainings[part.probe].label!r} costs is not known yet: it runs first, and tells what the"
        " budget reaches; --images-per-s bounds the first one as well."
    )


def _left_out(plan: Plan, part: Part, bounds: Bounds, spent: float) -> str:
    costs = ", ".join(
        f"{plan.trainings[key].label} ({'cost unknown' if math.isnan(hours) else f'{hours:.2g}'})"
        for key, hours in part.left_out.items()
    )
    return (
        f"The budget of {bounds.hours:g} {hours_unit(plan)} reaches no further: {spent:.2g} are spent, and left out are"
        f" {len(part.left_out)} of {len(plan.trainings)} trainings: {costs}. A later submit takes them up."
    )


def _complete(plan: Plan) -> str:
    stopped = len(plan.stopped_trainings)
    unscored = sum(len(plan.evaluations_on(key)) for key in plan.stopped_trainings)
    text = f"{len(plan.trainings) - stopped} trainings and {len(plan.evaluations) - unscored} evaluations stand"
    return f"Nothing is missing: {text}{f', {stopped} were stopped early' if stopped else ''}."
