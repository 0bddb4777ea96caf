"""Shows a suite that another process runs, from what MLflow holds of it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from orchestrator.driver.live import Show, State, Status, live_view
from orchestrator.driver.lock import Holder
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, TrainRun, make_plan
from orchestrator.tracking.ledger import read_ledger
from orchestrator.tracking.suite import Tracking


@contextmanager
def onlooker(
    experiments: Sequence[Experiment], suite: Tracking, say: Callable[[str], None]
) -> Iterator[Callable[[Holder], None]]:
    """Yield what tells who runs the suite, once, and draws where its trainings stand, each time it is called."""
    show: Show | None = None
    with ExitStack() as stack:

        def look(holder: Holder) -> None:
            nonlocal show
            if show is None:
                say(
                    f"Suite {suite.suite} is being run by {holder}. Its progress follows; when it ends, this "
                    "submit goes on with what is still missing. Ctrl-C leaves that one alone."
                )
                show = stack.enter_context(live_view(sys.stderr))
            with suppress(UserError):  # the server is away; it is asked again
                ledger = read_ledger(suite)
                show(statuses(make_plan(experiments, ledger), ledger))

        yield look


def statuses(plan: Plan, ledger: Ledger) -> list[Status]:
    """Say where each training stands, as far as MLflow knows."""
    return [_status(plan, run, ledger) for run in plan.trainings.values()]


def _status(plan: Plan, run: TrainRun, ledger: Ledger) -> Status:
    record = ledger.trainings.get(run.key)
    metrics = record.metrics if record else {}
    training = record is not None and record.status == "RUNNING"
    return Status(
        label=run.label,
        state=_state(plan, run, ledger),
        note=record.note if record and not training else "",
        epoch=metrics.get("train/epoch", 0.0),
        num_epochs=run.config.schedule.epochs,
        loss=metrics.get("train/loss"),
        ap=metrics.get("val/AP"),
        images_per_s=metrics.get("perf/images_per_s") if training else None,
        remaining_s=metrics.get("perf/eta_s") if training else None,
    )


def _state(plan: Plan, run: TrainRun, ledger: Ledger) -> State:
    record = ledger.trainings.get(run.key)
    if record is None:
        return "waiting"
    if record.status == "FINISHED":
        unscored = any(evaluation.key in plan.missing_evaluations for evaluation in plan.evaluations_on(run.key))
        return "scoring" if unscored else "finished"
    states: dict[str, State] = {"RUNNING": "training", "FAILED": "failed", "STOPPED": "stopped"}
    return states.get(record.status, "interrupted")
