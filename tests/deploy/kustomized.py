"""The objects of deploy/kubernetes, built as `kubectl apply -k` builds them, and all that can be said against them."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deploy.kuberay_rules import ray_complaints
from tests.deploy.network_rules import network_complaints
from tests.deploy.pod_rules import pod_complaints, pods_of, set_complaints
from tests.deploy.programs import program

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("dev", "gpu", "prod")
NAMESPACE = "retinanet-conf"
CUSTOM = ("RayJob", "RayCluster", "PodMonitor")
COMPONENTS = ("platform", "interactive", "job", "monitoring")
MONITOR_FIELDS = {"basicAuth", "interval", "path", "port", "relabelings"}
KUBECTL = """#!/bin/sh
# Says that nothing exists, and keeps what it is told to create.
echo "$*" >>"$KEPT/calls"
case "$*" in
*"get "*) exit 1 ;;
*"create secret generic"*)
    for argument in "$@"; do
        case "$argument" in --from-file=*) cp -r "${argument#--from-file=}" "$KEPT/" ;; esac
    done ;;
esac
"""

Object = Mapping[str, Any]


def build(overlay: str, root: Path = ROOT) -> list[Object]:
    """Return the objects of an overlay.

    Raises:
        ValueError: kustomize refuses it.
    """
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(root / "overlays" / overlay)], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [thing for thing in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if thing]


def made_secrets(kept: Path, *options: str, **environment: str) -> dict[str, dict[str, str]]:
    """Run the script that makes the secrets against a kubectl that only keeps them; return each with its values."""
    kubectl = kept / "bin" / "kubectl"
    kubectl.parent.mkdir(parents=True)
    kubectl.write_text(KUBECTL)
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    path = f"{kubectl.parent}:{os.environ['PATH']}"
    environment = {**os.environ, **environment, "PATH": path, "KEPT": str(kept)}
    subprocess.run([str(ROOT / "make-secrets.sh"), *options], env=environment, check=True, timeout=60)
    folders = [folder for folder in kept.iterdir() if folder.is_dir() and folder.name != "bin"]
    return {folder.name: {file.name: file.read_text() for file in folder.iterdir()} for folder in folders}


def complaints(objects: Sequence[Object], secrets: Mapping[str, set[str]]) -> Iterator[str]:
    """Say all that is wrong with the objects of an overlay.

    Args:
        objects: as `build` returns them.
        secrets: the keys of each Secret that will be there.
    """
    malformed = [complaint for thing in objects for complaint in _schema(thing)]
    yield from malformed
    if malformed:
        return  # the rules below read what the schemas promise
    pods = pods_of(objects)
    for thing in objects:
        yield from _metadata(thing)
        if thing["kind"] in ("RayJob", "RayCluster"):
            yield from ray_complaints(thing)
        if thing["kind"] == "PodMonitor":
            yield from _monitor(thing, objects, secrets)
        if thing["kind"] == "Service":
            yield from _service(thing, objects)
        if thing["kind"] == "ConfigMap":
            yield from _addresses(thing, objects)
    for pod in pods:
        yield from _schema({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.owner}, "spec": pod.spec})
        yield from pod_complaints(pod)
    yield from set_complaints(objects, secrets)
    policies = [thing for thing in objects if thing["kind"] == "NetworkPolicy"]
    yield from network_complaints(policies, {pod.owner: pod.labels for pod in pods})


def _schema(thing: Object) -> Iterator[str]:
    """Ask the schemas of Kubernetes itself."""
    if thing["kind"] in CUSTOM:
        return
    if said := _refusal(json.dumps(thing, sort_keys=True)):
        yield f"{thing['kind']} {thing['metadata']['name']}: {said}"


@cache
def _refusal(thing: str) -> str:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="tests/deploy/requirements.lock has it")
    try:
        kubernetes_validate.validate(json.loads(thing), "1.32", strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def _metadata(thing: Object) -> Iterator[str]:
    where, metadata = f"{thing['kind']} {thing['metadata']['name']}", thing["metadata"]
    if thing["kind"] == "Namespace":
        level = metadata.get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != "restricted":
            yield f"{where}: takes pods of security level {level}"
    elif metadata.get("namespace") != NAMESPACE:
        yield f"{where}: is in namespace {metadata.get('namespace')}"
    if metadata.get("labels", {}).get("component") not in COMPONENTS:
        yield f"{where}: belongs to no component, so no `kubectl apply -l component=...` would make it"


def _monitor(thing: Object, objects: Sequence[Object], secrets: Mapping[str, set[str]]) -> Iterator[str]:
    where, wanted = f"PodMonitor {thing['metadata']['name']}", thing["spec"]["selector"]["matchLabels"].items()
    watched = [pod for pod in pods_of(objects) if wanted <= pod.labels.items()]
    if not watched:
        yield f"{where}: watches no pod"
    for endpoint in thing["spec"]["podMetricsEndpoints"]:
        yield from (f"{where}: {field} is no field of it" for field in endpoint.keys() - MONITOR_FIELDS)
        for pod in watched:
            if endpoint["port"] not in [port["name"] for one in pod.containers for port in one.get("ports", [])]:
                yield f"{where}: {pod.owner} has no port {endpoint['port']}"
        for reference in endpoint.get("basicAuth", {}).values():
            if reference["key"] not in secrets.get(reference["name"], set()):
                yield f"{where}: nobody makes secret {reference['name']} with {reference['key']}"


def _addresses(thing: Object, objects: Sequence[Object]) -> Iterator[str]:
    services = [other["metadata"]["name"] for other in objects if other["kind"] == "Service"]
    for name in ("POSTGRES_HOST", "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_TRACKING_URI"):
        host = thing["data"].get(name, "")
        host = urlsplit(host).hostname or host
        if host and "." not in host and host not in services:
            yield f"ConfigMap {thing['metadata']['name']}: {name} names {host}, and there is no service {host}"


def _service(thing: Object, objects: Sequence[Object]) -> Iterator[str]:
    where, wanted = f"Service {thing['metadata']['name']}", thing["spec"]["selector"].items()
    served = [pod for pod in pods_of(objects) if wanted <= pod.labels.items()]
    if len(served) != 1:
        yield f"{where}: stands before {len(served)} kinds of pods"
    for pod in served:
        ports = [port["name"] for container in pod.containers for port in container.get("ports", [])]
        yield from (
            f"{where}: no port {p['targetPort']}" for p in thing["spec"]["ports"] if p["targetPort"] not in ports
        )
