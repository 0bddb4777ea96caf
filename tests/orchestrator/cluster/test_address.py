"""Addresses of clusters; a listener of the test's own stands for what is no head of one."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from orchestrator.cluster import address
from orchestrator.cluster.address import require_head, split_address
from orchestrator.errors import UserError

Listen = Callable[[bytes | None], int]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """A function that listens on a port and answers everybody with some bytes, or with None not at all."""
    monkeypatch.setattr(address, "_as_ray_has", lambda host: host)
    monkeypatch.setattr(address, "ANSWER_SECONDS", 1.0)
    opened: list[socket.socket] = []

    def answer(listener: socket.socket, text: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(text)
            connection.close()

    def start(text: bytes | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)
        if text is not None:
            threading.Thread(target=answer, args=(listener, text), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("head:6379", "head", 6379), ("10.0.0.1:6380", "10.0.0.1", 6380), ("[::1]:6379", "::1", 6379)],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "head",
        "head:",
        ":6379",
        "head:x",
        "head:0",
        "head:65536",
        "::1:6379",
        "tcp://head:6379",
        "http:head",
        "[]:1",
        "",
    ],
)
def test_what_is_no_address_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UserError, match=r"no address of a Ray cluster; expected HOST:6379 .*\[HOST\]:6379 for IPv6"):
        split_address(text)


def test_ray_client_is_refused_with_the_two_ways_that_work() -> None:
    with pytest.raises(
        UserError, match=r"ray://head:10001 is an address of Ray Client.* HOST:6379 .* http://HOST:8265"
    ):
        require_head("ray://head:10001")


def test_a_port_where_nobody_listens_is_told_at_once(listen: Listen) -> None:
    begun = time.monotonic()
    for text in ("127.0.0.1:1", "[::1]:1"):
        with pytest.raises(UserError, match=r"RAY_ADDRESS: \S+:1 does not answer \("):
            require_head(text)
    assert time.monotonic() - begun < 60.0  # Ray itself tries for 150 s


@pytest.mark.parametrize("text", [b"HTTP/1.1 200 OK\r\n\r\n", b"", None], ids=["http", "hangs up", "silent"])
def test_what_is_no_head_is_refused_in_seconds(listen: Listen, text: bytes | None) -> None:
    port, begun = listen(text), time.monotonic()
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} is no head of a Ray cluster"):
        require_head(f"127.0.0.1:{port}")
    assert time.monotonic() - begun < 60.0


def test_auto_with_nothing_alive_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_running_here", lambda: None)
    with pytest.raises(UserError, match="no cluster runs on this machine, which auto stands for"):
        require_head("auto")
    monkeypatch.setattr(address, "_running_here", lambda: "127.0.0.1:1")  # the file of a cluster that was killed
    monkeypatch.setattr(address, "_as_ray_has", lambda host: host)
    with pytest.raises(UserError, match=r"auto does not answer \(.*, at 127\.0\.0\.1:1, where Ray looks\)"):
        require_head("auto")


def test_a_head_that_wants_another_token_says_so_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(request: bytes, context: grpc.ServicerContext) -> bytes:
        if dict(context.invocation_metadata()).get("authorization") != "Bearer right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    service, _, method = address.CLUSTER_ID[1:].partition("/")
    head = grpc.server(ThreadPoolExecutor(1))
    handlers = {method: grpc.unary_unary_rpc_method_handler(serve)}
    head.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    here = f"127.0.0.1:{head.add_insecure_port('127.0.0.1:0')}"
    head.start()
    monkeypatch.setattr(address, "_as_ray_has", lambda host: host)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    try:
        with pytest.raises(UserError, match="wants a token, and not this one or none"):
            require_head(here)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("right\n")
        assert require_head(here) == here
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
        with pytest.raises(UserError, match="wants a token"):
            require_head(here)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        assert require_head(here) == here
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(UserError, match="wants a token"):
            require_head(here)
    finally:
        head.stop(None)
