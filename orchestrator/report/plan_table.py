"""Tables of `rnc plan`: trainings and evaluations, which are missing and why, and what they cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.settings import flat_differences
from model.training.schedule import learning_rate
from orchestrator.experiment.cost.estimate import DEVICES, Disk, PlanTime, RowCost, estimate_disk, row_costs
from orchestrator.experiment.plan import Place, Plan, TrainRun
from orchestrator.experiment.rows import Resources
from orchestrator.figures.table import Column, Table, Value


def plan_table(plan: Plan, estimate: PlanTime) -> Table:
    """Show one line for each training: what stands on it, what of it is missing, and how long that takes."""
    counts = _counts(plan)
    missing = counts["missing"]
    names = _names(plan)
    table = Table(
        title=f"Plan of suite {plan.suite}",
        columns=(
            Column("training", numeric=False),
            Column("key", numeric=False, narrow="left out"),
            Column("epochs"),
            Column("on", numeric=False, narrow="left out"),
            Column("evaluations"),
            Column("missing"),
            Column("why", numeric=False),
        ),
        rows=tuple(_plan_row(plan, run, names[run.key]) for run in plan.trainings.values()),
        notes=(
            f"{_count(counts['rows'], 'row')} of {_count(len(plan.experiments), 'table')}:"
            f" {_count(counts['trainings'], 'training')}, {_count(counts['evaluations'], 'distinct evaluation')}.",
            f"Missing: {_count(missing['trainings'], 'training')}, {_count(missing['evaluations'], 'evaluation')}."
            if any(missing.values())
            else "Nothing is missing.",
            *_note_on_seeds(plan, estimate),
            *_note_on_stopped(plan),
            *_note_on_unread_branches(plan),
            *_notes_on_schedules(plan, estimate),
            *_notes_on_time(estimate),
            *([*_note_on_loaders(plan), _note_on_disk(estimate_disk(plan))] if any(missing.values()) else []),
        ),
    )
    return _with_hours(table, plan, estimate) if estimate.speeds else table


def costs_table(plan: Plan, estimate: PlanTime) -> Table:
    """Show one line for each row of each table: what it would cost alone, and with which rows it shares trainings."""
    costs = row_costs(plan, estimate)
    devices = [device for device in DEVICES if any(t.kind.device == device for t in estimate.trainings)]
    shown = devices if estimate.speeds else []
    order = {cost.place: number for number, cost in enumerate(costs)}
    return Table(
        title=f"Cost of each row of suite {plan.suite}",
        columns=(
            Column("table", numeric=False, narrow="heading"),
            Column("row", numeric=False),
            Column("trainings"),
            Column("evaluations"),
            *(Column(f"{device}-hours") for device in shown),
            Column("shares its training with", numeric=False),
        ),
        rows=tuple(
            (
                cost.place.table,
                cost.place.label,
                cost.num_trainings,
                cost.num_evaluations,
                *(cost.hours[device] for device in shown),
                _shared(cost, order),
            )
            for cost in costs
        ),
        notes=("What is missing of each row, as if it were submitted alone; rows that share a training pay it once.",),
        rules_before=tuple(place for place, cost in enumerate(costs) if cost.place.place == 0),
    )


def evaluations_table(plan: Plan) -> Table:
    """Show one line for each row that an evaluation stands in, and whether it stands in MLflow or why not."""
    names = _names(plan)
    return Table(
        title=f"Evaluations of suite {plan.suite}",
        columns=tuple(Column(name, numeric=False) for name in ("evaluation", "table", "row", "of training", "state")),
        rows=tuple(
            (
                evaluation.key,
                place.table,
                place.label,
                names[evaluation.train_key],
                plan.missing_evaluations.get(
                    evaluation.key, plan.stopped_trainings.get(evaluation.train_key, "stands in MLflow")
                ),
            )
            for evaluation in plan.evaluations.values()
            for place in evaluation.places
        ),
    )


def plan_json(plan: Plan, estimate: PlanTime) -> dict[str, Any]:
    """Return the plan for a program: counts, estimates, and a list of what is behind each."""
    return {
        "suite": plan.suite,
        "experiments": [experiment.name for experiment in plan.experiments],
        **_counts(plan),
        "estimate": _estimate_json(plan, estimate),
        "row_list": [
            {
                "table": cost.place.table,
                "row": cost.place.label,
                "trainings": cost.num_trainings,
                "evaluations": cost.num_evaluations,
                "gpu_hours": cost.hours["GPU"],
                "cpu_hours": cost.hours["CPU"],
                "shared_with": [{"table": other.table, "row": other.label} for other in cost.shared_with],
            }
            for cost in row_costs(plan, estimate)
        ],
        "training_list": [
            {
                "key": run.key,
                "label": run.label,
                "settings": flat_differences(run.config),
                "missing": plan.missing_trainings.get(run.key),
                "stopped": plan.stopped_trainings.get(run.key),
            }
            for run in plan.trainings.values()
        ],
        "evaluation_list": [
            {
                "key": evaluation.key,
                "train_key": evaluation.train_key,
                "split": evaluation.split,
                "settings": flat_differences(evaluation.inference),
                "places": [place._asdict() for place in evaluation.places],
                "missing": plan.missing_evaluations.get(evaluation.key),
            }
            for evaluation in plan.evaluations.values()
        ],
    }


def plans_json(plans: Sequence[tuple[Plan, PlanTime]]) -> dict[str, Any]:
    """Return several suites' plans for a program: the sums of their counts, and each plan."""
    suites = [plan_json(plan, estimate) for plan, estimate in plans]
    return {
        **{count: sum(suite[count] for suite in suites) for count in ("rows", "trainings", "evaluations")},
        "missing": {kind: sum(suite["missing"][kind] for suite in suites) for kind in ("trainings", "evaluations")},
        "suites": suites,
    }


