"""Machines of a cluster on one machine: network namespaces with addresses of their own, joined by a bridge."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

LISTEN = "import socket; s = socket.create_server(('', 1)); print(flush=True); s.accept()[0].send(b'x')"
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], 1), 3).recv(1))"


@dataclass(frozen=True)
class Place:
    """Where processes run: in a namespace, or on this machine as it is."""

    address: str
    namespace: str | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs these words there; its process becomes theirs."""
        return ["ip", "netns", "exec", self.namespace, *words] if self.namespace else list(words)

    def free_ports(self, count: int) -> list[int]:
        """Return ports that are free here, and 10000 above, where SeaweedFS listens as well."""
        found: list[int] = []
        with ExitStack() as stack:
            while len(found) < count:
                one, other = stack.enter_context(socket.socket()), stack.enter_context(socket.socket())
                one.bind(("127.0.0.1", 0))
                port = one.getsockname()[1]
                try:
                    other.bind(("127.0.0.1", port + 10_000))
                except (OSError, OverflowError):
                    continue
                found.append(port)
        return found


@contextmanager
def machines(names: Sequence[str]) -> Iterator[dict[str, Place]]:
    """Yield a place for each name, and one called "host" that all of them reach; all of it is removed at the end.

    Where namespaces cannot be had, all places are this machine's 127.0.0.1.
    """
    with ExitStack() as stack:
        try:
            yield stack.enter_context(_namespaces(names))
        except NoNamespacesError:
            stack.close()
            yield dict.fromkeys((*names, "host"), Place("127.0.0.1"))


class NoNamespacesError(Exception):
    """This machine or this user has none."""


@contextmanager
def _namespaces(names: Sequence[str]) -> Iterator[dict[str, Place]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NoNamespacesError
    pid = os.getpid()
    bridge, subnet = f"rnb{pid}", f"10.{200 + pid % 50}.{pid // 50 % 250}"
    places = {"host": Place(f"{subnet}.1")}
    with ExitStack() as stack:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            stack.callback(_ip, "link", "del", bridge, check=False)
            _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for number, name in enumerate(names, start=2):
                place = Place(f"{subnet}.{number}", f"rnc{pid}-{name}")
                _add(place, bridge, f"rnv{pid}n{number}", stack)
                places[name] = place
            _require_connection(places[names[0]], places[names[-1]])
        except (subprocess.SubprocessError, OSError) as error:
            raise NoNamespacesError from error
        yield places


def _add(place: Place, bridge: str, plug: str, stack: ExitStack) -> None:
    name = str(place.namespace)
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name, check=False)
    _ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", name)
    stack.callback(_ip, "link", "del", plug, check=False)  # a namespace may outlive its name for a while
    _ip("link", "set", plug, "master", bridge, "up")
    _ip("-n", name, "addr", "add", f"{place.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", name, "link", "set", device, "up")


def _require_connection(one: Place, other: Place) -> None:
    """A firewall may drop what passes a bridge."""
    listener = subprocess.Popen(one.command([sys.executable, "-c", LISTEN]), stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        listener.stdout.readline()
        subprocess.run(
            other.command([sys.executable, "-c", CONNECT, one.address]), check=True, timeout=10, capture_output=True
        )
    finally:
        listener.kill()
        listener.communicate()


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, timeout=10)
