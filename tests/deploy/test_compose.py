"""deploy/compose, as docker-compose resolves it: it refuses to start without secrets, and keeps our rules."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.deploy.compose_rules import complaints
from tests.deploy.programs import program

ROOT = Path(__file__).parents[2]
FILES = ("compose.yaml", "compose.cpu.yaml", "compose.monitoring.yaml", "make-env.sh", ".env.example")
WITH_MONITORING = ("compose.yaml", "compose.monitoring.yaml")
COMBINATIONS = [
    ("compose.yaml",),
    ("compose.yaml", "compose.cpu.yaml"),
    WITH_MONITORING,
    ("compose.yaml", "compose.cpu.yaml", "compose.monitoring.yaml"),
]
SECRETS = (
    "POSTGRES_PASSWORD_FILE",
    "AWS_ACCESS_KEY_ID_FILE",
    "AWS_SECRET_ACCESS_KEY_FILE",
    "MLFLOW_AUTH_ADMIN_PASSWORD_FILE",
    "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE",
    "RNC_MLFLOW_PASSWORD_FILE",
    "RNC_MLFLOW_READER_PASSWORD_FILE",
    "RAY_AUTH_TOKEN_FILE",
    "GRAFANA_ADMIN_PASSWORD_FILE",
)


@pytest.fixture
def folder(tmp_path):
    """deploy/compose where nobody has been yet, without what somebody may have made there."""
    place = tmp_path / "deploy" / "compose"
    place.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / "deploy" / "compose" / name, place)
    return place


@pytest.fixture
def made(folder):
    """The same, after make-env.sh."""
    subprocess.run(["./make-env.sh"], cwd=folder, check=True, capture_output=True)
    return folder


def compose(folder, *words, files=("compose.yaml",)):
    named = [word for name in files for word in ("--file", name)]
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [program("docker-compose"), *named, "--profile", "*", *words]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=60)


def resolved(folder, files=("compose.yaml",)):
    done = compose(folder, "config", "--format", "json", files=files)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def secret_values(folder):
    return {path.name: path.read_text() for path in (folder / "secrets").iterdir()}


@pytest.mark.parametrize("files", COMBINATIONS, ids="+".join)
def test_every_combination_is_valid_and_keeps_our_rules(made, files):
    done = compose(made, "config", "--quiet", files=files)
    assert (done.returncode, done.stderr) == (0, "")
    assert complaints(resolved(made, files), secret_values(made)) == []


@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_it_refuses_without_a_secret_and_says_which(made, missing, how):
    env = made / ".env"
    lines = [line for line in env.read_text().splitlines() if not line.startswith(f"{missing}=")]
    assert len(lines) == len(env.read_text().splitlines()) - 1
    env.write_text("\n".join([*lines, *([f"{missing}="] if how == "empty" else [])]))
    done = compose(made, "config", "--quiet", files=WITH_MONITORING)
    assert done.returncode != 0
    assert missing in done.stderr and "make-env.sh" in done.stderr


def test_the_example_names_every_secret_and_has_none(folder):
    shutil.copy(folder / ".env.example", folder / ".env")
    settings = dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines() if line[:1].isupper())
    assert settings == dict.fromkeys(SECRETS, "")
    assert compose(folder, "config", "--quiet").returncode != 0


def test_make_env_writes_random_secrets_that_others_cannot_reach(made):
    values = secret_values(made)
    assert len(values) == len(set(values.values())) == len(SECRETS)
    assert all(len(value) == 48 for value in values.values())
    assert stat.S_IMODE((made / ".env").stat().st_mode) == 0o600
    assert stat.S_IMODE((made / "secrets").stat().st_mode) == 0o700
    # The users of the containers read what is mounted, and are not the user who made it.
    assert {stat.S_IMODE(path.stat().st_mode) for path in (made / "secrets").iterdir()} == {0o444}
    assert stat.S_IMODE((made / "data" / "coco").stat().st_mode) & 0o005 == 0o005


def test_make_env_overwrites_nothing_and_prints_no_secret(made):
    before = secret_values(made)
    again = subprocess.run(["./make-env.sh"], cwd=made, capture_output=True, text=True)
    assert again.returncode == 2 and ".env is there already" in again.stderr
    (made / ".env").unlink()
    again = subprocess.run(["./make-env.sh"], cwd=made, capture_output=True, text=True)
    assert again.returncode == 2 and "secrets is there already" in again.stderr
    assert secret_values(made) == before
    assert not any(value in again.stdout + again.stderr for value in before.values())


def test_only_the_worker_gets_the_gpus_and_none_are_asked_for_without(made):
    def devices(files):
        services = resolved(made, files)["services"]
        return {
            name: found
            for name, service in services.items()
            if (found := service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices"))
        }

    with_gpus = devices(("compose.yaml",))
    assert list(with_gpus) == ["ray-worker"] and with_gpus["ray-worker"][0]["capabilities"] == ["gpu"]
    assert devices(("compose.yaml", "compose.cpu.yaml")) == {}


def test_what_git_would_take_is_no_secret(made):
    ignored = (ROOT / "deploy" / "compose" / ".gitignore").read_text().split()
    assert {"/.env", "/secrets/"} <= set(ignored)


MISTAKES = {
    "port-to-everybody": ('"127.0.0.1:${RAY_PORT:-8265}:8265"', '"${RAY_PORT:-8265}:8265"', "beyond 127.0.0.1"),
    "new-privileges": ('security_opt: ["no-new-privileges:true"]', "security_opt: []", "new privileges"),
    "capabilities": ("cap_drop: [ALL]", "cap_drop: [NET_RAW]", "capabilities"),
    "writable-root": ("read_only: true", "read_only: false", "root file system"),
    "root": ('user: "999:999" # postgres', 'user: "0:0"', "postgres: runs as root"),
    "whom-the-image-says": ('    user: "999:999" # postgres\n', "", "postgres: runs as root"),
    "secret-in-environment": (
        "MLFLOW_TRACKING_PASSWORD_FILE: /run/secrets/rnc-password",
        "MLFLOW_TRACKING_PASSWORD: hunter2hunter2",
        "MLFLOW_TRACKING_PASSWORD is a secret",
    ),
    "secret-from-environment": (
        "file: ${RAY_AUTH_TOKEN_FILE:?is not set; run ./make-env.sh}",
        "environment: RAY_AUTH_TOKEN_FILE",
        "is no file",
    ),
    "open-backend": ("backend: {internal: true}", "backend: {}", "not internal"),
    "database-in-front": ("secrets: [postgres-password]\n    networks: [backend]",
                          "secrets: [postgres-password]\n    networks: [frontend]", "postgres: is in a network"),
    "no-health-check": (
        "test: [CMD, pg_isready, --username=mlflow, --dbname=mlflow, --host=127.0.0.1]",
        "disable: true",
        "postgres: has no health check",
    ),
    "endless-log": ("options: {max-size: 20m, max-file: \"5\"}", "options: {}", "fill the disk"),
    "writable-data": (":/data/coco:ro", ":/data/coco", "may write to"),
    "host-network": ("networks: [frontend]\n  volumes:", "network_mode: host\n  volumes:", "network of the machine"),
    "more-rights": ("init: true\n  environment: &ray", "cap_add: [SYS_ADMIN]\n  environment: &ray", "more rights"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(made, mistake):
    right, wrong, complaint = MISTAKES[mistake]
    text = (made / "compose.yaml").read_text()
    assert right in text
    (made / "compose.yaml").write_text(text.replace(right, wrong))
    assert complaint in "\n".join(complaints(resolved(made), secret_values(made)))


MONITORING_MISTAKES = {
    "secret-in-environment": (
        "GF_SECURITY_ADMIN_PASSWORD__FILE: /run/secrets/grafana-admin-password",
        "GF_SECURITY_ADMIN_PASSWORD: hunter2hunter2",
        "grafana: GF_SECURITY_ADMIN_PASSWORD is a secret",
    ),
    "port-to-everybody": ('"127.0.0.1:3000:3000"', '"3000:3000"', "grafana: port 3000 is published beyond"),
    "whom-the-image-says": ('    user: "65534:65534" # nobody\n', "", "prometheus: runs as root"),
    "no-health-check": ('"http://127.0.0.1:9090/-/ready"]', '"x"]\n      disable: true', "prometheus: has no health"),
    "endless-log": ('options: {max-size: 20m, max-file: "5"}', "options: {}", "grafana: may fill the disk"),
    "writable-rules": ("/etc/prometheus/rules.yml:ro", "/etc/prometheus/rules.yml", "prometheus: may write to"),
}


@pytest.mark.parametrize("mistake", MONITORING_MISTAKES)
def test_a_mistake_planted_in_monitoring_is_found(made, mistake):
    right, wrong, complaint = MONITORING_MISTAKES[mistake]
    file = made / "compose.monitoring.yaml"
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong))
    assert complaint in "\n".join(complaints(resolved(made, WITH_MONITORING), secret_values(made)))


def test_a_secret_that_was_written_into_the_file_is_found(made):
    token = (made / "secrets" / "ray-auth-token").read_text()
    text = (made / "compose.yaml").read_text()
    (made / "compose.yaml").write_text(
        text.replace("- --port=6379", f"- --port=6379\n      - --redis-password={token}")
    )
    assert complaints(resolved(made), secret_values(made)) == [
        "the value of ray-auth-token stands in the configuration"
    ]


@pytest.mark.parametrize("typo", [("read_only:", "readonly:"), ("volumes:\n  postgres: {}", "volumes:\n  postgre: {}")])
def test_a_typo_in_a_key_is_refused_by_compose_itself(made, typo):
    text = (made / "compose.yaml").read_text()
    assert typo[0] in text
    (made / "compose.yaml").write_text(text.replace(*typo))
    assert compose(made, "config", "--quiet").returncode != 0
