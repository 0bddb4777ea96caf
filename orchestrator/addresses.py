"""Addresses of services and the secrets in them: read once where they come in, and never shown, stored or sent.

`http://user:password@host` works with most clients, and the address is then written wherever one is: into links, cards,
errors, tasks of other machines. Here user and password are moved to the variables that are meant for them, and what
goes on is the bare address.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from orchestrator.errors import UserError

MLFLOW, RAY = "MLFLOW_TRACKING_URI", "RAY_ADDRESS"
RAY_HEADERS = "RAY_JOB_HEADERS"
"""The variable of Ray's job client for headers, as JSON; a proxy before the dashboard may ask for a login."""
# Up to the last @ before a space or a quotation mark: a password may hold any of the others, unescaped.
_USER = re.compile(r"(?<=://)[^\s/'\"<>]*@")


class Address(NamedTuple):
    """An address, and who asks there."""

    bare: str
    """With neither of the others in it."""
    user: str | None = None
    password: str | None = None


def without_secrets(text: str) -> str:
    """Return a text, such as a link or an error of a client, with user and password taken out of all its addresses."""
    return _USER.sub("", text)


def read_address(name: str, text: str) -> Address:
    """Take user and password out of an address.

    Args:
        name: of the variable or the option that holds it.
        text: a URL, or host:port.

    Raises:
        UserError: it has a query, or characters after which nobody can tell where a password ends; nothing that may be
            secret is repeated.
    """
    scheme, colon, rest = text.strip().rpartition("://")
    login, at, place = rest.rpartition("@")
    start = f"{scheme}{colon}"
    if re.search(r"[/?#\\\s]", login) or "://" in scheme:
        raise UserError(
            f"{name}: the address {start.partition('://')[0]}://... has an @ after a /, ? or #, so that nobody can "
            "tell what is the host; write these characters of a password as %2F, %3F and %23, and an @ of a path as %40"
        )
    if "?" in place or "#" in place:
        raise UserError(
            f"{name}: the address {start}{re.split('[?#]', place)[0]} goes on with a query, which no address of a "
            "server has and which may hold a token; give it without: MLFLOW_TRACKING_TOKEN, RAY_AUTH_TOKEN or "
            f"{RAY_HEADERS} hold such"
        )
    bare = f"{start}{place}"
    if colon:
        try:
            _ = urlsplit(bare).port
        except ValueError as error:
            raise UserError(f"{name} is {bare}, which is no address ({error}); correct it") from error
    if not at:
        return Address(bare)
    user, colon, password = login.partition(":")
    return Address(bare, unquote(user), unquote(password) if colon else None)


def require_bare(name: str, text: str | None) -> None:
    """Refuse an address with a user or a password where it would be shown, stored and sent.

    Raises:
        UserError: it has one.
    """
    if text is not None and read_address(name, text).bare != text.strip():
        raise UserError(
            f"{name}: the address holds a user or a password, which would be written wherever the address is; give it "
            "without, and the password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def logins_apart(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set so that no address of an environment holds a login, and clients find it all the same.

    Of MLFLOW_TRACKING_URI it goes to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which MLflow itself reads
    as well; of RAY_ADDRESS to a header in RAY_JOB_HEADERS. What these hold already counts. Processes that are started
    from here inherit both, so that they need no password in an address either.

    Raises:
        UserError: a password would have to go to other machines.
    """
    ray = read_address(RAY, environ.get(RAY, ""))
    mlflow = read_address(MLFLOW, environ.get(MLFLOW, ""))
    if mlflow.user is not None and ray.bare:
        raise UserError(
            f"{MLFLOW}: the address holds a password, and {RAY} names a cluster, whose workers would have to be sent "
            "it, where everybody could read it; let the cluster's nodes hold MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, set them here as well, and give {mlflow.bare}"
        )
    if ray.user is not None and not ray.bare.startswith(("http://", "https://")):
        raise UserError(
            f"{RAY}: {ray.bare} takes no user and no password; give the address without, and the token of the cluster "
            "in RAY_AUTH_TOKEN"
        )
    apart: dict[str, str] = {}
    if mlflow.user is not None:
        apart[MLFLOW] = mlflow.bare
        is_http = mlflow.bare.startswith(("http://", "https://"))  # that of a database is refused later, without it
        if is_http and not (environ.get("MLFLOW_TRACKING_TOKEN") or environ.get("MLFLOW_TRACKING_USERNAME")):
            apart |= {"MLFLOW_TRACKING_USERNAME": mlflow.user, "MLFLOW_TRACKING_PASSWORD": mlflow.password or ""}
    if ray.user is not None:
        apart[RAY] = ray.bare
        login = base64.b64encode(f"{ray.user}:{ray.password or ''}".encode()).decode()
        apart[RAY_HEADERS] = json.dumps({"Authorization": f"Basic {login}"} | job_headers(environ))
    return apart


def job_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with which a cluster is asked for its jobs.

    Raises:
        UserError: RAY_JOB_HEADERS is no JSON object of texts.
    """
    try:
        headers = json.loads(environ.get(RAY_HEADERS) or "{}")
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise UserError(f'{RAY_HEADERS}: expected a JSON object, such as {{"Authorization": "Bearer ..."}}')
    return headers
