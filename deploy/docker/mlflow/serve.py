"""Serves MLflow on PostgreSQL and S3, with users: python serve.py, in a container or on a plain machine.

All settings come from the environment; of a secret NAME, NAME_FILE may name a file instead. No secret gets on a command
line, into an address or into a file: PostgreSQL's client and boto3 read theirs from the environment of this process.

Users: the admin may do everything; `rnc` may read everything, and write what it created; `reader` may read.
"""

import base64
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "::1")
MIN_LENGTH, MIN_DIFFERENT = 12, 6  # characters of a secret
PLACEHOLDER = re.compile(
    r"change.?(me|it|this)|replace|placeholder|example|pass.?word|secret|^(your|my|the|some)\b|^[<$]", re.I
)
PORT = (r"[1-9]\d{0,4}", "a port; in Kubernetes set enableServiceLinks: false, else services set such variables")
DATABASE = (r"[a-z_][a-z0-9_]*", "a name of small letters, digits and _")
FOREIGN = ("_MLFLOW_", "UVICORN_", "MLFLOW_SERVER_", "MLFLOW_TRACKING_", "MLFLOW_REGISTRY_", "MLFLOW_ENABLE_WORKSPACES")
DATABASE_SECONDS = 60.0
JOB, READER = "rnc", "reader"
READING = re.compile(r"/(search[\w-]*|graphql|get-latest-versions|presigned-download-url|batchGetInfos|rnc/files)$")
"""Paths that read although one POSTs to them."""

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Refusal(Exception):
    """A setting that has to be mended before the server may start; never holds the value of a secret."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says."""

    host: str
    port: int
    allowed_hosts: str
    allowed_origins: str
    postgres: dict[str, str]
    """As PostgreSQL's client calls them."""
    database: str
    auth_database: str
    storage: dict[str, str]
    """As boto3 and MLflow call them."""
    artifacts: str
    admin: str
    passwords: dict[str, str]
    """Of each user; of the reader only if there is one."""
    secret_key: str


