"""What every pod of deploy/kubernetes keeps to, whoever makes it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|(^|_)KEY(_|$)|ACCESS_KEY")
VOLUMES = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
"""Kinds of volumes that the pod security standard `restricted` takes, less those that nobody needs here."""
PROBELESS = ("ray-job-submitter", "autoscaler")
"""Containers that end by themselves, or that KubeRay makes."""
MADE_BY_KUBERNETES = {"kube-root-ca.crt"}


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod template, as its owner's controller will make it."""

    owner: str
    labels: Mapping[str, str]
    spec: Object
    containers: tuple[Object, ...]
    autoscales: bool = False


def pods_of(objects: Sequence[Object]) -> list[Pod]:
    """Return the templates of all pods."""
    found: list[Pod] = []
    for thing in objects:
        where, spec = f"{thing['kind']} {thing['metadata']['name']}", thing.get("spec", {})
        if thing["kind"] in ("Deployment", "StatefulSet"):
            found.append(_pod(where, spec["template"]))
        if thing["kind"] == "RayJob":
            found.append(_pod(f"{where} submitter", spec["submitterPodTemplate"]))
            found += _ray_pods(where, spec["rayClusterSpec"])
        if thing["kind"] == "RayCluster":
            found += _ray_pods(where, spec)
    return found


def _pod(owner: str, template: Object) -> Pod:
    spec = template["spec"]
    containers = (*spec.get("initContainers", []), *spec["containers"])
    return Pod(owner=owner, labels=template["metadata"].get("labels", {}), spec=spec, containers=containers)


def _ray_pods(where: str, spec: Object) -> Iterator[Pod]:
    head = _pod(f"{where} head", spec["headGroupSpec"]["template"])
    made = {"ray.io/node-type": "head"}
    extra: tuple[Object, ...] = ()
    if spec.get("enableInTreeAutoscaling"):
        image = head.containers[0]["image"]  # KubeRay adds this one
        extra = ({"name": "autoscaler", "image": image, **spec.get("autoscalerOptions", {})},)
    yield Pod(
        owner=head.owner,
        labels={**head.labels, **made},
        spec=head.spec,
        containers=(*head.containers, *extra),
        autoscales=bool(extra),
    )
    for group in spec["workerGroupSpecs"]:
        worker = _pod(f"{where} group {group.get('groupName')}", group["template"])
        labels = {**worker.labels, "ray.io/node-type": "worker"}
        yield Pod(owner=worker.owner, labels=labels, spec=worker.spec, containers=worker.containers)


def pod_complaints(pod: Pod) -> Iterator[str]:
    """Say what a pod may do that none here may."""
    spec, context = pod.spec, pod.spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(field):
            yield f"{pod.owner}: {field} is set"
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield f"{pod.owner}: may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{pod.owner}: has no seccomp profile"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.owner}: is given a token for the API server"
    if not spec.get("serviceAccountName") and not pod.autoscales:
        yield f"{pod.owner}: runs as the namespace's default account"
    for volume in spec.get("volumes", []):
        yield from (f"{pod.owner}: volume {volume['name']} is a {kind}" for kind in volume.keys() - VOLUMES - {"name"})
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"{pod.owner}: volume {volume['name']} may fill the node"
    for container in pod.containers:
        yield from _container(f"{pod.owner}, container {container['name']}", container)


def _container(where: str, container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{where}: its root may be written"
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{where}: may gain rights"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{where}: keeps capabilities"
    for level in ("requests", "limits"):
        if not {"cpu", "memory"} <= container.get("resources", {}).get(level, {}).keys():
            yield f"{where}: resources.{level} lacks cpu or memory"
    image = str(container["image"])
    if ":" not in image.rpartition("/")[2] or image.endswith(":latest"):
        yield f"{where}: image {image} may change under its name"
    for variable in container.get("env", []):
        name = variable["name"]
        if SECRET.search(name) and "value" in variable and not name.endswith("_FILE"):
            yield f"{where}: {name} stands in the file"
    if container["name"] not in PROBELESS and "readinessProbe" not in container:
        yield f"{where}: nobody can tell when it is ready"
    if not any(mount["mountPath"] == "/tmp" for mount in container.get("volumeMounts", [])):
        yield f"{where}: has no /tmp to write to"


def set_complaints(objects: Sequence[Object], secrets: Mapping[str, set[str]]) -> Iterator[str]:
    """Say what the objects refer to, and nobody makes.

    Args:
        objects: all of an overlay.
        secrets: the keys of each Secret that the script makes.
    """
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    for thing in objects:
        if thing["kind"] == "Secret":
            yield f"Secret {thing['metadata']['name']} stands in a file"
        if thing["kind"] == "Service" and thing["spec"].get("type") != "ClusterIP":
            yield f"Service {thing['metadata']['name']}: is reached from outside"
        if thing["kind"] == "ServiceAccount" and thing.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {thing['metadata']['name']}: gives tokens to whoever runs as it"
        if thing["kind"] in ("RayJob", "RayCluster"):
            cluster = thing["spec"].get("rayClusterSpec", thing["spec"])
            token = cluster.get("authOptions", {}).get("secretName", "")
            if "auth_token" not in secrets.get(token, set()):
                yield f"{thing['kind']} {thing['metadata']['name']}: nobody makes secret {token} with auth_token"
    for pod in pods_of(objects):
        account = pod.spec.get("serviceAccountName")
        if account and ("ServiceAccount", account) not in names:
            yield f"{pod.owner}: there is no service account {account}"
        claims = [v["persistentVolumeClaim"]["claimName"] for v in _volumes(pod, "persistentVolumeClaim")]
        for claim in claims:
            if ("PersistentVolumeClaim", claim) not in names:
                yield f"{pod.owner}: there is no volume claim {claim}"
        for kind, name, keys in _references(pod):
            if kind == "configMap" and ("ConfigMap", name) not in names and name not in MADE_BY_KUBERNETES:
                yield f"{pod.owner}: there is no config map {name}"
            if kind == "secret" and (name not in secrets or not keys <= secrets[name]):
                yield f"{pod.owner}: nobody makes secret {name} with {', '.join(sorted(keys)) or 'any key'}"


def _references(pod: Pod) -> Iterator[tuple[str, str, set[str]]]:
    mounted = {v["name"]: v["secret"]["secretName"] for v in _volumes(pod, "secret")}
    for volume in _volumes(pod, "projected"):
        for source in volume["projected"]["sources"]:
            yield from (("configMap", source[kind]["name"], set()) for kind in source.keys() & {"configMap"})
    for name in mounted.values():
        yield "secret", name, set()
    for container in pod.containers:
        for source in container.get("envFrom", []):
            yield from (("configMap", source[kind]["name"], set()) for kind in source.keys() & {"configMapRef"})
            yield from (("secret", source[kind]["name"], set()) for kind in source.keys() & {"secretRef"})
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                yield "secret", reference["name"], {reference["key"]}
            path, _, key = variable.get("value", "").rpartition("/")
            for mount in container.get("volumeMounts", []):
                if variable["name"].endswith("_FILE") and mount["mountPath"] == path and mount["name"] in mounted:
                    yield "secret", mounted[mount["name"]], {key}


def _volumes(pod: Pod, kind: str) -> list[Object]:
    return [volume for volume in pod.spec.get("volumes", []) if kind in volume]
