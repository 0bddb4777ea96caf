"""What a suite of thousands of runs costs: to read it, `rnc status`, `rnc plan`, and the looks of a submit.

A database of MLflow is filled with finished stand-ins, half of them trainings and half evaluations, with as many tags,
params, metrics and files as real ones have; then each line is measured in a process of its own: seconds, CPU seconds of
that process and of the server, and the most memory that the process held. With --trials, what a submit costs its driver
for each trial instead: Ray Tune runs trials that do nothing, and their runs are begun in MLflow.
"""

import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import requests

from model.config import METRICS
from orchestrator import names
from orchestrator.experiment.load import Experiment, load_experiments
from orchestrator.experiment.plan import gather
from orchestrator.site import ROOT, Site
from orchestrator.tracking.records import inference_params, place_tags, training_params
from orchestrator.tracking.runs import now
from orchestrator.tracking.server import running_server, stop_server, tracking_server

ROWS_OF_A_FILE = 1000
NUM_WAITING = 1000
"""Trainings that the looks of a submit follow, beside those that stand: RUNNING of them run."""
RUNNING = 4
NUM_LOOKS = 5
FILE = """
name: t{number}
suite: scale
title: Stand-ins
defaults:
  split: test
  train:
    data: {{dataset: shapes, train_split: train, val_split: val, faults: refuse}}
    model: {{backbone: resnet18_quarter, backbone_weights: null, backbone_norm: group, frozen_stages: 0}}
resources: {{num_workers: 1, gpus_per_worker: 0}}
grid:
  train.schedule.learning_rate: {rates}
"""
FILES = {
    "training": ("checkpoint/model.safetensors", "checkpoint/config.json"),
    "evaluation": ("detections/detections.parquet", "detections/matches.parquet"),
}
CONTENT = b"stand-in\n"
PORT = "5199"
SERVER = "SCALE_SERVER"
"""Tells a process that measures a line which one is the server."""