def _counts(plan: Plan) -> dict[str, Any]:
    return {
        "rows": sum(len(experiment.rows) for experiment in plan.experiments),
        "trainings": len(plan.trainings),
        "evaluations": len(plan.evaluations),
        "missing": {"trainings": len(plan.missing_trainings), "evaluations": len(plan.missing_evaluations)},
    }


def _estimate_json(plan: Plan, estimate: PlanTime) -> dict[str, Any]:
    bytes_of = estimate_disk(plan)
    return {
        "gpus": estimate.gpus,
        "gpu_hours": None if estimate.unknown else estimate.gpu_hours,
        "hours": estimate.hours,
        "throughputs": [
            {**kind._asdict(), "images_per_s": speed.images_per_s, "measured": speed.is_measured}
            for kind, speed in estimate.speeds.items()
        ],
        "without_throughput": [kind._asdict() for kind in estimate.unknown],
        "trainings": [
            {"key": t.key, "images": t.num_images, "device": t.kind.device, "amount": t.amount, "seconds": t.seconds}
            for t in estimate.trainings
        ],
        "all_seeds": None
        if (most := estimate.all_seeds) is None
        else {
            "trainings": len(most.plan.trainings),
            "evaluations": len(most.plan.evaluations),
            "missing": _counts(most.plan)["missing"],
            "gpu_hours": most.time.device_hours("GPU"),
            "cpu_hours": most.time.device_hours("CPU"),
        },
        "bytes": {"ray": bytes_of.ray, "mlflow": bytes_of.mlflow},
    }


def _note_on_seeds(plan: Plan, estimate: PlanTime) -> list[str]:
    """Say, where seeds are added until decided, from what to what the missing trainings go."""
    if estimate.all_seeds is None:
        return []
    rules = ", ".join(
        f"{experiment.seed_rule.at_least} to {experiment.seed_rule.most} in {experiment.name}"
        for experiment in plan.experiments
        if experiment.seed_rule
    )
    most = estimate.all_seeds
    least, to = len(plan.missing_trainings), len(most.plan.missing_trainings)
    hours = [
        f"{low:.1f} to {high:.1f} {device}-hours"
        for device in DEVICES
        if (high := most.time.device_hours(device)) and (low := estimate.device_hours(device)) is not None
    ]
    span = ", ".join([f"{least} to {to} trainings are missing", *hours])
    return [f"Seeds are added until decided, {rules}: {span}; the most if no row is decided before."]


def _note_on_stopped(plan: Plan) -> list[str]:
    number = len(plan.stopped_trainings)
    return [f"Stopped early by their search, and not taken up again: {_count(number, 'training')}."] if number else []


def _note_on_unread_branches(plan: Plan) -> list[str]:
    """Say which trainings have a confidence branch that no row ranks or drops by; table 1 of the paper means it so."""
    unread = {
        scored[0].label: None
        for key, run in plan.trainings.items()
        if run.config.model.confidence is not None
        and (scored := plan.evaluations_on(key))
        and not any(one.inference.needs_confidence for one in scored)
    }
    if not unread:
        return []
    named = _some(list(unread))
    return [f"No score here reads the confidence of {named}: the branch only teaches the towers, at exponent 0."]


def _notes_on_schedules(plan: Plan, estimate: PlanTime) -> list[str]:
    """Say which trainings can hardly learn, as they are too short for their warm-up or their batch."""
    found: dict[str, list[str]] = {}
    for training in estimate.trainings:
        run, images = plan.trainings[training.key], training.images_per_epoch
        if not images:
            continue
        schedule, batch = run.config.schedule, run.config.global_batch
        updates, warmup = schedule.epochs * math.ceil(images / batch), schedule.warmup_iterations
        if updates <= warmup:
            rate = learning_rate(schedule, schedule.epochs - 1, updates - 1) / schedule.learning_rate
            text = (
                f"the warm-up ({_count(warmup, 'update')}) outlasts the whole training ({_count(updates, 'update')}):"
                f" its rate ends at {100 * rate:.2g} % of learning_rate; lower train.schedule.warmup_iterations, or"
                " train for more epochs"
            )
            found.setdefault(text, []).append(run.label)
        if batch > images:
            text = (
                f"train.global_batch is {batch}, of {_count(images, 'image')}: an epoch has hardly more than one"
                " update; lower it"
            )
            found.setdefault(text, []).append(run.label)
    return [f"{_some(labels)}: {text}." for text, labels in found.items()]


