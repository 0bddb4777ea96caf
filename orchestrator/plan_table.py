"""What `rnc plan` says: which trainings and evaluations there are, and what of them is missing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from orchestrator.experiment import Resources
from orchestrator.plan import Plan, TrainRun, settings_that_differ
from orchestrator.table import Column, Table, Value


def plan_table(plan: Plan) -> Table:
    """Show one line for each training: what stands on it, and what of it is missing."""
    counts = plan_json(plan)
    missing = counts["missing"]
    return Table(
        title=f"Plan of suite {plan.suite}",
        columns=(
            Column("training", numeric=False),
            Column("key", numeric=False),
            Column("epochs"),
            Column("on", numeric=False),
            Column("evaluations"),
            Column("missing"),
            Column("why", numeric=False),
        ),
        rows=tuple(_plan_row(plan, run) for run in plan.trainings.values()),
        notes=(
            f"{_count(counts['rows'], 'row')} of {_count(len(plan.experiments), 'table')}:"
            f" {_count(counts['trainings'], 'training')}, {_count(counts['evaluations'], 'evaluation')}.",
            f"Missing: {_count(missing['trainings'], 'training')}, {_count(missing['evaluations'], 'evaluation')}."
            if any(missing.values())
            else "Nothing is missing.",
        ),
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for a program: counts, and a list of what is behind each."""
    return {
        "suite": plan.suite,
        "experiments": [experiment.name for experiment in plan.experiments],
        "rows": sum(len(experiment.rows) for experiment in plan.experiments),
        "trainings": len(plan.trainings),
        "evaluations": len(plan.evaluations),
        "missing": {"trainings": len(plan.missing_trainings), "evaluations": len(plan.missing_evaluations)},
        "training_list": [
            {
                "key": run.key,
                "label": run.label,
                "settings": settings_that_differ(run.config),
                "missing": plan.missing_trainings.get(run.key),
            }
            for run in plan.trainings.values()
        ],
        "evaluation_list": [
            {
                "key": evaluation.key,
                "train_key": evaluation.train_key,
                "split": evaluation.split,
                "settings": settings_that_differ(evaluation.inference),
                "places": [place._asdict() for place in evaluation.places],
                "missing": plan.missing_evaluations.get(evaluation.key),
            }
            for evaluation in plan.evaluations.values()
        ],
    }


def plans_json(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return several suites' plans for a program: the sums of their counts, and each plan."""
    suites = [plan_json(plan) for plan in plans]
    return {
        **{count: sum(suite[count] for suite in suites) for count in ("rows", "trainings", "evaluations")},
        "missing": {kind: sum(suite["missing"][kind] for suite in suites) for kind in ("trainings", "evaluations")},
        "suites": suites,
    }


def _plan_row(plan: Plan, run: TrainRun) -> tuple[Value, ...]:
    evaluations = plan.evaluations_on(run.key)
    missing = [plan.missing_evaluations[e.key] for e in evaluations if e.key in plan.missing_evaluations]
    why = [f"training {plan.missing_trainings[run.key]}"] if run.key in plan.missing_trainings else []
    waiting = Counter(reason for reason in missing if not (why and reason == "waits for its training"))
    why += [f"{_count(number, 'evaluation')} {reason}" for reason, number in waiting.items()]
    return (
        run.label,
        run.key,
        run.config.schedule.epochs,
        _where(run.resources),
        len(evaluations),
        len(missing),
        "; ".join(why) or "complete",
    )


def _where(resources: Resources) -> str:
    if resources.gpus_per_worker == 0.0:
        return f"{_count(resources.num_workers, 'CPU worker')}"
    return f"{_count(resources.num_workers, 'worker')}, {resources.gpus_per_worker:g} GPU each"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
