"""What the cluster files of deploy/ray-up keep to, beyond what Ray's own schema asks for."""

import re
import shlex
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

Config = Mapping[str, Any]
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray-auth-token",
    "RAY_TMPDIR": "/tmp/ray",
    "RNC_HOME": "/shared/runs",
    "RNC_COCO_ROOT": "/data/coco",
    "RNC_WEIGHTS": "/data/weights",
    "RNC_CACHE": "/tmp/rnc-cache",
    "MLFLOW_TRACKING_USERNAME": "rnc",
}
CLOSED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user $(id -u):$(id -g)")
SECRET = re.compile(r"AKIA[A-Z0-9]{16}|-----BEGIN|\b[A-Fa-f0-9]{32,}\b|(PASSWORD|TOKEN|SECRET\w*|_KEY)=[^\"$/\s]")
NODE_FIELDS = {
    "aws": {
        "BlockDeviceMappings", "IamInstanceProfile", "ImageId", "InstanceMarketOptions", "InstanceType",
        "MetadataOptions", "SecurityGroupIds", "SubnetIds",
    },
    "gcp": {
        "disks", "machineType", "networkInterfaces", "scheduling", "serviceAccounts", "shieldedInstanceConfig", "tags",
    },
}  # fmt: skip
"""Settings of a node that are used here; the clouds' interfaces know more, and Ray checks none."""


def launcher_complaints(config: Config) -> Iterator[str]:
    """Say what Ray's cluster launcher would refuse."""
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(deepcopy(dict(config))))
    except (AssertionError, KeyError, RuntimeError, ValueError, jsonschema.ValidationError) as error:
        yield f"ray refuses it: {getattr(error, 'message', error)}"
    except click.ClickException:
        yield "ray refuses it"  # it has said why


def up_complaints(config: Config, text: str) -> Iterator[str]:
    """Say what is wrong with a cluster file that Ray takes.

    Args:
        config: of the file.
        text: the file itself.
    """
    for line in text.splitlines():
        if SECRET.search(line.partition(" #")[0]):
            yield f"a secret stands in it: {line.strip()}"
    yield from _start(config)
    yield from _docker(config["docker"])
    yield from _nodes(config)
    if config["file_mounts"].get("/run/secrets") != "~/.rnc/secrets":
        yield "the token is not copied to /run/secrets"
    for commands in ("head_setup_commands", "worker_setup_commands"):
        if not any("ray-auth-token)" in one and "600" in one for one in config[commands]):
            yield f"{commands} do not check that the token's file is nobody else's to read"
    if not any("mountpoint --quiet /srv/retinanet-conf" in one for one in config["initialization_commands"]):
        yield "nothing sees to it that the shared storage is mounted"
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        yield "idle nodes stay, and cost"


def _start(config: Config) -> Iterator[str]:
    for side in ("head", "worker"):
        commands = config[f"{side}_start_ray_commands"]
        starts = [shlex.split(one.partition("ray start ")[2]) for one in commands if "ray start " in one]
        if len(starts) != 1:
            yield f"{side}: ray is started {len(starts)} times"
            continue
        options = dict((option.partition("=")[0], option.partition("=")[2]) for option in starts[0])
        if options.get("--metrics-export-port") != "8080":
            yield f"{side}: metrics are not at port 8080"
        if side == "head" and options.get("--dashboard-host") != "127.0.0.1":
            yield "head: the dashboard, which takes jobs, is reached from outside"
        if side == "head" and options.get("--num-gpus") != "0":
            yield "head: it would train"
        if not any("/run/secrets/mlflow-password" in one for one in commands):
            yield f"{side}: MLflow's password is not handed over"


def _docker(docker: Config) -> Iterator[str]:
    options = docker["run_options"]
    image = docker["image"].rpartition("/")[2]
    if not image.startswith("retinanet-conf-launcher:") or image.endswith(":latest"):
        yield f"image {docker['image']} is not that of deploy/ray-up/Dockerfile, with a version"
    given = dict(option.removeprefix("--env=").split("=", 1) for option in options if option.startswith("--env="))
    for name, value in ENVIRONMENT.items():
        if given.get(name) != value:
            yield f"{name} is {given.get(name)}, expected {value}"
    yield from (f"the container runs without {option}" for option in CLOSED if option not in options)
    for option in options:
        if re.search(r"privileged|docker\.sock|--publish|-p ", option):
            yield f"{option} opens the container"
    volumes = [option.removeprefix("--volume=").split(":") for option in options if option.startswith("--volume=")]
    modes = {parts[1]: parts[2:] for parts in volumes}
    users = {"/etc/passwd": ["ro"], "/etc/group": ["ro"]}
    if {name: modes.pop(name, None) for name in users} != users:
        yield "ssh would refuse the container's user, who has no name in it"
    if modes != {"/tmp": [], "/shared/runs": [], "/data/coco": ["ro"], "/data/weights": ["ro"]}:
        yield "the volumes are not /tmp, /shared/runs, and /data/coco and /data/weights read-only"


def _nodes(config: Config) -> Iterator[str]:
    kind = config["provider"]["type"]
    if kind == "local":
        if "--gpus all" not in config["docker"]["run_options"]:
            yield "containers see no GPU"
        if config["min_workers"] != len(config["provider"]["worker_ips"]):
            yield "not all machines are taken"
        return
    types = config["available_node_types"]
    for name, node in types.items():
        settings = node["node_config"]
        yield from (f"{name}: {field} is no setting of a node" for field in settings.keys() - NODE_FIELDS[kind])
        if name == config["head_node_type"]:
            continue
        if node.get("min_workers") != 0 or not 0 < node.get("max_workers", 0) <= config["max_workers"]:
            yield f"{name}: expected min_workers 0 and max_workers of at most {config['max_workers']}"
        if node["resources"].get("GPU") and node.get("docker", {}).get("worker_run_options") != ["--gpus all"]:
            yield f"{name}: containers see no GPU"
    nodes = {name: node["node_config"] for name, node in types.items()}
    if kind == "aws":
        for name, settings in nodes.items():
            if not settings.get("SecurityGroupIds"):
                yield f"{name}: without a security group of ours, Ray makes one that opens ssh to the world"
            if settings.get("MetadataOptions", {}).get("HttpTokens") != "required":
                yield f"{name}: the metadata server answers without a token"
            if not all(disk["Ebs"].get("Encrypted") for disk in settings["BlockDeviceMappings"]):
                yield f"{name}: its disk is not encrypted"
        roles = {name: settings.get("IamInstanceProfile", {}).get("Name") for name, settings in nodes.items()}
    else:
        for name, settings in nodes.items():
            if not settings.get("tags"):
                yield f"{name}: no firewall rule means it"
        roles = {name: settings.get("serviceAccounts", [{}])[0].get("email") for name, settings in nodes.items()}
    if None in roles.values() or len(set(roles.values())) < len(roles):
        yield "head and workers share a role, or have none of their own"