def _notes_on_time(estimate: PlanTime) -> list[str]:
    """Return notes on the time, the throughputs behind it, and where there is none, how to get one."""
    notes = []
    devices = {t.kind.device for t in estimate.trainings}
    if estimate.gpu_hours:
        notes.append(f"Time: {estimate.gpu_hours:.1f} GPU-hours of training; validation and scoring come on top.")
    if estimate.hours:
        on = [f"{estimate.gpus:g} GPUs"] if "GPU" in devices else []
        on += [f"{estimate.cpus:g} CPUs"] if "CPU" in devices else []
        notes.append(f"Largest first on {' and '.join(on)} the training takes {_duration(estimate.hours)}.")
    for kind, speed in estimate.speeds.items():
        source = "measured" if speed.is_measured else "given, not measured"
        notes.append(f"Throughput of {kind}: {speed.images_per_s:.1f} images/s ({source}).")
    for kind in estimate.unknown:
        notes.append(
            f"No throughput is known yet for {kind}: a training of it that has begun will tell; until then, give one"
            f" {kind.device}'s as --images-per-s."
        )
    if any(t.num_images is None for t in estimate.trainings):
        notes.append("How many images there are to train on is not known; name the data (data.root or RNC_COCO_ROOT).")
    for device in sorted({t.kind.device for t in estimate.trainings if t.is_cut}):
        notes.append(f"A training asks for more {device}s than there are; its time is that on fewer workers.")
    return notes


def _note_on_disk(needed: Disk) -> str:
    return (
        f"Disk: up to {_size(needed.ray)} in Ray's storage (two checkpoints of each training)"
        f" and {_size(needed.mlflow)} in MLflow (weights and detections)."
    )


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1.0 else f"{max(1, round(60 * hours))} min"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _with_hours(table: Table, plan: Plan, estimate: PlanTime) -> Table:
    """Put how long each missing training takes on what it asks for before the reason."""
    hours = {t.key: t.seconds / 3600 for t in estimate.trainings if t.seconds is not None}
    rows = [(*row[:-1], hours.get(key), row[-1]) for key, row in zip(plan.trainings, table.rows, strict=True)]
    columns = (*table.columns[:-1], Column("hours", digits=2), table.columns[-1])
    return replace(table, columns=columns, rows=tuple(rows))


def _shared(cost: RowCost, order: Mapping[Place, int]) -> str:
    """Name the earlier row that a training is shared with; where there is none, say how many rows follow."""
    first = next((place for place in cost.shared_with if order[place] < order[cost.place]), None)
    if first is not None:
        return f"{first.label} of {first.table}"
    return f"{_count(len(cost.shared_with), 'row')} below" if cost.shared_with else ""


def _names(plan: Plan) -> dict[str, str]:
    """Return what each training is called: its label, and the table behind it where another has the same."""
    uses = Counter(run.label for run in plan.trainings.values())
    return {
        key: f"{run.label} of {run.tables[0]}" if uses[run.label] > 1 and run.tables else run.label
        for key, run in plan.trainings.items()
    }


def _plan_row(plan: Plan, run: TrainRun, name: str) -> tuple[Value, ...]:
    evaluations = plan.evaluations_on(run.key)
    missing = [plan.missing_evaluations[e.key] for e in evaluations if e.key in plan.missing_evaluations]
    why = [f"training {plan.missing_trainings[run.key]}"] if run.key in plan.missing_trainings else []
    waiting = Counter(reason for reason in missing if not (why and reason == "waits for its training"))
    why += [f"{_count(number, 'evaluation')} {reason}" for reason, number in waiting.items()]
    return (
        name,
        run.key,
        run.config.schedule.epochs,
        _where(run.resources),
        len(evaluations),
        len(missing),
        "; ".join(why) or plan.stopped_trainings.get(run.key, "complete"),
    )


def _where(resources: Resources) -> str:
    if resources.gpus_per_worker == 0.0:
        return f"{_count(resources.num_workers, 'CPU worker')}"
    return f"{_count(resources.num_workers, 'worker')}, {resources.gpus_per_worker:g} GPU each"


def _note_on_loaders(plan: Plan) -> list[str]:
    """Say how many processes read images for a worker on a GPU; on the CPU it reads them itself."""
    asked = {run.resources.loader_processes for run in plan.trainings.values() if run.resources.gpus_per_worker}
    if not asked:
        return []
    numbers = [str(number) for number in sorted(number for number in asked if number is not None)]
    chosen = ["from the node's cores"] if None in asked else []
    return [f"Loader processes of a GPU worker: {' or '.join(numbers + chosen)}."]


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
