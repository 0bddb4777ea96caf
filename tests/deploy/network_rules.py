"""Who reaches whom under the NetworkPolicies of an overlay, as a network plugin that enforces them decides it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class End:
    """One end of a connection: a pod here (labels), a namespace elsewhere, or an address outside."""

    labels: Mapping[str, str] | None = None
    namespace: str | None = None
    address: str | None = None


def reaches(policies: Sequence[Object], start: End, end: End, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is allowed on both ends; what is no pod here has no policy."""
    out = start.labels is None or _allowed(policies, "egress", start.labels, end, port, protocol)
    return out and (end.labels is None or _allowed(policies, "ingress", end.labels, start, port, protocol))


def is_selected(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector means these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        e["operator"] == "In" and labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", [])
    )


def _allowed(
    policies: Sequence[Object], way: str, labels: Mapping[str, str], other: End, port: int, protocol: str
) -> bool:
    mine = [policy["spec"] for policy in policies if is_selected(policy["spec"]["podSelector"], labels)]
    mine = [spec for spec in mine if way.capitalize() in spec["policyTypes"]]
    return not mine or any(
        _takes(rule.get("ports"), port, protocol) and _names(rule.get("to" if way == "egress" else "from"), other)
        for spec in mine
        for rule in spec.get(way, [])
    )


def _takes(ports: Sequence[Object] | None, port: int, protocol: str) -> bool:
    return ports is None or any(one["port"] == port and one.get("protocol", "TCP") == protocol for one in ports)


def _names(peers: Sequence[Object] | None, end: End) -> bool:
    return peers is None or any(_is(peer, end) for peer in peers)


def _is(peer: Object, end: End) -> bool:
    if "ipBlock" in peer:
        return end.address is not None and _inside(peer["ipBlock"], end.address)
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": end.namespace or ""}
        return "podSelector" not in peer and is_selected(peer["namespaceSelector"], labels)
    return end.labels is not None and is_selected(peer["podSelector"], end.labels)


def _inside(block: Object, address: str) -> bool:
    excepted = any(ip_address(address) in ip_network(cidr) for cidr in block.get("except", []))
    return ip_address(address) in ip_network(block["cidr"]) and not excepted


def network_complaints(policies: Sequence[Object], pods: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Say which pods somebody from elsewhere reaches, which reach out too far, and which not even a name server."""
    stranger, outside = End(namespace="default"), End(address="203.0.113.7")
    for owner, labels in pods.items():
        me = End(labels=labels)
        if any(reaches(policies, stranger, me, port) for port in (22, 5000, 5432, 6379, 8080, 8265, 8333, 10001)):
            yield f"{owner}: is reached from another namespace"
        if reaches(policies, me, outside, 25) or reaches(policies, me, outside, 80):
            yield f"{owner}: reaches the internet"
        if any(reaches(policies, me, End(address="169.254.169.254"), port) for port in (80, 443)):
            yield f"{owner}: reaches the cloud's metadata server"
        if not reaches(policies, me, End(namespace="kube-system"), 53, "UDP"):
            yield f"{owner}: cannot resolve names"
