"""A budget of GPU-hours: which of a plan's missing trainings it reaches, and what those that ran have cost."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import inf, nan

from model.names import EPOCH, IMAGES_PER_S
from orchestrator.errors import UserError
from orchestrator.experiment.cost.estimate import CountImages, PlanTime
from orchestrator.experiment.plan import Ledger, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What of a plan is run next."""

    plan: Plan
    """Missing is only what is run."""
    left_out: Mapping[str, float]
    """The hours of each training that the budget does not reach, by train key; nan where they are unknown."""
    probe: str | None = None
    """The training of which nobody knows what it costs; it runs by itself, and tells."""


def require_budget(hours: float | None, *, name: str = "budget") -> None:
    """Refuse a budget with which nothing could run.

    Raises:
        UserError: it is not more than 0, or has no end.
    """
    if hours is not None and not 0.0 < hours < inf:  # so that nan is refused as well
        expected = "a finite number of" if hours == inf else "more than 0"
        raise UserError(
            f"{name} is {hours:g}, expected {expected} hours; leave it out for no bound, and see what each row costs"
            " by `rnc plan`"
        )


def hours_unit(plan: Plan) -> str:
    """Name what a budget of this plan counts: hours of GPUs, and of CPUs where a training takes no GPU."""
    uses_gpu = {run.resources.gpus_per_worker > 0.0 for run in plan.trainings.values()}
    return "GPU- and CPU-hours" if len(uses_gpu) > 1 else "GPU-hours" if True in uses_gpu else "CPU-hours"


def next_part(plan: Plan, time: PlanTime, hours: float | None, tried: Collection[str] = ()) -> Part:
    """Choose what is run next: all that is missing, or in its order what fits into the hours that are left.

    Where a training does not fit, a cheaper one after it may. One whose cost is unknown goes before all others, alone,
    as long as something is left: what it tells comes best while most of the budget is there.

    Args:
        plan: of one suite.
        time: of its missing trainings.
        hours: of the budget; None has no end.
        tried: keys of trainings and evaluations that this submit has run already, which a failure leaves missing.

    Raises:
        UserError: there is a budget, and nobody can tell how many images a training has.
    """
    costs = {one.key: one for one in time.trainings if one.key not in tried}
    if hours is None:
        return Part(plan=_only(plan, costs, tried), left_out={})
    for key, cost in costs.items():
        if cost.num_images is None:
            raise UserError(
                f"--budget: how many images {plan.trainings[key].label!r} trains on is not known, so that its cost"
                " cannot be; name the data (data.root or RNC_COCO_ROOT)"
            )
    taken: list[str] = []
    left_out: dict[str, float] = {}
    for key, cost in costs.items():
        if cost.hours is None and hours > 0.0:
            return Part(plan=_only(plan, [key], tried), left_out={}, probe=key)
    for key, cost in costs.items():
        if cost.hours is not None and cost.hours <= hours:
            taken.append(key)
            hours -= cost.hours
        else:
            left_out[key] = nan if cost.hours is None else cost.hours
    return Part(plan=_only(plan, taken, tried), left_out=left_out)


def spent_hours(part: Plan, before: Ledger, after: Ledger, count_images: CountImages) -> float:
    """Return the hours of GPUs, or CPUs, that the trainings of a part took, by their images and their own throughput.

    Validation, scoring and what was trained twice after a crash are not in it, as they are not in an estimate.
    """
    total = 0.0
    for key in part.missing_trainings:
        run, record, old = part.trainings[key], after.trainings.get(key), before.trainings.get(key)
        speed = record.metrics.get(IMAGES_PER_S) if record else None
        images = count_images(run.config.data)
        if record is not None and speed and images is not None:
            resumed = int(old.metrics.get(EPOCH, 0.0)) if old else 0  # at the last whole epoch
            epochs = max(record.metrics.get(EPOCH, 0.0) - resumed, 0.0)
            num_workers = (record.resources or run.resources).num_workers
            devices = num_workers * (run.resources.gpus_per_worker or run.resources.cpus_per_worker)
            total += images * epochs / speed * devices / 3600
    return total


def _only(plan: Plan, trainings: Collection[str], tried: Collection[str]) -> Plan:
    """Return the plan with these of its missing trainings, and the missing evaluations of them and of finished ones."""
    return replace(
        plan,
        missing_trainings={key: why for key, why in plan.missing_trainings.items() if key in trainings},
        missing_evaluations={
            key: why
            for key, why in plan.missing_evaluations.items()
            if key not in tried
            and ((trained := plan.evaluations[key].train_key) in trainings or trained not in plan.missing_trainings)
        },
    )
