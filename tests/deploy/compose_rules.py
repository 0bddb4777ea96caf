"""Our own rules for deploy/compose: what a resolved configuration must not allow."""

from collections.abc import Iterator, Mapping
from typing import Any

SECRET_NAME = ("PASSWORD", "SECRET", "TOKEN", "ACCESS_KEY")
PATHS = ("_FILE", "_PATH")
"""Variables of these endings name a file, and hold no secret."""


def complaints(config: Mapping[str, Any], secrets: Mapping[str, str]) -> list[str]:
    """Return what is wrong with a configuration as `docker-compose config --format json` prints it.

    Args:
        config: with all profiles.
        secrets: the values that must stand nowhere in it, by name.
    """
    text = str(config)
    found = [f"the value of {name} stands in the configuration" for name, value in secrets.items() if value in text]
    for name, service in config["services"].items():
        found += [f"{name}: {complaint}" for complaint in _of_service(service, config)]
    for name, secret in config.get("secrets", {}).items():
        if not secret.get("file"):
            found.append(f"secret {name} is no file, and cannot be put into a container with a read-only root")
    for name in ("postgres", "seaweedfs"):
        networks = set(config["services"][name].get("networks") or {})
        if not networks or not all(config["networks"][network].get("internal") for network in networks):
            found.append(f"{name}: is in a network that is not internal")
    return found


def _of_service(service: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    for port in service.get("ports") or []:
        if port.get("host_ip") != "127.0.0.1":
            yield f"port {port.get('published')} is published beyond 127.0.0.1"
    if service.get("network_mode") == "host":
        yield "shares the network of the machine"
    if service.get("privileged") or service.get("cap_add"):
        yield "has more rights than a process of a user"
    if "ALL" not in (service.get("cap_drop") or []):
        yield "does not drop all capabilities"
    if "no-new-privileges:true" not in (service.get("security_opt") or []):
        yield "may get new privileges"
    if not service.get("read_only"):
        yield "has a root file system that can be written"
    if str(service.get("user", "0")).partition(":")[0] in ("", "0", "root"):
        yield "runs as root, or as whom its image says"
    for variable, value in (service.get("environment") or {}).items():
        if value and any(word in variable for word in SECRET_NAME) and not variable.endswith(PATHS):
            yield f"{variable} is a secret in the environment"
    if service.get("restart") != "no":
        check = service.get("healthcheck") or {}
        if check.get("disable") or not check.get("test"):
            yield "has no health check"
        if not (service.get("logging") or {}).get("options", {}).get("max-size"):
            yield "may fill the disk with its log"
    for volume in service.get("volumes") or []:
        if volume["type"] == "bind" and not volume.get("read_only"):
            yield f"may write to {volume['source']} of the machine"
        if "docker.sock" in str(volume.get("source")):
            yield "may direct the container engine"
    for secret in service.get("secrets") or []:
        if secret["source"] not in config.get("secrets", {}):
            yield f"wants a secret that is none: {secret['source']}"
