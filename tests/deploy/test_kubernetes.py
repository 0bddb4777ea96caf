"""deploy/kubernetes: validated, for there is no API server here; SeaweedFS and the secrets' script run for real."""

import itertools
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.deploy.kustomized import OVERLAYS, ROOT, build, complaints, made_secrets
from tests.deploy.network_rules import End, reaches
from tests.deploy.pod_rules import pods_of
from tests.deploy.programs import program

Object = Mapping[str, Any]
CONTRACT = {
    "RNC_HOME": "/shared/runs",
    "RNC_COCO_ROOT": "/data/coco",
    "RNC_WEIGHTS": "/data/weights",
    "RNC_CACHE": "/tmp/rnc-cache",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    "MLFLOW_TRACKING_USERNAME": "rnc",
    "RAY_AUTH_MODE": "token",
    "RAY_TMPDIR": "/tmp/ray",
}
"""What rnc finds in its environment everywhere."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """The keys of the secrets that the script makes for each overlay."""
    program("openssl")
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "password").write_text("of the cloud's database")
    inside = made_secrets(folder / "inside")
    files = {name: str(folder / "password") for name in ("POSTGRES_PASSWORD_FILE", "POSTGRES_CA_FILE")}
    outside = made_secrets(folder / "outside", "--external", **files)
    keys = {name: {secret: set(made[secret]) for secret in made} for name, made in (("in", inside), ("out", outside))}
    return {overlay: keys["out" if overlay == "prod" else "in"] for overlay in OVERLAYS}


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Object]]:
    return {name: build(name) for name in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_to_the_schemas_of_kubernetes_and_the_rules_of_kuberay(
    overlay: str, overlays: dict[str, list[Object]], secrets: dict[str, dict[str, set[str]]]
):
    assert list(complaints(overlays[overlay], secrets[overlay])) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_find_the_environment_that_rnc_reads(overlay: str, overlays: dict[str, list[Object]]):
    maps = {o["metadata"]["name"]: o["data"] for o in overlays[overlay] if o["kind"] == "ConfigMap"}
    assert maps["rnc-environment"].items() >= CONTRACT.items()
    for pod in pods_of(overlays[overlay]):
        container = pod.containers[0]
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container.get("volumeMounts", [])}
        if pod.labels["role"] not in ("ray", "data"):
            continue
        assert container["envFrom"] == [{"configMapRef": {"name": "rnc-environment"}}]
        assert "MLFLOW_TRACKING_PASSWORD" in [variable["name"] for variable in container["env"]]
        is_read_only = pod.labels["role"] == "ray"
        assert (mounts["/data/coco"], mounts["/data/weights"]) == (is_read_only, is_read_only)
        assert mounts["/shared/runs"] is False
    images = {c["image"].rpartition("/")[2].partition(":")[0] for p in pods_of(overlays[overlay]) for c in p.containers}
    stores = set() if overlay == "prod" else {"postgres", "seaweedfs"}
    assert images == {"retinanet-conf", "retinanet-conf-mlflow"} | stores


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_what_they_need_and_nothing_else(overlay: str, overlays: dict[str, list[Object]]):
    policies = [thing for thing in overlays[overlay] if thing["kind"] == "NetworkPolicy"]
    ends = {}
    for pod in pods_of(overlays[overlay]):
        name = "-".join(filter(None, [pod.labels["role"], pod.labels.get("cluster"), pod.labels.get("node")]))
        ends[name] = End(labels=pod.labels)
    ends |= {"operator": End(namespace="kuberay-system"), "prometheus": End(namespace="monitoring")}
    ends |= {"stranger": End(namespace="default"), "internet": End(address="203.0.113.7")}
    rays = {name for name in ends if name.startswith("ray-")}
    allowed = {
        *((client, "mlflow", 5000) for client in {*rays, "data", "prometheus"}),
        *((client, ray, 8265) for client in ("operator",) for ray in rays),
        *(("submitter", ray, 8265) for ray in rays if "job" in ray),
        *(("prometheus", ray, 8080) for ray in rays),
        ("ray-interactive-head", "internet", 443),
    }
    for cluster in ("job", "interactive"):
        nodes = [name for name in rays if cluster in name]
        allowed |= {(a, b, port) for a, b in itertools.product(nodes, nodes) for port in PORTS}
    if overlay == "prod":
        allowed.add(("mlflow", "internet", 443))
    else:
        allowed |= {("mlflow", "postgres", 5432), ("mlflow", "seaweedfs", 8333)}
    found = {
        (a, b, port)
        for a, b in itertools.product(ends, ends)
        if ends[a].labels is not None or ends[b].labels is not None
        for port in PORTS
        if reaches(policies, ends[a], ends[b], port)
    }
    assert found == allowed
    for name, end in ends.items():
        for address in ("169.254.20.10", "169.254.169.254"):
            is_looked_up, is_read = (reaches(policies, end, End(address=address), port) for port in (53, 80))
            assert (is_looked_up, is_read) == (True, end.labels is None), (name, "names are asked for there, no more")
    is_reached = reaches(policies, ends["mlflow"], End(address="10.1.2.3"), 5432)
    assert is_reached is (overlay == "prod"), "PostgreSQL of the cloud is on the private network"


PORTS = (22, 80, 443, 5000, 5432, 6379, 8080, 8265, 8333, 8888, 9333, 20_000)


@pytest.mark.parametrize(("overlay", "workers", "each"), [("dev", 2, {"CPU": 2}), ("gpu", 2, {"CPU": 20, "GPU": 4})])
def test_ray_takes_each_cluster_for_as_large_as_meant(
    overlay: str, workers: int, each: dict[str, int], overlays: dict[str, list[Object]]
):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    job = next(thing for thing in overlays[overlay] if thing["kind"] == "RayJob")
    interactive = next(thing for thing in overlays[overlay] if thing["kind"] == "RayCluster")
    for metadata, spec, least in (
        (job["metadata"], job["spec"]["rayClusterSpec"], workers),
        (interactive["metadata"], interactive["spec"], 0),
    ):
        derived = derive({"metadata": metadata, "spec": spec})
        head, worker = (
            derived["available_node_types"][n] for n in ("headgroup", spec["workerGroupSpecs"][0]["groupName"])
        )
        assert head["resources"]["CPU"] == 0 and "GPU" not in head["resources"]
        assert (worker["min_workers"], worker["max_workers"]) == (least, workers)
        assert worker["resources"].items() >= each.items()
        assert worker["resources"]["memory"] > 2**31
    tokens = derive({"metadata": job["metadata"], "spec": job["spec"]["rayClusterSpec"]})["available_node_types"]
    name = "GPU" if overlay == "gpu" else "CPU"
    worker = next(one for one in tokens.values() if one["max_workers"])
    assert worker["resources"][f"training_{name.lower()}"] == worker["resources"][name]


def test_secrets_are_random_long_and_seen_by_nobody(tmp_path: Path):
    program("openssl")
    made = [made_secrets(tmp_path / str(i)) for i in range(2)]
    calls = (tmp_path / "0" / "calls").read_text()
    values = [
        [value for keys in one.values() for name, value in keys.items() if "USERNAME" not in name] for one in made
    ]
    assert len({*values[0], *values[1]}) == len(values[0]) + len(values[1]) == 16
    assert all(len(value) == 48 and value not in calls for value in values[0])
    assert sorted(made[0]) == ["mlflow", "object-store", "postgres", "ray-auth-token"]
    (tmp_path / "password").write_text("of the cloud's database\n")
    (tmp_path / "ca").write_text("certificate")
    files = {"POSTGRES_PASSWORD_FILE": str(tmp_path / "password"), "POSTGRES_CA_FILE": str(tmp_path / "ca")}
    there = made_secrets(tmp_path / "x", "--external", **files)
    assert there["postgres"] == {"POSTGRES_PASSWORD": "of the cloud's database", "ca.pem": "certificate"}
    assert "object-store" not in there


def test_the_script_that_makes_secrets_is_sound():
    subprocess.run([program("shellcheck"), str(ROOT / "make-secrets.sh")], check=True, timeout=60)


MISTAKES = [
    (file, *mistake)
    for file, mistakes in yaml.safe_load((Path(__file__).with_name("kubernetes_mistakes.yaml")).read_text()).items()
    for mistake in mistakes
]
"""File, what stands there, what it is spoilt to, and what is said then."""


@pytest.mark.parametrize(("file", "old", "new", "said"), MISTAKES, ids=[f"{m[0]}-{m[2][:20]}" for m in MISTAKES])
def test_a_mistake_in_a_file_is_told(
    file: str, old: str, new: str, said: str, tmp_path: Path, secrets: dict[str, dict[str, set[str]]]
):
    root = tmp_path / "kubernetes"
    shutil.copytree(ROOT, root)
    text = (root / file).read_text()
    assert old in text, f"{file} holds no {old!r} to be spoilt"
    (root / file).write_text(text.replace(old, new, 1))
    overlay = next((name for name in OVERLAYS if f"overlays/{name}/" in file), "gpu")
    try:
        told = list(complaints(build(overlay, root), secrets[overlay]))
    except ValueError as error:
        told = [str(error)]
    assert any(re.search(said, one) for one in told), told


def test_every_file_has_a_mistake_that_is_told():
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml")}
    assert files == {file for file, *_ in MISTAKES}


def test_seaweedfs_answers_as_it_is_started_there_and_only_on_its_s3_port(
    tmp_path: Path, overlays: dict[str, list[Object]]
):
    requests = pytest.importorskip("requests")
    store = next(o for o in overlays["gpu"] if (o["kind"], o["metadata"]["name"]) == ("StatefulSet", "seaweedfs"))
    container = store["spec"]["template"]["spec"]["containers"][0]
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    given = [arg for arg in container["args"] if not arg.startswith(("-dir=", "-s3.port=8333"))]
    command = [program("weed"), *given, f"-dir={tmp_path}", *(f"-{name}.port={port}" for name, port in ports.items())]
    environment = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "of-this-test", "HOME": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        path = container["readinessProbe"]["httpGet"]["path"]
        deadline = time.monotonic() + 60
        while True:
            with suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{ports['s3']}{path}", timeout=5).status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        assert requests.get(f"http://127.0.0.1:{ports['s3']}/mlflow/a", timeout=5).status_code == 403
        while True:  # S3 may be ready a moment before the place for files has told the master of itself
            found = requests.get(f"http://127.0.0.1:{ports['master']}/dir/status", timeout=5).json()["Topology"]
            if found["Max"] or time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        assert found["Max"] >= 2 * 7, "its own log and the bucket take seven volumes each, on a disk of 5 GB as well"
        here = psutil.Process(process.pid).net_connections(kind="inet")
        outside = {c.laddr.port for c in here if c.status == "LISTEN" and c.laddr.ip not in ("127.0.0.1", "::1")}
        assert outside == {ports["s3"], ports["s3"] + 10_000}, "S3, and its gRPC, which the NetworkPolicy keeps shut"
    finally:
        process.kill()
        process.wait(timeout=30)


def free_port() -> int:
    """Return a port that is free, and the one 10,000 above as well, which SeaweedFS takes, too."""
    while True:
        with closing(socket.socket()) as one, closing(socket.socket()) as above:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1]) - 10_000
            with suppress(OSError, OverflowError):
                above.bind(("127.0.0.1", port))
                return port
