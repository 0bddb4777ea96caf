"""What `rnc cancel` and `rnc submit --prune` do: end trainings that another terminal's submit runs."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from orchestrator.driver.lock import holder_of
from orchestrator.driver.stops import PRUNED, Prune, ask_to_cancel, ask_to_prune
from orchestrator.errors import UserError
from orchestrator.experiment.keys import train_key
from orchestrator.experiment.load import Experiment, find_row
from orchestrator.experiment.plan import make_plan
from orchestrator.site import Site
from orchestrator.tracking.ledger import end_training, read_ledger
from orchestrator.tracking.server import existing_tracking_server
from orchestrator.tracking.suite import Tracking, open_suite

Say = Callable[[str], None]


def cancel_row(experiments: Sequence[Experiment], label: str, seed: int | None, site: Site, say: Say) -> None:
    """Ask the running submit to end the trainings of a row, and say which other rows stand on them.

    Args:
        experiments: in which the row is looked up, and the rows that share its trainings.
        label: of the row.
        seed: one of the row's; None for all of them.
        site: where MLflow is.
        say: prints.

    Raises:
        UserError: there is no such row or seed, or nobody runs the suite.
    """
    experiment, row = find_row(experiments, label, seed)
    uri = existing_tracking_server(site)
    suite = open_suite(uri, experiment.suite, create=False) if uri is not None else None
    if suite is None or suite.experiment_id is None or holder_of(suite, site) is None:
        raise UserError(
            f"nothing to cancel: nobody runs suite {experiment.suite} now; `rnc status` says where it stands"
        )
    plan = make_plan([one for one in experiments if one.suite == experiment.suite], read_ledger(suite))
    for one in row.seeds if seed is None else (seed,):
        run = plan.trainings[train_key(replace(row.train, seed=one))]
        if run.key not in plan.missing_trainings:
            say(f"{run.label}: its training has ended; nothing to cancel")
            continue
        ask_to_cancel(suite, run)
        places = dict.fromkeys(place for scored in plan.evaluations_on(run.key) for place in scored.places)
        rows = ", ".join(f"{place.table}, {place.label}" for place in places)
        say(f"{run.label}: training {run.key} ends within seconds and keeps its checkpoints. Rows on it: {rows}")
    say("The other rows go on; the next submit takes up what is cancelled from its last checkpoint.")


def prune(experiments: Sequence[Experiment], suite: Tracking, site: Site, say: Say) -> None:
    """End unfinished trainings that only tables of `experiments` wanted, and of which no row asks any more.

    Whoever runs the suite ends its own within seconds, those that wait included. Finished work stays, and so does what
    a table wants that is not among `experiments`.
    """
    ledger = read_ledger(suite)
    wish = Prune(
        tables=frozenset(experiment.name for experiment in experiments),
        keep=frozenset(make_plan(experiments, ledger).trainings),
    )
    runs = holder_of(suite, site) is not None
    if runs:
        ask_to_prune(suite, wish)
        say("The submit that runs the suite was asked to end the trainings that no row asks for any more.")
    for key, record in ledger.trainings.items():
        if not wish.takes(key, record.wanted_by) or record.status in ("FINISHED", "STOPPED") or record.note == PRUNED:
            continue
        if not (runs and record.status == "RUNNING"):
            end_training(suite, record.run_id, "KILLED", PRUNED)
        say(f"pruned: training {key} ({record.label})")
