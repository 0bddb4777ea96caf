"""What the MLflow server asks of its environment before it starts: secrets that are ones, and doors that are closed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.deploy.stack import SERVE, Stack

GOOD = {
    "POSTGRES_HOST": "db",
    "POSTGRES_PASSWORD": "4f1c09be77aa25d3",
    "MLFLOW_S3_ENDPOINT_URL": "http://s3:8333",
    "AWS_ACCESS_KEY_ID": "rnc-mlflow",
    "AWS_SECRET_ACCESS_KEY": "9be74f1c0aa25d37",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "25d34f1c09be77aa",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "77aa25d34f1c09be",
    "RNC_MLFLOW_PASSWORD": "09be77aa25d34f1c",
}
SECRETS = [name for name in GOOD if name not in ("POSTGRES_HOST", "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID")]
PLACEHOLDERS = [
    "changeme-changeme",
    "CHANGE_ME_PLEASE_1",
    "replace-me-with-one",
    "<generate a long one>",
    "your-admin-token-here",
    "examplekey123456",
    "password12345678",
    "my-secret-key-of-flask",
    "aaaaaaaaaaaaaaaaaaaa",
    "${POSTGRES_PASSWORD}",
]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve", SERVE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve"] = module  # where a frozen dataclass looks for its own module
    spec.loader.exec_module(module)
    return module


serve = _load()


def complaints(**changes: str | None) -> list[str]:
    """What is wrong with a good environment that was changed; None takes a variable away."""
    environ = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    try:
        serve.read_settings(environ)
    except serve.Refusal as refusal:
        return str(refusal).splitlines()
    return []


def test_a_good_environment_is_taken_and_has_safe_defaults():
    settings = serve.read_settings(GOOD)
    assert (settings.host, settings.port) == ("127.0.0.1", 5000)
    assert settings.postgres == {
        "PGHOST": "db",
        "PGPORT": "5432",
        "PGUSER": "mlflow",
        "PGPASSWORD": GOOD["POSTGRES_PASSWORD"],
    }
    assert (settings.database, settings.auth_database) == ("mlflow", "mlflow_auth")
    assert settings.artifacts == "s3://mlflow/artifacts"
    assert settings.passwords.keys() == {"admin", "rnc"}


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_is_named(name: str):
    assert complaints(**{name: None}) == [
        f"{name} is not set; set it, or {name}_FILE to the path of a file that holds it"
    ]
    assert complaints(**{name: ""}) == complaints(**{name: None})


@pytest.mark.parametrize("name", SECRETS)
def test_a_short_secret_is_named_and_not_shown(name: str):
    assert complaints(**{name: "a1b2c3d4e5f"}) == [f"{name} has 11 characters, expected at least 12"]


@pytest.mark.parametrize("value", PLACEHOLDERS)
@pytest.mark.parametrize("name", SECRETS)
def test_a_placeholder_is_named_and_not_shown(name: str, value: str):
    (complaint,) = complaints(**{name: value})
    assert complaint == f"{name} is a placeholder; make one with: openssl rand -hex 24"


def test_what_openssl_makes_is_never_taken_for_a_placeholder():
    for _ in range(2000):
        assert serve._secret({"A": os.urandom(24).hex()}, "A", 12)[1] == ""


def test_everything_that_is_wrong_is_told_at_once():
    said = complaints(RNC_MLFLOW_PASSWORD=None, POSTGRES_PASSWORD="short", POSTGRES_HOST=None, MLFLOW_PORT="none")
    assert sorted(line.split()[0] for line in said) == [
        "MLFLOW_PORT",
        "POSTGRES_HOST",
        "POSTGRES_PASSWORD",
        "RNC_MLFLOW_PASSWORD",
    ]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_lie_in_a_file(name: str, tmp_path: Path):
    file = tmp_path / "secret"
    file.write_text(GOOD[name] + "\n")
    given = {**GOOD, f"{name}_FILE": str(file)}
    del given[name]
    assert serve.read_settings(given) == serve.read_settings(GOOD)
    file.write_text("changeme-changeme")
    assert complaints(**{name: None, f"{name}_FILE": str(file)})[0].startswith(f"{name} is a placeholder")
    assert complaints(**{f"{name}_FILE": str(file)}) == [f"{name} and {name}_FILE are both set; unset one of them"]
    (missing,) = complaints(**{name: None, f"{name}_FILE": "/no/such/file"})
    assert missing == f"{name} cannot be read from {name}_FILE, /no/such/file (No such file or directory)"


def test_the_reader_is_there_only_with_a_good_password_of_its_own():
    assert "reader" in serve.read_settings({**GOOD, "RNC_MLFLOW_READER_PASSWORD": "aa25d34f1c09be77"}).passwords
    assert complaints(RNC_MLFLOW_READER_PASSWORD="short") == [
        "RNC_MLFLOW_READER_PASSWORD has 5 characters, expected at least 12"
    ]
    assert complaints(RNC_MLFLOW_READER_PASSWORD=GOOD["RNC_MLFLOW_PASSWORD"]) == [
        "two users of MLflow have the same password; give each its own"
    ]
    assert complaints(MLFLOW_AUTH_ADMIN_USERNAME="rnc")[0].startswith("MLFLOW_AUTH_ADMIN_USERNAME is 'rnc', expected")


def test_on_aws_a_role_of_the_machine_may_stand_for_keys():
    absent: dict[str, Any] = dict.fromkeys(("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    assert complaints(**absent) == []
    assert complaints(**absent | {"AWS_ACCESS_KEY_ID": "rnc-mlflow"})[0].startswith("AWS_SECRET_ACCESS_KEY is not set")


def test_beyond_localhost_the_names_of_the_server_have_to_be_told():
    assert complaints(MLFLOW_HOST="0.0.0.0") == [
        "MLFLOW_ALLOWED_HOSTS is not set, and MLFLOW_HOST is 0.0.0.0: name who is asked, as mlflow:5000"
    ]
    assert complaints(MLFLOW_HOST="0.0.0.0", MLFLOW_ALLOWED_HOSTS="mlflow:5000") == []
    assert complaints(MLFLOW_HOST="0.0.0.0", MLFLOW_ALLOWED_HOSTS="mlflow:5000,*")[0].startswith("MLFLOW_ALLOWED_HOSTS")


def test_the_variables_that_kubernetes_sets_for_a_service_are_told_from_ports():
    (said,) = complaints(MLFLOW_PORT="tcp://10.0.0.7:5000")
    assert said.startswith("MLFLOW_PORT is 'tcp://10.0.0.7:5000'") and "enableServiceLinks: false" in said


@pytest.mark.parametrize("name", ["POSTGRES_DB", "MLFLOW_AUTH_DB"])
def test_the_name_of_a_database_is_no_sql(name: str):
    assert complaints(**{name: 'a"; DROP DATABASE mlflow; --'})[0].startswith(name)


@pytest.mark.parametrize(
    ("method", "path", "reads"),
    [
        ("GET", "/api/2.0/mlflow/runs/get", True),
        ("POST", "/api/2.0/mlflow/runs/search", True),
        ("POST", "/ajax-api/2.0/mlflow/logged-models/search", True),
        ("POST", "/graphql", True),
        ("POST", "/api/2.0/mlflow/experiments/create", False),
        ("POST", "/api/2.0/mlflow/runs/search/../create", False),
        ("POST", "/api/2.0/mlflow/registered-models/create", False),
        ("PATCH", "/api/2.0/mlflow/users/update-password", False),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/search", False),
        ("DELETE", "/api/2.0/mlflow/registered-models/delete", False),
    ],
)
def test_what_reads_is_told_from_what_writes(method: str, path: str, reads: bool):
    assert serve._reads({"method": method, "path": path}) is reads


def test_the_reader_is_known_however_it_writes_its_name():
    def is_reader(*headers: bytes) -> bool:
        return bool(serve._is_reader({"headers": [(b"authorization", header) for header in headers]}))

    assert is_reader(b"Basic cmVhZGVyOng=")  # reader:x
    assert is_reader(b"basic   cmVhZGVyOng=")
    assert is_reader(b"Basic cm5jOng=", b"Basic cmVhZGVyOng=")
    assert not is_reader(b"Basic cm5jOng=")  # rnc:x
    assert not is_reader(b"Bearer cmVhZGVyOng=")
    assert not is_reader(b"Basic !")
    assert not is_reader()


def test_the_script_ends_with_the_reasons_and_without_a_traceback():
    environ = {name: value for name, value in GOOD.items() if name != "RNC_MLFLOW_PASSWORD"}
    environ |= {"POSTGRES_PASSWORD": "changeme-hunter2", "PATH": os.environ.get("PATH", "")}
    done = subprocess.run([sys.executable, str(SERVE)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert sorted(done.stderr.splitlines()) == [
        "error: POSTGRES_PASSWORD is a placeholder; make one with: openssl rand -hex 24",
        *(f"error: {line}" for line in complaints(RNC_MLFLOW_PASSWORD=None)),
    ]


@pytest.mark.slow
def test_users_are_made_once_follow_their_passwords_and_go_with_them(tmp_path: Path):
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store: Any = SqlAlchemyStore()
    store.init_db(f"sqlite:///{tmp_path / 'auth.db'}")

    def start(**changes: str) -> dict[str, bool]:
        serve.set_users(store, serve.read_settings({**GOOD, **changes}))
        return {user.username: user.is_admin for user in store.list_users()}

    both = {"RNC_MLFLOW_READER_PASSWORD": "aa25d34f1c09be77"}
    assert start(**both) == start(**both) == {"admin": True, "rnc": False, "reader": False}
    changed = {"RNC_MLFLOW_PASSWORD": "1c09be77aa25d34f", "MLFLOW_AUTH_ADMIN_PASSWORD": "be77aa25d34f1c09"}
    store.update_user("rnc", is_admin=True)  # as somebody might, who should not
    assert start(**changed) == {"admin": True, "rnc": False}
    assert store.authenticate_user("rnc", changed["RNC_MLFLOW_PASSWORD"])
    assert store.authenticate_user("admin", changed["MLFLOW_AUTH_ADMIN_PASSWORD"])
    assert not store.authenticate_user("rnc", GOOD["RNC_MLFLOW_PASSWORD"])


@pytest.mark.slow
def test_a_database_that_does_not_take_the_password_ends_the_start_at_once(services: Stack):
    environ = {**GOOD, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(services.postgres_port)}
    environ |= {"PATH": os.environ.get("PATH", ""), "TMPDIR": str(services.folder / "tmp")}
    done = subprocess.run([sys.executable, str(SERVE)], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: POSTGRES_HOST: " in done.stderr and "password authentication failed" in done.stderr
    assert GOOD["POSTGRES_PASSWORD"] not in done.stdout + done.stderr