@click.command(help=__doc__)
@click.option("--runs", default=2000, show_default=True, help="Runs that stand in MLflow.")
@click.option("--database", help="postgresql+psycopg2://USER:PASSWORD@HOST/NAME, for a cluster's server; else SQLite.")
@click.option("--plain", is_flag=True, help="On the database MLflow as it comes, which has no list of runs.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work, and to leave it; else a temporary one.")
@click.option("--trials", multiple=True, type=int, help="Numbers of stand-in trials, each in a submit of its own.")
@click.option("--measure", hidden=True, help="One line, in this process.")
def main(
    runs: int, database: str | None, plain: bool, folder: Path | None, trials: tuple[int, ...], measure: str | None
) -> None:
    """Fill, measure, print a table."""
    if measure is not None and folder is not None:
        _measure_here(folder, measure)
        return
    if trials:
        for number in trials:
            with tempfile.TemporaryDirectory() as scratch:
                _write_files(Path(scratch), number)
                command = [sys.executable, __file__, "--folder", scratch, "--measure", "trials"]
                subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return
    with tempfile.TemporaryDirectory() as scratch:
        here = (folder or Path(scratch)).absolute()
        files = _write_files(here, runs // 2)
        with _served(here, database, plain) as (uri, pid):
            address = database or f"sqlite:///{here / 'home' / 'mlflow' / 'mlflow.db'}"
            if not (here / "filled").exists():
                began = time.monotonic()
                _fill(uri, address, files, here / "home" / "mlflow" / "artifacts")
                (here / "filled").touch()
                click.echo(f"filled with {runs} runs in {time.monotonic() - began:.0f} s", err=True)
            server = "the embedded server" if database is None else "MLflow as it comes" if plain else "serve.py"
            click.echo(f"{runs} runs, {server} on {address.partition(':')[0]}")
            click.echo(f"{'':34}{'seconds':>9}{'CPU s':>9}{'server CPU s':>14}{'MB':>7}")
            environment = os.environ | {"RNC_HOME": str(here / "home"), "PYTHONPATH": str(ROOT)}
            environment |= {"MLFLOW_TRACKING_URI": uri} if database else {}
            for line, command in _lines(here, files).items():
                _measure(line, command, environment, pid)


def _lines(here: Path, files: Sequence[Path]) -> dict[str, list[str]]:
    rnc = [sys.executable, "-m", "orchestrator.cli.main"]
    words = [str(file) for file in files]
    itself = [sys.executable, __file__, "--folder", str(here), "--measure"]
    return {
        "python, imports alone": [*itself, "nothing"],
        "reading all runs": [*itself, "read"],
        "rnc status": [*rnc, "status", *words],
        "rnc plan --quick": [*rnc, "plan", "--quick", *words],
        "files of all finished runs": [*itself, "files"],
        f"{NUM_LOOKS} looks of a submit": [*itself, "looks"],
    }


def _measure(line: str, command: Sequence[str], environment: Mapping[str, str], pid: int) -> None:
    environment = {**environment, SERVER: str(pid)}
    before, began, used = _cpu_seconds(pid), time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    # A process between, as the most memory of all children is kept for good.
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.returncode); print(done.stdout[-9000:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=dict(environment), stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    (kib, status), _, told = done.stdout.partition("\n")[0].split(), "", done.stdout.partition("\n")[2]
    failed = "" if status == "0" else f"  exit code {status}"
    click.echo(f"{line:34}{seconds:9.1f}{own:9.1f}{_cpu_seconds(pid) - before:14.2f}{int(kib) / 1024:7.0f}{failed}")
    for note in [one for one in told.splitlines() if one.startswith("note: ")]:
        click.echo(f"    {note.removeprefix('note: ')}")


def _measure_here(here: Path, what: str) -> None:
    if what == "nothing":
        return
    from orchestrator.tracking.suite import Suite

    experiments, site = load_experiments(sorted(here.glob("t*.yaml"))), _site(here)
    if what == "read":
        from orchestrator.tracking.runs import open_tracking, read_runs

        uri = site.tracking_uri or running_server(site)
        assert uri is not None
        click.echo(f"note: {len(read_runs(open_tracking(uri, 'scale', create=False)))} runs")
    elif what == "trials":
        _submit_stand_ins(experiments, site)
    elif what == "files":
        suite = Suite(experiments, site)
        click.echo(f"note: {len(suite.make_plan(verified=True).missing_trainings)} of the files are lost")
    else:
        _look(experiments, site)


def _look(experiments: Sequence[Experiment], site: Site) -> None:
    """Follow trainings as a submit does, without Ray: RUNNING of them run, the others wait."""
    from orchestrator.cluster.capacity import Cluster
    from orchestrator.driver.follow import Follower, watch_seconds
    from orchestrator.experiment.plan import Ledger, lacking
    from orchestrator.tracking.ledger import begin_training
    from orchestrator.tracking.server import tracking_server
    from orchestrator.tracking.suite import Suite
    from orchestrator.worker.task import TrainingTask

    # The same rows with other numbers: none of them stands.
    others = [
        replace(one, rows=tuple(replace(row, train=replace(row.train, seed=1), seeds=(1,)) for row in one.rows))
        for one in experiments[:1]
    ]
    plan, suite = lacking(gather(others), Ledger()), Suite(others, site)
    tracking, uri = suite.connect(create=False), tracking_server(site)
    runs = list(plan.trainings.values())[:NUM_WAITING]
    tasks = [
        TrainingTask(
            train_run=run,
            evaluations=(),
            is_trained=False,
            storage=site.storage / "scale",
            data_root=site.home,
            weights_file=None,
            tracking_uri=uri,
        )
        for run in runs
    ]
    for task in tasks[:RUNNING]:
        begin_training(tracking, task.train_run)
    follower = Follower(tasks, tracking, Cluster(nodes=({"CPU": RUNNING},)), lambda _: None, lambda *_: None)
    for task in tasks[:RUNNING]:
        follower._progress[task.train_run.key].state = "starting"
    follower.draw()
    pid = int(os.environ[SERVER])
    seconds, cpu, server = [], [], _cpu_seconds(pid)
    for _ in range(NUM_LOOKS):
        began, used = time.monotonic(), time.process_time()
        follower.draw()
        seconds.append(time.monotonic() - began)
        cpu.append(time.process_time() - used)
    server = (_cpu_seconds(pid) - server) / NUM_LOOKS
    pause = watch_seconds(sum(seconds) / NUM_LOOKS)
    each = f"{min(seconds):.2f} to {max(seconds):.2f} s, {1e3 * sum(cpu) / NUM_LOOKS:.0f} ms of the driver's CPU, "
    each += f"{1e3 * server:.0f} ms of the server's; every {pause:.1f} s: {server / pause:.1%} of a core"
    click.echo(f"note: a look at {len(tasks)} trainings, {RUNNING} running: {each}")


def _submit_stand_ins(experiments: Sequence[Experiment], site: Site) -> None:
    """Let Tune run trials that do nothing, with all that a driver does around them."""
    from orchestrator.cluster.environment import set_ray_environment
    from orchestrator.experiment.plan import Ledger, lacking
    from orchestrator.tracking.runs import open_tracking

    set_ray_environment(is_local=True)
    from orchestrator.cluster.connect import start_ray, stop_ray
    from orchestrator.driver import launch

    vars(launch)["run_trial"] = _stand_in
    plan, uri = lacking(gather(experiments), Ledger()), tracking_server(site)
    open_tracking(uri, plan.suite)
    start_ray(site)
    began, used, total = time.monotonic(), time.process_time(), len(plan.trainings)
    told = 0

    def tell(statuses: Sequence[Any]) -> None:
        nonlocal told
        done = sum(status.state == "finished" for status in statuses)
        if done >= told + total // 8 or done == total > told:
            told = done
            cpu = time.process_time() - used
            click.echo(
                f"{done:5} of {total} trials: {time.monotonic() - began:6.1f} s; driver's CPU {cpu:6.1f} s, "
                f"{1e3 * cpu / done:5.1f} ms a trial; memory {_resident_mb():4.0f} MB"
            )

    click.echo(f"{total} trials, {_resident_mb():.0f} MB before the first")
    try:
        outcome = launch.launch(plan, site, uri, show=tell)
    finally:
        stop_ray()
        stop_server(site)
    click.echo(f"exit code {outcome.exit_code}")


def _stand_in(config: dict[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": "", "log": ""}


def _resident_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 1024**2


def _site(here: Path) -> Site:
    return Site(home=here / "home", tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"))


def _write_files(here: Path, rows: int) -> list[Path]:
    """Write the tables of the suite: grids of learning rates."""
    here.mkdir(parents=True, exist_ok=True)
    files = []
    for number, first in enumerate(range(0, rows, ROWS_OF_A_FILE)):
        last = min(first + ROWS_OF_A_FILE, rows)
        rates = ", ".join(f"{(place + 1) * 1e-6:.6f}" for place in range(first, last))
        file = here / f"t{number:02d}.yaml"
        file.write_text(FILE.format(number=f"{number:02d}", rates=f"[{rates}]"))
        files.append(file)
    return files


@contextmanager
def _served(here: Path, database: str | None, plain: bool) -> Iterator[tuple[str, int]]:
    """Yield the address and the process of an MLflow server, and log in to it."""
    if database is None:
        site = Site(home=here / "home")
        uri = tracking_server(site)
        try:
            yield uri, int(json.loads((site.home / "mlflow" / "server.json").read_text())["pid"])
        finally:
            stop_server(site)
        return
    artifacts = here / "home" / "mlflow" / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    command, environment = (_plain if plain else _cluster)(database, artifacts)
    with subprocess.Popen(command, env=os.environ | environment) as process:
        try:
            for _ in range(600):
                try:
                    if requests.get(f"http://127.0.0.1:{PORT}/health", timeout=1.0).ok:
                        break
                except requests.RequestException:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{PORT}", process.pid
        finally:
            process.terminate()


def _plain(database: str, artifacts: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of MLflow as it comes."""
    command = [sys.executable, "-m", "uvicorn", "--port", PORT, "--log-level", "warning"]
    return [*command, "mlflow.server.fastapi_app:app"], {
        "_MLFLOW_SERVER_FILE_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(artifacts),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _cluster(database: str, artifacts: Path) -> tuple[list[str], dict[str, str]]:
    """Return those of a cluster's server, whose users have passwords of this run."""
    import sqlalchemy

    url = sqlalchemy.make_url(database)
    job = secrets.token_hex(24)
    os.environ |= {"MLFLOW_TRACKING_USERNAME": "rnc", "MLFLOW_TRACKING_PASSWORD": job}
    return [sys.executable, str(ROOT / "deploy" / "docker" / "mlflow" / "serve.py")], {
        "POSTGRES_HOST": url.host or "127.0.0.1",
        "POSTGRES_PORT": str(url.port or 5432),
        "POSTGRES_USER": url.username or "",
        "POSTGRES_PASSWORD": url.password or "",
        "POSTGRES_DB": url.database or "",
        "MLFLOW_ARTIFACTS_DESTINATION": str(artifacts),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(24),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(24),
        "MLFLOW_PORT": PORT,
        "RNC_MLFLOW_PASSWORD": job,
    }


def _fill(uri: str, address: str, files: Sequence[Path], artifacts: Path) -> None:
    """Insert the runs into MLflow's tables, which takes seconds where its API takes minutes."""
    import sqlalchemy
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag

    from orchestrator.tracking.runs import open_tracking

    tracking = open_tracking(uri, "scale")
    assert tracking.experiment_id is not None
    plan = gather(load_experiments(files))
    tables: dict[Any, list[dict[str, Any]]] = {
        one: [] for one in (SqlRun, SqlTag, SqlParam, SqlMetric, SqlLatestMetric)
    }
    began = now() - 86_400_000
    for place, (key, training) in enumerate(plan.trainings.items()):
        params = training_params(training.config)
        tags = {names.TRAIN_KEY: key, f"{names.TABLE}{training.tables[0]}": "wanted", names.WEIGHTS_SHA256: "a" * 64}
        curves = [f"train/{name}" for name in ("loss", "loss_class", "loss_box", "loss_confidence", "epoch", "lr")]
        curves += [f"perf/{name}" for name in ("images_per_s", "startup_s", "step_s", "data_s", "eta_s", "gpu_mib")]
        values = {name: 0.5 for name in curves} | {f"val/{name}": 12.345 for name in METRICS}
        _add(tables, tracking.experiment_id, artifacts, "training", training.label, began + place, tags, params, values)
        (evaluation,) = plan.evaluations_on(key)
        params |= inference_params(evaluation.inference)
        tags = {names.TRAIN_KEY: key, names.EVALUATION_KEY: evaluation.key, names.SPLIT: "test"}
        tags |= place_tags(evaluation) | {names.MATCHES_SHA256: "b" * 64, names.SHOWN_TABLES: "[]"}
        values = {f"val/{name}": 12.345 for name in METRICS} | {name: 12.35 for name in METRICS}
        values |= {f"misalignment/number {place}": 0.1 for place in range(12)}
        values |= {f"AP_class/class {place}": 10.0 for place in range(6)}
        name = f"{training.label}, seed 0"
        _add(tables, tracking.experiment_id, artifacts, "evaluation", name, began + place, tags, params, values)
    engine = sqlalchemy.create_engine(address)
    with engine.begin() as connection:
        for table, rows in tables.items():
            connection.execute(sqlalchemy.insert(table), rows)
    engine.dispose()


def _add(
    tables: Mapping[Any, list[dict[str, Any]]],
    experiment_id: str,
    artifacts: Path,
    kind: str,
    name: str,
    start: int,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    values: Mapping[str, float],
) -> None:
    run_id = os.urandom(16).hex()
    folder = artifacts / experiment_id / run_id / "artifacts"
    for path in FILES[kind]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(CONTENT)
    both = {
        names.KIND: kind,
        names.SUITE: "scale",
        names.SEED: "0",
        names.DRIVER: "somewhere 1 2",
        names.BEGUN: str(start),
        names.COMMIT: "c" * 40,
        names.FINGERPRINT: "d" * 64,
        names.FILES: json.dumps({path: len(CONTENT) for path in FILES[kind]}),
        names.NUM_WORKERS: "1",
        names.GPUS_PER_WORKER: "0",
        names.RUN_NAME: name,
        "mlflow.user": "somebody",
        "mlflow.source.name": "rnc",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c" * 40,
    }
    runs, all_tags, all_params, metrics, latest = tables.values()
    runs.append(
        {
            "run_uuid": run_id,
            "name": name,
            "source_type": "LOCAL",
            "source_name": "rnc",
            "entry_point_name": "",
            "user_id": "somebody",
            "status": "FINISHED",
            "start_time": start,
            "end_time": start + 1000,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/{experiment_id}/{run_id}/artifacts",
            "experiment_id": int(experiment_id),
        }
    )
    all_tags += [{"key": key, "value": value, "run_uuid": run_id} for key, value in {**both, **tags}.items()]
    all_params += [{"key": key, "value": value, "run_uuid": run_id} for key, value in params.items()]
    points = [
        {"key": key, "value": value, "timestamp": start, "step": 0, "is_nan": False, "run_uuid": run_id}
        for key, value in values.items()
    ]
    metrics += points
    latest += points


def _cpu_seconds(pid: int) -> float:
    """Of a process, by the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
