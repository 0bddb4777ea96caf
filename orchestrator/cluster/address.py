"""Addresses of Ray clusters: what RAY_ADDRESS may be, which cluster `auto` is, and whether a head answers there."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import UserError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
"""A head answers within milliseconds; Ray itself waits for minutes before it gives up on an address."""
USUAL_PORT = 6379
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What Ray itself asks a head first."""
KNOWN_MODES = ("token", "disabled")
"""Values of RAY_AUTH_MODE, of which this module knows what a head is shown; others are Ray's affair."""
WAY_OUT = "start the cluster, correct the address, or unset it to run on this machine"


def require_head(address: str) -> str:
    """Return the HOST:PORT of a cluster that is there.

    Raises:
        UserError: it is no address to join, or no head of a cluster answers there.
    """
    found = _running_here() if address == "auto" else address
    if found is None:
        raise UserError(f"RAY_ADDRESS: no cluster runs on this machine, which auto stands for; {WAY_OUT}")
    host, port = split_address(found)
    host = _as_ray_has(host)
    joined = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    at = "" if address == joined else f", at {joined}, where Ray looks"
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"RAY_ADDRESS: {address} does not answer ({error}{at}); {WAY_OUT}") from error
    _require_ray(host, port, f"{address}{at and f' ({joined})'}")
    return joined


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of an address to join; that of IPv6 stands in brackets.

    Raises:
        UserError: it is none.
    """
    scheme, is_url, _ = address.partition("://")
    if scheme == "ray" and is_url:
        raise UserError(
            f"RAY_ADDRESS: {address} is an address of Ray Client, which runs no trainings; on a machine of the cluster "
            f"give HOST:{USUAL_PORT} of its head, or from any other http://HOST:8265, to which a submit sends a job"
        )
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if is_url or not host or not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"RAY_ADDRESS: {address} is no address of a Ray cluster; expected HOST:{USUAL_PORT} of its head "
            f"([HOST]:{USUAL_PORT} for IPv6), auto, or http://HOST:8265 to send jobs to; or unset it to run on this "
            "machine"
        )
    return host, int(port)


def _running_here() -> str | None:
    """Return the address of a cluster of this machine; that of the last `ray start`, if it is still there."""
    from ray._private import services  # Ray has no public word for it

    with suppress(Exception):  # it found none, or several, or has changed
        found = services.get_ray_address_from_environment("auto", None)
        return None if found in (None, "auto") else str(found)
    return None


def _as_ray_has(host: str) -> str:
    """Return a host as Ray goes to it: instead of localhost, to this machine's address in its network."""
    with suppress(Exception):  # not public either
        from ray._private import services

        return str(services.resolve_ip_for_localhost(host))
    return host


def _require_ray(host: str, port: int, named: str) -> None:
    """Refuse what is no head of a cluster, such as the port of a dashboard, or of a raylet."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # who has the certificates is Ray itself
    import grpc  # type: ignore[import-untyped]

    target = f"ipv6:[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # As Ray has it: a proxy of the environment is none for clusters.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=ANSWER_SECONDS, metadata=_key())
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED):
                raise UserError(
                    f"RAY_ADDRESS: {named} is no head of a Ray cluster, though something listens there, or it hangs "
                    f"({code.name}); its port is {USUAL_PORT}, if it was not changed; {WAY_OUT}"
                ) from error
            if code == grpc.StatusCode.UNAUTHENTICATED and os.environ.get("RAY_AUTH_MODE", "token") in KNOWN_MODES:
                raise UserError(
                    f"RAY_ADDRESS: the cluster at {named} wants a token, and not this one or none: set "
                    "RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN, or in a file that RAY_AUTH_TOKEN_PATH names"
                ) from error
            # Whatever else it says, a head has said.


def _key() -> list[tuple[str, str]]:
    """Return the header that Ray would show with each question, from where Ray has its token."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return []
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        with suppress(OSError, RuntimeError, UnicodeDecodeError):  # it is not there; the cluster may want none
            token = (Path(named) if named else Path.home() / ".ray" / "auth_token").read_text().strip()
    return [("authorization", f"Bearer {token}")] if token.isascii() and token.isprintable() and token else []
