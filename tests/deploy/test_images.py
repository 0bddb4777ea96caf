"""The images of deploy/docker, built for real, and what runs in them."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.images import ROOT, Builder, builder, checkout, run_hardened

pytestmark = pytest.mark.slow

RNC, MLFLOW = "localhost/retinanet-conf", "localhost/retinanet-conf-mlflow"
PLANTED = "planted-e1f0c6a2b7"
PLACES = ("deploy/compose/.env", "deploy/compose/secrets/token", ".env", "runs/x.json", "model/notes.txt", "id.pem")


@dataclass(frozen=True)
class Built:
    """The images, and their files."""

    builder: Builder
    roots: dict[str, Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both images, built of a checkout in which secrets lie where people leave them."""
    with builder(tmp_path_factory.mktemp("images")) as made:
        context = made.folder / "checkout"
        checkout(context)
        for place in PLACES:
            (context / place).parent.mkdir(parents=True, exist_ok=True)
            (context / place).write_text(PLANTED)
        made.make_base()
        with ThreadPoolExecutor(2) as pool:
            building = [
                pool.submit(made.build, "deploy/docker/Dockerfile", context, RNC, PLANTED, 560),
                pool.submit(made.build, "deploy/docker/mlflow/Dockerfile", context, MLFLOW, PLANTED, 400),
            ]
            for one in building:
                one.result()
        with made.mounted(RNC) as rnc, made.mounted(MLFLOW) as mlflow:
            print("\n" + made.run("images"))
            yield Built(made, {RNC: rnc, MLFLOW: mlflow})


def settings(built, image):
    """What the image says of how it is run."""
    return json.loads(built.builder.run("inspect", "--type", "image", image))["OCIv1"]["config"]


def run(built, image, *words, **more):
    """Run a command as a hardened container of the image does."""
    environment = [*settings(built, image)["Env"], *(f"{name}={value}" for name, value in more.items())]
    return run_hardened(built.roots[image], environment, *words)


def test_the_image_plans_the_miniature_tables_unprivileged_and_with_a_root_that_cannot_be_written(built):
    planned = run(built, RNC, "rnc-entrypoint", "rnc", "plan", "experiments/miniature")
    assert planned.returncode == 0, planned.stderr
    assert "45 rows of 6 tables: 19 trainings" in planned.stdout
    written = run(built, RNC, "sh", "-c", "id -u; touch /app/x || touch /opt/x || touch /shared/x")
    assert written.stdout == "10001\n" and written.stderr.count("Read-only file system") == 3


def test_the_image_holds_what_a_head_a_worker_and_a_job_import(built):
    code = "import torch, torchvision, ray.train, ray.tune, mlflow, hotcoco, numba; print(torch.version.cuda)"
    done = run(built, RNC, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() not in ("", "None")  # it can use GPUs
    ray = run(built, RNC, "ray", "--version")
    assert ray.stdout.startswith("ray, version 2.60")
    assert run(built, RNC, "bash", "-lc", "ray --version").stdout == ray.stdout  # KubeRay's may be a login shell
    assert run(built, RNC, "sh", "-c", "command -v wget").returncode == 0  # for the probes of KubeRay


def test_the_entrypoint_hands_over_the_password_of_mlflow_out_of_its_file(built):
    words = ["rnc-entrypoint", "sh", "-c", "echo $MLFLOW_TRACKING_PASSWORD"]
    handed = run(built, RNC, *words, MLFLOW_TRACKING_PASSWORD_FILE="/app/LICENSE")
    assert "Apache License" in handed.stdout
    refused = run(built, RNC, *words, MLFLOW_TRACKING_PASSWORD_FILE="/run/secrets/none")
    assert refused.returncode == 2 and "cannot be read by user 10001" in refused.stderr


def test_the_server_of_mlflow_starts_and_names_each_secret_that_is_missing(built):
    started = run(built, MLFLOW, "python3", "serve.py")
    assert started.returncode == 2, started.stderr
    for name in ("POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        assert f"{name} is not set" in started.stderr
    code = "import mlflow.server.auth, psycopg2, boto3; from orchestrator.mlflow_server import files, runs"
    imported = run(built, MLFLOW, "python3", "-c", code)
    assert imported.returncode == 0, imported.stderr


@pytest.mark.parametrize("image", [RNC, MLFLOW])
def test_an_image_says_who_it_runs_as_and_what_it_is(built, image):
    found = settings(built, image)
    assert found["User"] == "10001:10001"
    assert found["WorkingDir"] == "/app"
    assert found["Labels"]["org.opencontainers.image.title"] == image.removeprefix("localhost/")
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize("image", [RNC, MLFLOW])
def test_no_secret_gets_into_an_image(built, image):
    root = built.roots[image]
    assert PLANTED not in built.builder.run("inspect", "--type", "image", image)
    # What pip and uv note of where they installed from is in the folders *.dist-info; the rest of them is the lock's.
    packages = sorted(root.glob("opt/venv/lib/python3*/site-packages/*.dist-info"))
    assert len(packages) > 90
    other = [root / name for name in os.listdir(root) if name not in ("opt", "proc", "sys", "dev")]
    rest = [path for path in (root / "opt").iterdir() if path.name != "venv"]
    search = ["grep", "-rlF", "--devices=skip", PLANTED, *map(str, [*other, *rest, *packages])]
    found = subprocess.run(search, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (1, "")  # 1: nothing was found
    for name in (".env", ".git", "deploy", "runs", "tests"):
        assert not (root / "app" / name).exists()


@pytest.mark.parametrize("image", [RNC, MLFLOW])
def test_nothing_in_an_image_belongs_to_its_user_but_what_it_shall_write(built, image):
    owned = ["find", str(built.roots[image]), "-xdev", "-user", "10001", "-not", "-path", "*/proc/*"]
    done = subprocess.run(owned, capture_output=True, text=True, timeout=120)
    names = {"/" + str(Path(line).relative_to(built.roots[image])) for line in done.stdout.splitlines()}
    assert names <= {"/shared", "/data/coco", "/data/weights"} and "/shared" in names
    rights = ["find", str(built.roots[image]), "-xdev", "-perm", "-4000", "-path", "*/opt/*"]
    assert subprocess.run(rights, capture_output=True, text=True, timeout=120).stdout == ""


def test_the_environment_has_bytecode(built):
    packages = next(built.roots[RNC].glob("opt/venv/lib/python3*/site-packages"))
    assert list((packages / "ray" / "__pycache__").glob("*.pyc"))
    assert list((built.roots[RNC] / "app" / "orchestrator" / "__pycache__").glob("*.pyc"))
    assert ROOT.joinpath("requirements.lock").read_text() == (built.roots[RNC] / "opt/requirements.lock").read_text()