def read_settings(environ: dict[str, str]) -> Settings:
    """Check everything, and name all that is wrong at once.

    Raises:
        Refusal: something is missing, too short, or a placeholder.
    """
    wrong: list[str] = []

    def secret(name: str, *, needed: bool = True, shortest: int = MIN_LENGTH) -> str:
        value, complaint = _secret(environ, name, shortest)
        if complaint and (needed or value):
            wrong.append(f"{name} {complaint}")
        return value

    def plain(name: str, default: str, pattern: str, expected: str) -> str:
        value = environ.get(name) or default
        if not re.fullmatch(pattern, value):
            wrong.append(f"{name} is {value!r}, expected {expected}")
        return value

    endpoint = plain("MLFLOW_S3_ENDPOINT_URL", "", r"(https?://.+)?", "http:// or https://, or nothing for AWS")
    with_keys = bool(endpoint or environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_ACCESS_KEY_ID_FILE"))
    keys = {
        "AWS_ACCESS_KEY_ID": secret("AWS_ACCESS_KEY_ID", needed=with_keys, shortest=4),
        "AWS_SECRET_ACCESS_KEY": secret("AWS_SECRET_ACCESS_KEY", needed=with_keys),
    }
    admin = plain("MLFLOW_AUTH_ADMIN_USERNAME", "admin", rf"(?!({JOB}|{READER})$)\S+", f"neither {JOB} nor {READER}")
    passwords = {
        admin: secret("MLFLOW_AUTH_ADMIN_PASSWORD"),
        JOB: secret("RNC_MLFLOW_PASSWORD"),
        READER: secret("RNC_MLFLOW_READER_PASSWORD", needed=False),
    }
    host, hosts = environ.get("MLFLOW_HOST") or "127.0.0.1", environ.get("MLFLOW_ALLOWED_HOSTS", "")
    if host not in LOCAL and not hosts:
        wrong.append(f"MLFLOW_ALLOWED_HOSTS is not set, and MLFLOW_HOST is {host}: name who is asked, as mlflow:5000")
    if "*" in hosts.split(","):
        wrong.append("MLFLOW_ALLOWED_HOSTS is *, which lets any web page of a user's browser in; name the hosts")
    settings = Settings(
        host=host,
        port=int(re.sub(r"\D", "", plain("MLFLOW_PORT", "5000", *PORT)) or 0),
        allowed_hosts=hosts,
        allowed_origins=environ.get("MLFLOW_CORS_ALLOWED_ORIGINS", ""),
        postgres={
            "PGHOST": plain("POSTGRES_HOST", "", r"\S+", "the host of PostgreSQL"),
            "PGPORT": plain("POSTGRES_PORT", "5432", *PORT),
            "PGUSER": environ.get("POSTGRES_USER") or "mlflow",
            "PGPASSWORD": secret("POSTGRES_PASSWORD"),
        },
        database=plain("POSTGRES_DB", "mlflow", *DATABASE),
        auth_database=plain("MLFLOW_AUTH_DB", "mlflow_auth", *DATABASE),
        storage={name: value for name, value in ({"MLFLOW_S3_ENDPOINT_URL": endpoint} | keys).items() if value},
        artifacts=environ.get("MLFLOW_ARTIFACTS_DESTINATION") or "s3://mlflow/artifacts",
        admin=admin,
        passwords={user: password for user, password in passwords.items() if password},
        secret_key=secret("MLFLOW_FLASK_SERVER_SECRET_KEY"),
    )
    if len(set(settings.passwords.values())) < len(settings.passwords):
        wrong.append("two users of MLflow have the same password; give each its own")
    if wrong:
        raise Refusal("\n".join(wrong))
    return settings


def _secret(environ: dict[str, str], name: str, shortest: int) -> tuple[str, str]:
    """Return a secret, and what is wrong with it."""
    value, path = environ.get(name, ""), environ.get(f"{name}_FILE", "")
    if value and path:
        return value, f"and {name}_FILE are both set; unset one of them"
    if path:
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            return "", f"cannot be read from {name}_FILE, {path} ({getattr(error, 'strerror', 'no text')})"
    if not value:
        return "", f"is not set; set it, or {name}_FILE to the path of a file that holds it"
    if len(value) < shortest:
        return value, f"has {len(value)} characters, expected at least {shortest}"
    if PLACEHOLDER.search(value) or len(set(value)) < min(shortest, MIN_DIFFERENT):
        return value, "is a placeholder; make one with: openssl rand -hex 24"
    return value, ""


def serve(settings: Settings, folder: Path) -> None:
    """Serve until SIGTERM or SIGINT, in this very process."""
    import uvicorn  # MLflow's own middleware is only set up where it finds it imported

    _set_environment(settings, folder)
    _make_auth_database(settings)
    from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS, create_app, store
    from mlflow.server.handlers import initialize_backend_stores

    _hide_storage()
    initialize_backend_stores(_address(settings.database), _address(settings.database), "mlflow-artifacts:/")
    BEFORE_REQUEST_VALIDATORS["/metrics", "GET"] = lambda: True  # of any user, and so the reader's as Prometheus is
    _add_lists()
    app = reader_reads(create_app())
    set_users(store, settings)
    print(f"MLflow listens on {settings.host}:{settings.port}", flush=True)
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", timeout_graceful_shutdown=5)


def _add_lists() -> None:
    """Tell rnc all runs of an experiment and their files at once, behind MLflow's login, to whom may read them."""
    import mlflow.server
    from mlflow.server.auth import BEFORE_REQUEST_VALIDATORS, validate_can_read_experiment

    here = Path(__file__).resolve().parent
    # The project's package lies beside this file in the image, and at the root of a checkout.
    sys.path.append(str(here if (here / "orchestrator").is_dir() else here.parents[2]))
    from orchestrator import names
    from orchestrator.mlflow_server.files import list_files
    from orchestrator.mlflow_server.runs import list_runs

    mlflow.server.app.add_url_rule(names.LISTED_RUNS, view_func=list_runs)
    mlflow.server.app.add_url_rule(names.LISTED_FILES, view_func=list_files, methods=["POST"])
    BEFORE_REQUEST_VALIDATORS[names.LISTED_RUNS, "GET"] = validate_can_read_experiment
    BEFORE_REQUEST_VALIDATORS[names.LISTED_FILES, "POST"] = validate_can_read_experiment


def _hide_storage() -> None:
    """Let no client fetch files from the object store itself, which answers nobody but this server."""
    server_info_api: Any = import_module("mlflow.server.server_info_api")
    told = server_info_api.build_server_info_payload
    through_server = {"multipart_uploads_enabled": False, "multipart_downloads_enabled": False}
    server_info_api.build_server_info_payload = lambda: told() | through_server


def _set_environment(settings: Settings, folder: Path) -> None:
    """Tell MLflow, boto3 and PostgreSQL's client what they have to know."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    (folder / "auth.ini").write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {_address(settings.auth_database)}\n"
        # Hashing a password takes longer than most requests; this process alone changes them, and forgets at once.
        "auth_cache_ttl_seconds = 60\n"
    )
    os.environ |= settings.postgres | settings.storage
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": _address(settings.database),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": settings.artifacts,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "prometheus_multiproc_dir": str(folder / "metrics"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": settings.admin,
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings.passwords[settings.admin],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings.secret_key,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    doors = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": settings.allowed_hosts,
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": settings.allowed_origins,
    }
    os.environ |= {name: value for name, value in doors.items() if value}  # empty is not unset to MLflow


def _address(database: str) -> str:
    """The address of a database, whose host, user and password PostgreSQL's client reads from the environment."""
    return f"postgresql+psycopg2:///{database}"


def _make_auth_database(settings: Settings) -> None:
    """Wait for PostgreSQL, and make the database of users if there is none.

    Raises:
        Refusal: PostgreSQL does not answer, takes no such user, or does not let it make a database.
    """
    import psycopg2

    deadline = time.monotonic() + DATABASE_SECONDS
    while True:
        try:
            connection = psycopg2.connect(dbname=settings.database, connect_timeout=5)
            break
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error) or "does not exist" in str(error) or time.monotonic() > deadline:
                raise Refusal(f"POSTGRES_HOST: {' '.join(str(error).split())}") from None
            time.sleep(0.5)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (settings.auth_database,))
            if cursor.fetchone() is None:
                cursor.execute(f'CREATE DATABASE "{settings.auth_database}"')
    except psycopg2.errors.InsufficientPrivilege:
        user = settings.postgres["PGUSER"]
        raise Refusal(
            f"POSTGRES_USER: {user} may not make the database of users; let an administrator run: "
            f"CREATE DATABASE {settings.auth_database} OWNER {user}"
        ) from None
    finally:
        connection.close()


