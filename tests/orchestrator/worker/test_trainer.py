"""Which trainer trainings take, and when their workers start again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.train import WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.execution import class_cache

from model.data.faults import DataError
from orchestrator.cluster.environment import FAST_PATH, INHERITED, ray_environment
from orchestrator.cluster.process_group import NoGroup
from orchestrator.worker import trainer, trial
from orchestrator.worker.asha import report_to_tune
from orchestrator.worker.task import TrainingTask

LOSS = WorkerGroupError("workers failed", {0: ConnectionResetError("connection reset")})
MISTAKE = WorkerGroupError("workers failed", {0: DataError("image 7 is torn"), 1: ConnectionResetError("reset")})


@pytest.fixture(autouse=True)
def _as_installed(monkeypatch) -> None:
    monkeypatch.delenv(FAST_PATH, raising=False)


def made(backend: str | None) -> Any:
    one, any_run = ray.train.ScalingConfig(num_workers=1), ray.train.RunConfig(name="any")
    return trainer.make_trainer(print, {}, backend=backend, scaling_config=one, run_config=any_run)


@pytest.mark.skipif(trainer.why_public() != "", reason="the installed Ray is another")
def test_a_tested_ray_starts_trainings_by_the_lean_trainer():
    lean = made(None)
    assert type(lean).__name__ == "LeanTrainer"
    assert not isinstance(lean, TorchTrainer)


@pytest.mark.parametrize("version", ["2.52.0", "2.59.1", "2.61.0", "3.0.0.dev0"])
def test_any_other_ray_starts_them_by_its_public_trainer_and_says_so(version: str, monkeypatch):
    monkeypatch.setattr(ray, "__version__", version)
    assert trainer.why_public().startswith("the lean one was tested with 2.60")
    assert isinstance(made(None), TorchTrainer)


def test_a_tested_ray_whose_inner_parts_have_moved_falls_back_as_well(monkeypatch):
    def moved() -> Any:
        raise ImportError("cannot import name 'TrainController'")

    monkeypatch.setattr(ray, "__version__", "2.60.7")
    monkeypatch.setattr(trainer, "_lean_trainer", moved)
    assert "cannot import name 'TrainController'" in trainer.why_public()
    assert isinstance(made("gloo"), TorchTrainer)


def test_the_lean_trainer_can_be_switched_off_here_and_on_a_cluster(monkeypatch):
    monkeypatch.setenv(FAST_PATH, "0")
    assert trainer.why_public() == "RNC_RAY_FAST_PATH is 0"
    assert ray_environment(is_local=False)[FAST_PATH] == "0"


def variables_of_workers() -> dict[str, str]:
    """Return what the lean trainer's workers are given, beside what they inherit."""
    from ray.train.v2._internal.execution.controller import TrainController

    controllers = [one for one in TrainController.__subclasses__() if one.__name__ == "LeanController"]
    given: dict[str, str] = controllers[0].worker_group_cls._get_worker_runtime_env({"env_vars": {"A": "b"}})[
        "env_vars"
    ]
    return given


@pytest.mark.skipif(trainer.why_public() != "", reason="the installed Ray is another")
def test_workers_of_a_ray_of_our_own_are_given_no_variables_which_they_have(monkeypatch):
    made(None)
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    monkeypatch.delenv(INHERITED, raising=False)
    # On a cluster, whose nodes do not have them.
    assert variables_of_workers().items() >= {"RAY_TRAIN_V2_ENABLED": "1", "A": "b"}.items()
    monkeypatch.setenv(INHERITED, ray_environment(is_local=True)[INHERITED])
    assert variables_of_workers() == {"A": "b"}
    assert INHERITED not in ray_environment(is_local=False)


@pytest.mark.skipif(trainer.why_public() != "", reason="the installed Ray is another")
def test_trials_of_a_ray_of_our_own_are_given_no_variables_which_they_have():
    def variables(trainable: type) -> dict[str, str]:
        options = class_cache._ActorClassCache().get(trainable)._default_options
        return dict((options.get("runtime_env") or {}).get("env_vars", {}))

    with trainer.lean_trials():
        assert variables(type("Inside", (), {})) == {}
    assert variables(type("Outside", (), {}))  # as Tune has it


def test_any_other_ray_starts_trials_as_tune_has_it(monkeypatch):
    monkeypatch.setenv(FAST_PATH, "0")
    before = class_cache.DEFAULT_ENV_VARS
    with trainer.lean_trials():
        assert class_cache.DEFAULT_ENV_VARS is before


def test_a_single_worker_starts_no_process_group(monkeypatch):
    monkeypatch.setenv(FAST_PATH, "0")
    assert made(None).backend_config.backend_cls is not TorchConfig().backend_cls
    assert NoGroup().backend_cls.on_start is made(None).backend_config.backend_cls.on_start
    assert issubclass(made("gloo").backend_config.backend_cls, TorchConfig().backend_cls)


def starts(errors: list[Exception | None], monkeypatch, stops_at: int | None = None) -> tuple[int, Exception | None]:
    """How often the workers start that end in these ways, and what is raised at last."""
    count = 0

    def fit() -> None:
        nonlocal count
        count += 1
        if (error := errors[count - 1]) is not None:
            raise error

    monkeypatch.setattr(trial, "_trainer", lambda task, settings: SimpleNamespace(fit=fit))
    monkeypatch.setattr(trial, "release", lambda task: None)
    looks: list[int] = []
    monkeypatch.setattr(trial, "take_up", lambda *_, **named: looks.append(count))
    train_run = SimpleNamespace(config=None)
    task: Any = SimpleNamespace(
        judged_by=None, hears_stop=lambda: count == stops_at, folder=None, train_run=train_run, is_trained=False
    )
    found = None
    try:
        trial._run_workers(task, {})
    except WorkerGroupError as error:
        found = error
    assert looks == list(range(count))  # before each start its checkpoints are looked at
    return count, found


def test_workers_that_were_lost_start_again_twice(monkeypatch):
    assert starts([LOSS, LOSS, None], monkeypatch) == (3, None)
    assert starts([LOSS, LOSS, LOSS], monkeypatch) == (3, LOSS)


def test_a_mistake_is_not_repeated(monkeypatch):
    assert starts([MISTAKE], monkeypatch) == (1, MISTAKE)
    assert starts([LOSS, MISTAKE], monkeypatch) == (2, MISTAKE)


def test_workers_that_were_asked_to_end_do_not_start_again(monkeypatch):
    assert starts([LOSS], monkeypatch, stops_at=1) == (1, None)
    assert starts([], monkeypatch, stops_at=0) == (0, None)


@pytest.mark.parametrize("stops", [False, True])
def test_the_number_of_an_epoch_waits_until_it_is_judged_and_for_ever_where_that_ends_the_training(
    stops: bool, tmp_path: Path, monkeypatch
):
    task: Any = SimpleNamespace(
        judged_by="AP",
        judgement_file=tmp_path / "judgement.json",
        hears_stop=lambda: stops,
    )
    for name in ("tell_number", "hear_number", "tell_judged"):
        setattr(task, name, getattr(TrainingTask, name).__get__(task))
    told: list[dict[str, float]] = []
    monkeypatch.setattr(tune, "report", told.append)
    report_to_tune(task)
    assert told == [] and task.hear_number() is None
    task.tell_number(3, 30.5)
    assert task.hear_number() == (3, 30.5)
    report_to_tune(task)
    assert told == [{"epoch": 3, "AP": 30.5}]
    assert task.hear_number() == ((3, 30.5) if stops else None)
