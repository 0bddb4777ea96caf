"""Runs what a plan lacks: Ray Tune over the trainings, each of which is one Ray Train run and then its scoring."""

import logging
import math
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import tune

from orchestrator.cluster.capacity import Cluster, needs, per_worker, require_plan_fits
from orchestrator.cluster.connect import TOKENS, cluster_of_ray, stop_ray
from orchestrator.cluster.ray_processes import RayWatch
from orchestrator.driver.follow import Ending, Follower
from orchestrator.driver.live import Show
from orchestrator.errors import INTERRUPTED
from orchestrator.experiment.cost.estimate import weights_bytes
from orchestrator.experiment.plan import Plan
from orchestrator.process import interruptible, uninterruptible
from orchestrator.site import Site
from orchestrator.tracking.runs import open_tracking
from orchestrator.tracking.server import keep_server
from orchestrator.worker.asha import AshaPerSearch
from orchestrator.worker.gauges import SuiteGauges
from orchestrator.worker.task import TrainingTask
from orchestrator.worker.trainer import lean_trials
from orchestrator.worker.trial import release, run_trial

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How all of them ended, in the order of the plan."""

    endings: tuple[Ending, ...]
    interrupted: bool = False
    lost: str = ""
    """What became of Ray, in one line, where it ended in the middle."""

    @property
    def exit_code(self) -> int:
        """Return 0 if everything finished or was stopped by its search, 130 after Ctrl-C, else 1."""
        if self.interrupted:
            return INTERRUPTED
        return int(any(ending.state not in ("finished", "stopped") for ending in self.endings))


def launch(plan: Plan, site: Site, tracking_uri: str, *, show: Show = lambda _: None) -> Outcome:
    """Train and score what the plan lacks, and wait for it; one failure does not stop the others.

    Ctrl-C, SIGTERM and a closed terminal end Ray with its processes; the next launch goes on from the last checkpoints.

    Args:
        plan: of one suite.
        site: where data and storage are; `start_ray` has been called.
        tracking_uri: of the MLflow server.
        show: is given the state of all trainings again and again, from another thread.

    Raises:
        UserError: a training asks for more than the cluster has.
    """
    tasks = tasks_of(plan, site, tracking_uri)
    if not tasks:
        return Outcome(endings=())
    cluster = cluster_of_ray()
    require_plan_fits(plan, cluster)
    suite = open_tracking(tracking_uri, plan.suite)
    for task in tasks:
        with suppress(OSError):  # its trial tells what is wrong with its folder
            task.stop_file.unlink(missing_ok=True)
    gauges = SuiteGauges(plan, tasks[0].storage)
    follower = Follower(tasks, suite, cluster, show, gauges.tell, partial(keep_server, site, tracking_uri))
    interrupted, watch = False, RayWatch(is_local=site.ray_address is None)
    starting = lean_trials() if site.ray_address is None else nullcontext()
    try:
        with starting, interruptible(), watch.interrupting(), follower.watching():
            _tune(plan, {task.train_run.key: task for task in largest_first(tasks)}, cluster, follower)
    except BaseException as error:
        # Where Ray has ended, Tune raises one thing or another, or is interrupted by the watch.
        if not isinstance(error, KeyboardInterrupt) and not watch.why:
            raise
        # A terminal that closes, or a job that is ended, may have ended Ray's processes by the same signal.
        interrupted = error.args[:1] in ((signal.SIGTERM,), (signal.SIGHUP,)) or not watch.why
        with uninterruptible():
            stop_ray()
            follower.interrupted()
    finally:
        # Tune's state would restore the same grid only; what is missing is asked of MLflow instead.
        shutil.rmtree(tasks[0].storage / "_tune", ignore_errors=True)
    follower.draw()
    endings = {task.train_run.key: follower.ending(task) for task in tasks}
    return Outcome(
        endings=tuple(endings[key] for key in plan.trainings if key in endings),
        interrupted=interrupted,
        lost="" if interrupted else watch.why,
    )


def tasks_of(plan: Plan, site: Site, tracking_uri: str) -> list[TrainingTask]:
    """Return the missing work, in the order of the files, in which it is shown."""
    tasks = []
    for key, train_run in plan.trainings.items():
        evaluations = tuple(e for e in plan.evaluations_on(key) if e.key in plan.missing_evaluations)
        if key in plan.missing_trainings or evaluations:
            config, search = train_run.config, plan.search_of(key)
            task = TrainingTask(
                train_run=train_run,
                evaluations=evaluations,
                is_trained=key not in plan.missing_trainings,
                storage=(site.storage / plan.suite).absolute(),
                data_root=site.data_root(config.data.dataset),
                weights_file=site.weights_file(config.model.weights),
                tracking_uri=tracking_uri,
                judged_by=search.metric if search is not None and search.asha is not None else None,
            )
            tasks.append(task)
    return tasks


def largest_first(tasks: Sequence[TrainingTask]) -> list[TrainingTask]:
    """Order tasks as they start: the largest first, as it is the hardest to place; of equals the longest first."""
    return sorted(tasks, key=_size, reverse=True)


def _size(task: TrainingTask) -> tuple[float, ...]:
    """What a training reserves, and then how long it takes, about: its epochs times its weights."""
    length = 0 if task.is_trained else task.num_epochs * weights_bytes(task.train_run.config)
    return (*needs(task.train_run.resources).values(), length)


def _tune(plan: Plan, tasks: Mapping[str, TrainingTask], cluster: Cluster, follower: Follower) -> None:
    storage = next(iter(tasks.values())).storage
    # Its state, which is removed at the end: on a full disk that it is not saved would be told with a traceback.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    tokens = {name: token for name, token in TOKENS.items() if cluster.total(token) > 0.0}

    # Ray pickles this function with what it names, and Tune reads it anew for each trial: not thousands of tasks.
    usual = next(iter(tasks.values())).train_run.resources
    others = {key: own for key, task in tasks.items() if (own := task.train_run.resources) != usual}

    def bundles(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        resources = others.get(config["key"], usual)
        bundle = {tokens[name]: amount for name, amount in per_worker(resources).items() if name in tokens}
        # A trial takes next to no CPU: by default it takes one, and two trials on two CPUs would wait for ever for
        # their workers' (0 is refused). One bundle for each worker, as a bundle has to fit on one node.
        return tune.PlacementGroupFactory([bundle or {"CPU": 0.001}] * resources.num_workers)

    tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, tasks=dict(tasks)), bundles),
        param_space={"key": tune.grid_search(list(tasks))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=most_at_once(list(tasks.values()), cluster, tokens, plan.max_concurrent),
            scheduler=AshaPerSearch(plan, storage, follower.stop_early),
            # A trial's process takes 4 to 5 s to start.
            reuse_actors=True,
            trial_dirname_creator=_key,
        ),
        run_config=tune.RunConfig(
            name="_tune",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),  # a trial tells its own failures; this is its death
            callbacks=[_Callback(follower, tasks)],
        ),
    ).fit()


def most_at_once(
    tasks: Sequence[TrainingTask], cluster: Cluster, tokens: Mapping[str, str], wanted: int | None
) -> int | None:
    """Return how many trials to start: as many as wanted, and as find room where no tokens hold them back."""
    most = [
        # Amounts may be fractions: 1 // 0.2 is four, in floats.
        math.floor(cluster.total(name) / min(amounts) + 1e-9)
        for name in TOKENS
        if name not in tokens and (amounts := [n for task in tasks if (n := needs(task.train_run.resources)[name])])
    ]
    room = [max(1, min(most))] if most and not cluster.grows else []
    return min([*room, *([wanted] if wanted is not None else [])], default=None)


def _key(trial: Any) -> str:
    key: str = trial.config["key"]
    return key


class _Callback(tune.Callback):
    """Tells the follower when trials start and end; what fails for one of them must not end Tune, and so the others."""

    def __init__(self, follower: Follower, tasks: Mapping[str, TrainingTask]) -> None:
        self._follower, self._tasks = follower, tasks

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its callbacks; nothing of this one outlives the process

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tune has started the trial's process."""
        self._follower.started(_key(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The trial has returned what it tells."""
        told = trial.last_result or {}
        self._follower.ended(_key(trial), error=told.get("error", "its trial told nothing"), log=told.get("log", ""))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The trial's process has died, and will be started once more."""
        self._release(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """The trial's process has died, and again after a second start."""
        self._release(trial)
        self._follower.ended(_key(trial), error="the process of the trial died", log=str(trial.error_file or ""))

    def _release(self, trial: Any) -> None:
        try:
            release(self._tasks[_key(trial)])
        except Exception as error:  # what its workers hold stays reserved until Ray ends
            logger.warning("training %s: its workers' resources are not given back: %s", _key(trial), error)
