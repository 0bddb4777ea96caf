"""Calls of the REST API of an MLflow server, with retries; importing mlflow takes longer than a whole `rnc plan`."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from orchestrator.addresses import without_secrets
from orchestrator.errors import FULL_WORDS, UserError, free_of, is_full
from orchestrator.homes import home_of
from orchestrator.tracking.database import MALFORMED, damaged_database

CONNECT_SECONDS = 2.0
READ_SECONDS = 30.0
PAUSES = (0.3, 0.9)  # seconds before the second and the third attempt
BUSY = (429, 503)
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # a locked database, a full disk
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
AT_ONCE = 4  # more questions at once are not answered sooner
# A connection that ends within an answer, of which requests makes no ConnectionError.
BROKEN_OFF = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)
NOT_TWICE = ("runs/create",)  # every other call may arrive twice and have the effect of one


class ServerAway(UserError):
    """The tracking server does not answer now; it may later."""


class DiskFull(ServerAway):
    """The tracking server has no room; it takes records again once there is some."""


class Refused(UserError):
    """The tracking server answered with an error; `code` is MLflow's name for it."""

    def __init__(self, message: str, code: str = "") -> None:
        """Keep the code beside the message; pickle adds it later."""
        super().__init__(message)
        self.code = code

    @property
    def is_gone(self) -> bool:
        """Whether what was named is not there, or lies in the trash."""
        return self.code == "RESOURCE_DOES_NOT_EXIST" or "Current state is deleted" in str(self)

    @property
    def may_pass(self) -> bool:
        """Whether the server may answer otherwise later."""
        return self.code in PASSING


def post(uri: str, path: str, payload: Mapping[str, Any], *, read_seconds: float = READ_SECONDS) -> dict[str, Any]:
    """POST to /api/2.0/mlflow/<path>, up to three times. A server that is away costs about 2 seconds.

    Raises:
        ServerAway: it does not answer.
        Refused: it answers with an error.
        UserError: it wants other credentials, or a right that the user lacks.
    """
    return _call(uri, path, lambda http, url: http.post(url, json=payload, timeout=(CONNECT_SECONDS, read_seconds)))


def get(uri: str, path: str, query: Mapping[str, Any], *, read_seconds: float = READ_SECONDS) -> dict[str, Any]:
    """GET from /api/2.0/mlflow/<path>, like `post`."""
    return _call(uri, path, _getter(query, read_seconds=read_seconds))