def set_users(store: Any, settings: Settings) -> None:
    """Make the users, give them the passwords of now, and remove the reader where it has none."""
    for user, password in settings.passwords.items():
        is_admin = user == settings.admin
        if not store.has_user(user):
            store.create_user(user, password, is_admin=is_admin)
        elif not store.authenticate_user(user, password) or store.get_user(user).is_admin != is_admin:
            store.update_user(user, password=password, is_admin=is_admin)
    if READER not in settings.passwords and store.has_user(READER):
        store.delete_user(READER)


def reader_reads(app: App) -> App:
    """Refuse to the reader what does not read: MLflow itself lets every user create experiments and models."""

    async def guarded(scope: Scope, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] == "http" and _is_reader(scope) and not _reads(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Permission denied"})
        else:
            await app(scope, receive, send)

    return guarded


def _is_reader(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        scheme, _, rest = value.partition(b" ")
        if name.lower() == b"authorization" and scheme.lower() == b"basic":
            with suppress(ValueError):
                if base64.b64decode(rest.strip()).partition(b":")[0] == READER.encode():
                    return True
    return False


def _reads(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD", "OPTIONS") or (
        scope["method"] == "POST" and READING.search(scope["path"]) is not None
    )


def main() -> int:
    """Start, or say what has to be mended first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which uvicorn raises again once it has ended its requests
    try:
        settings = read_settings(dict(os.environ))
        with tempfile.TemporaryDirectory(prefix="rnc-mlflow-") as folder:
            serve(settings, Path(folder))
    except Refusal as refusal:
        for line in str(refusal).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
