"""The environment that Ray reads when it is imported and started; knows no Ray itself."""

import os

LEAN = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Ray without the processes, files and warnings that nobody reads, polling five times a second."""
LOCAL = {
    "RAY_AUTH_MODE": "token",  # 2.60 sets it by itself; before, nobody would need one
    # Ray listens on every interface of the machine, unless it takes the machine for one that cannot be in a cluster.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_worker_maximum_startup_concurrency": "64",
}
"""What belongs to a Ray of our own; a cluster decides for itself, and its nodes may be taken away with notice."""


FAST_PATH = "RNC_RAY_FAST_PATH"
"""Set to 0, it makes trainings take Ray Train's public trainer whatever the version of Ray; trials have to know it."""


def ray_environment(*, is_local: bool) -> dict[str, str]:
    """Return the variables for a Ray on this machine, or for a job on a cluster."""
    asked = {name: os.environ[name] for name in (FAST_PATH,) if name in os.environ}
    return LEAN | asked | (LOCAL if is_local else {})


def set_ray_environment(*, is_local: bool) -> None:
    """Set the variables that are not set yet; call it before Ray is imported."""
    for name, value in ray_environment(is_local=is_local).items():
        os.environ.setdefault(name, value)
