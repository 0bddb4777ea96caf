"""What KubeRay's operator 1.7 refuses in a RayJob or RayCluster, and what it would take and drop; there is none to ask.

The rules are those of its validation.go and of its resource definitions (ray.io/v1).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

Object = Mapping[str, Any]
MAX_NAME = {"RayJob": 47, "RayCluster": 53}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
FIELDS: dict[str, set[str]] = {
    "RayJob": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
        "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
        "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode",
        "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    },
    "RayCluster": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy", "rayVersion", "suspend",
        "tlsOptions", "upgradeStrategy", "workerGroupSpecs",
    },
    "authOptions": {"enableK8sTokenAuth", "mode", "secretName"},
    "autoscalerOptions": {
        "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
        "upscalingMode", "version", "volumeMounts",
    },
    "headGroupSpec": {
        "enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template",
    },
    "workerGroupSpecs": {
        "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority",
        "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template",
    },
    "submitterConfig": {"backoffLimit"},
}  # fmt: skip
"""The keys of each part; the API server drops others without a word."""


def ray_complaints(thing: Object) -> Iterator[str]:
    """Say what is wrong with a RayJob or RayCluster."""
    kind, name, spec = thing["kind"], thing["metadata"]["name"], thing["spec"]
    where = f"{kind} {name}"
    if len(name) > MAX_NAME[kind]:
        yield f"{where}: the name has {len(name)} characters, expected {MAX_NAME[kind]} at most"
    if not DNS_1035.fullmatch(name):
        yield f"{where}: the name is no DNS-1035 label"
    yield from _unknown(where, spec, kind)
    if kind == "RayCluster":
        yield from _cluster(where, spec)
        return
    yield from _job(where, spec)
    if "rayClusterSpec" in spec:
        yield from _unknown(f"{where}.rayClusterSpec", spec["rayClusterSpec"], "RayCluster")
        yield from _cluster(f"{where}.rayClusterSpec", spec["rayClusterSpec"])


def _job(where: str, spec: Object) -> Iterator[str]:
    selects = bool(spec.get("clusterSelector"))
    mode = spec.get("submissionMode", "K8sJobMode")
    if selects == ("rayClusterSpec" in spec):
        yield f"{where}: expected one of rayClusterSpec and clusterSelector"
    for field in ("backoffLimit", "suspend"):
        if selects and spec.get(field):
            yield f"{where}: clusterSelector forbids {field}"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield f"{where}: suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield f"{where}: ttlSecondsAfterFinished does nothing without shutdownAfterJobFinishes"
    for field, least in (("ttlSecondsAfterFinished", 0), ("backoffLimit", 0), ("activeDeadlineSeconds", 1)):
        if spec.get(field, least) < least:
            yield f"{where}: {field} is {spec[field]}, expected at least {least}"
    if mode not in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"):
        yield f"{where}: {mode} is no submissionMode"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield f"{where}: InteractiveMode forbids backoffLimit"
    if mode == "SidecarMode" and (spec.keys() & {"submitterPodTemplate", "submitterConfig", "clusterSelector"}):
        yield f"{where}: SidecarMode has no submitter to configure"
    if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
        yield f"{where}: KubeRay's own submitter has no security context; give submitterPodTemplate"
    if not str(spec.get("entrypoint", "")).startswith("rnc submit "):
        yield f"{where}: the entrypoint does not run rnc submit"
    environment = yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}
    if not isinstance(environment, dict) or not environment.get("env_vars", {}).get("RNC_JOB"):
        yield f"{where}: runtimeEnvYAML does not set RNC_JOB, so results might be kept where they vanish"
    yield from _unknown(where, spec.get("submitterConfig", {}), "submitterConfig")


def _cluster(where: str, spec: Object) -> Iterator[str]:
    auth, head, groups = spec.get("authOptions", {}), spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    yield from _unknown(f"{where}.authOptions", auth, "authOptions")
    if auth.get("mode") != "token" or not auth.get("secretName"):
        yield f"{where}: authOptions asks for no token of a named Secret"
    version = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    if version is None or (int(version[1]), int(version[2])) < (2, 52):
        yield f"{where}: token authentication needs rayVersion 2.52.0 or later, not {spec.get('rayVersion')}"
    yield from _unknown(f"{where}.headGroupSpec", head, "headGroupSpec")
    yield from _group(f"{where}.headGroupSpec", head)
    names = [group.get("groupName") for group in groups]
    if len(set(names)) < len(names):
        yield f"{where}: two worker groups have one name"
    for group in groups:
        place = f"{where}, group {group.get('groupName')}"
        yield from _unknown(place, group, "workerGroupSpecs")
        yield from _group(place, group)
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if least is None or most is None or not least <= group.get("replicas", least) <= most:
            yield f"{place}: expected minReplicas <= replicas <= maxReplicas"
    yield from _autoscaler(where, spec)
    variables = {variable["name"] for variable in head["template"]["spec"]["containers"][0].get("env", [])}
    if spec.get("gcsFaultToleranceOptions") and variables & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield f"{where}: gcsFaultToleranceOptions forbids REDIS_PASSWORD and RAY_REDIS_ADDRESS in the environment"
    if not spec.get("gcsFaultToleranceOptions") and "RAY_REDIS_ADDRESS" in variables:
        yield f"{where}: RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"


def _group(where: str, group: Object) -> Iterator[str]:
    params, container = group.get("rayStartParams", {}), group["template"]["spec"]["containers"][0]
    for name, value in params.items():
        if not isinstance(value, str):
            yield f"{where}: rayStartParams.{name} is no string"
    if group.get("resources") and any(params.get(name) for name in RESOURCE_PARAMS):
        yield f"{where}: resources stand both in rayStartParams and in resources"
    if "labels" in params:
        yield f"{where}: labels belong beside rayStartParams"
    if group.get("serviceType", "ClusterIP") != "ClusterIP" or group.get("enableIngress"):
        yield f"{where}: the head would be reached from outside"
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    if ports.get("metrics") != 8080 or params.get("metrics-export-port") != "8080":
        yield f"{where}: metrics are not at port 8080"
    volumes = {volume["name"]: volume for volume in group["template"]["spec"].get("volumes", [])}
    size = quantity(volumes.get("shared-memory", {}).get("emptyDir", {}).get("sizeLimit", "0"))
    if not int(params.get("object-store-memory", 0)) < size < quantity(container["resources"]["limits"]["memory"]):
        yield f"{where}: expected object-store-memory < /dev/shm < the limit of memory"


def _autoscaler(where: str, spec: Object) -> Iterator[str]:
    options = spec.get("autoscalerOptions", {})
    yield from _unknown(f"{where}.autoscalerOptions", options, "autoscalerOptions")
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
    if options and not spec.get("enableInTreeAutoscaling"):
        yield f"{where}: autoscalerOptions do nothing without enableInTreeAutoscaling"
    if options and options.get("version") not in ("v1", "v2"):
        yield f"{where}: the autoscaler's version is {options.get('version')}, expected v1 or v2"
    if options.get("version") == "v2":
        for group in groups:
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{where}: autoscaler v2 needs restartPolicy Never or none"
    if spec.get("enableInTreeAutoscaling") and not options.get("securityContext"):
        yield f"{where}: the autoscaler's container has no security context"


def _unknown(where: str, part: Object, kind: str) -> Iterator[str]:
    for field in part.keys() - FIELDS[kind]:
        yield f"{where}: {field} is no field of {kind}"


def quantity(text: object) -> float:
    """Return a quantity of Kubernetes as a number."""
    found = re.fullmatch(r"([0-9.]+)(m|[kMGT]|[KMGT]i|)", str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    scale = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    binary = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(found[1]) * (scale | binary | {"": 1})[found[2]]