def get_many(uri: str, path: str, queries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """GET several at once, over few connections; answers in the order of the queries.

    Raises:
        UserError: like `get`, if any of them does.
    """

    def ask(place: int) -> list[dict[str, Any]]:
        with session(uri) as http:
            return [_call(uri, path, _getter(query, http)) for query in queries[place::AT_ONCE]]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        parts = list(pool.map(ask, range(AT_ONCE)))
    return [parts[place % AT_ONCE][place // AT_ONCE] for place in range(len(queries))]


def pages(uri: str, path: str, query: Mapping[str, Any], field: str, *, by_get: bool = False) -> Iterator[Any]:
    """Yield the `field` items of every page of an answer."""
    token = ""
    while True:
        asked = {**query, "page_token": token} if token else query
        answer = get(uri, path, asked) if by_get else post(uri, path, asked)
        yield from answer.get(field, [])
        token = answer.get("next_page_token", "")
        if not token:
            return


@cache
def server_version(uri: str) -> str:
    """Ask for the version of MLflow on the server; empty where it does not tell.

    Raises:
        ServerAway: it does not answer.
    """
    try:
        with session(uri) as http:
            answer = http.get(f"{uri.rstrip('/')}/version", timeout=(CONNECT_SECONDS, READ_SECONDS))
    except requests.RequestException as error:
        raise ServerAway(_away(uri, error)) from error
    return answer.text.strip() if answer.ok and len(answer.text) < 20 else ""


def session(uri: str) -> requests.Session:
    """Open a session with the credentials of MLflow's own environment variables; a local server needs no proxy."""
    http = _Session()
    # requests would send it to the proxy that the environment names.
    http.trust_env = urlsplit(uri).hostname not in ("127.0.0.1", "localhost", "::1")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        # A header alone would be replaced by what ~/.netrc has for the host.
        http.auth = _Bearer(token)
    elif user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        http.auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        http.verify = False
    elif certificate := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        http.verify = certificate
    return http


class _Session(requests.Session):
    """A session whose own certificates count, where requests would take REQUESTS_CA_BUNDLE of the environment."""

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        verify = self.verify if verify is None and self.verify is not True else verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


class _Bearer(requests.auth.AuthBase):
    """Shows a token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def is_named_key() -> bool:
    """Say whether MLflow's own variables name a token or a user, who then counts, whatever ~/.netrc has."""
    return any(os.environ.get(name) for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"))


def _getter(
    query: Mapping[str, Any], kept: requests.Session | None = None, *, read_seconds: float = READ_SECONDS
) -> "_Send":
    """Return what asks once, over a connection that is kept if there is one."""
    return lambda http, url: (kept or http).get(url, params=query, timeout=(CONNECT_SECONDS, read_seconds))


_Send = Callable[[requests.Session, str], requests.Response]


def _call(uri: str, path: str, send: _Send) -> dict[str, Any]:
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}"
    for pause in (*PAUSES, None):
        try:
            with session(uri) as http:
                response = send(http, url)
            if response.status_code not in BUSY or pause is None:
                return _answer(uri, path, response)
        # Not tried again, so that a server that is away costs no more than one time-out.
        except requests.Timeout as error:
            raise ServerAway(_away(uri, error)) from error
        except (requests.ConnectionError, *BROKEN_OFF) as error:
            may_have_arrived = "Failed to establish a new connection" not in str(error)
            if pause is None or (may_have_arrived and path in NOT_TWICE):
                raise ServerAway(_away(uri, error)) from error
        except (requests.RequestException, ValueError) as error:  # an address that is none, say
            raise UserError(f"MLFLOW_TRACKING_URI: {without_secrets(str(error))}") from error
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def way_out(status: int, request: requests.PreparedRequest | None) -> str:
    """Say what to do about a status that asking again does not change; `request` tells whether credentials were shown.

    Empty where a status alone says too little.
    """
    has_key = is_named_key() if request is None else "Authorization" in request.headers
    if status == 403 and has_key:
        return "the user whose credentials are set may not do that: ask for the right, or use another user"
    if status == 401 and has_key:
        return f"it does not take the credentials that are set: correct {CREDENTIALS}"
    if status in (401, 403):
        return f"set {CREDENTIALS}"
    if status == 413:
        return "raise the largest body that the proxy before MLflow takes (nginx: client_max_body_size)"
    return ""


def _answer(uri: str, path: str, response: requests.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except requests.JSONDecodeError:
        # A page, of a proxy or of Flask, is told as its text in one line.
        answer = {"message": one_line(response.text[:2000])[:200]}
        if response.status_code == 200:  # taken for an answer, it would be one of a server that holds nothing
            raise Refused(
                f"MLflow at {uri} answers {path} with a page, such as that of a proxy that wants a login, and not as "
                f"MLflow does: {answer['message']}; correct MLFLOW_TRACKING_URI, or set {CREDENTIALS}"
            ) from None
    if response.status_code in (401, 403):
        told = answer.get("message") if response.status_code == 403 and isinstance(answer, dict) else ""
        raise UserError(
            f"MLFLOW_TRACKING_URI: {uri} refuses {path} ({response.status_code}{f': {told}' if told else ''}); "
            f"{way_out(response.status_code, response.request)}"
        )
    if response.status_code >= 500 and (full := full_disk(uri, str(answer))):
        raise DiskFull(full)
    if response.status_code in (429, 502, 503, 504):
        raise ServerAway(_away(uri, f"status {response.status_code}"))
    if not isinstance(answer, dict) or response.status_code != 200:
        message = answer.get("message", "") if isinstance(answer, dict) else "its answer is none of MLflow's"
        code = str(answer.get("error_code", "")) if isinstance(answer, dict) else ""
        if any(words in str(message) for words in MALFORMED):  # which does not pass, though MLflow's code says so
            raise Refused(damaged_database(uri))
        raise Refused(f"MLflow at {uri} answers {path} with {response.status_code}: {message}", code)
    return answer


def one_line(page: str) -> str:
    """Return the text of a page without its tags."""
    return " ".join(re.sub("<[^>]*>", " ", page).split())


def full_disk(uri: str, told: str) -> str:
    """Say that the server's disk is full, if its answer tells so, or is an error while that of our own server is."""
    folder = _own_folder(uri)
    if folder is not None and (is_full(folder) or FULL_WORDS.search(told)):
        return (
            f"{folder}: the disk is full ({free_of(folder)}), so that MLflow at {uri} takes nothing; free some, or set "
            "RNC_HOME to another place"
        )
    if FULL_WORDS.search(told):
        return f"the disk of the MLflow server at {uri} is full, so that it takes nothing; free some of it there"
    return ""


def _own_folder(uri: str) -> Path | None:
    """Return where the server keeps its records if it is the one under RNC_HOME."""
    folder = home_of(os.environ) / "mlflow"
    try:
        port = json.loads((folder / "server.json").read_text()).get("port")
    except (OSError, ValueError, AttributeError):
        return None
    return folder if uri.rstrip("/") == f"http://127.0.0.1:{port}" else None


def _away(uri: str, reason: object) -> str:
    broke_off = isinstance(reason, BROKEN_OFF)
    cause = "its answer broke off" if broke_off else without_secrets(str(reason)).rpartition(": ")[2].rstrip("'\")")
    return f"the MLflow server at {uri} does not answer ({cause}); start it, or correct MLFLOW_TRACKING_URI"


RETRY_SECONDS = 1200.0
"""Well below the 30 minutes for which the other workers of a training wait in a collective call."""
LONGEST_PAUSE = 10.0
T = TypeVar("T")


def retried(
    action: Callable[[], T], seconds: float | None = None, waits: Callable[[UserError], None] = lambda _: None
) -> T:
    """Do something again and again until the server takes it.

    Args:
        action: may be done twice; it has to ask for the run each time.
        seconds: how long, instead of RETRY_SECONDS.
        waits: is told why the server did not take it.

    Raises:
        UserError: the server refuses it for good, or did not answer in time.
    """
    seconds = RETRY_SECONDS if seconds is None else seconds
    deadline, pause = time.monotonic() + seconds, 0.5
    while True:
        try:
            return action()
        except UserError as error:
            if not _may_pass(error):
                raise
            if time.monotonic() + pause > deadline:
                raise UserError(given_up(seconds, error)) from error
            waits(error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def given_up(seconds: float, reason: object) -> str:
    """Say that the server was waited for in vain, and what that means."""
    return (
        f"MLflow took no record for {seconds / 60:.0f} minutes ({reason}); the checkpoints stay, and the next submit "
        "records them without training again"
    )


def _may_pass(error: UserError) -> bool:
    return isinstance(error, ServerAway) or (isinstance(error, Refused) and (error.may_pass or error.is_gone))
