"""Packages and sources of a machine, judged by the bounds that pyproject.toml declares.

The lower bounds leave out the releases with known vulnerabilities, but for those in SAFE, which serve all the same; no
machine has to reach the network to be judged. What became known since is for `pip-audit` to say.
"""

import hashlib
import importlib.metadata
import platform
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from orchestrator.doctor.finding import Finding, finding
from orchestrator.site import ROOT

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy")
"""What numbers, or the talk between nodes, depend on."""
SAFE = {"mlflow": SpecifierSet(">=3.17")}  # CVE-2026-116690
"""Where the project works with older releases than are safe."""


def declared() -> dict[str, SpecifierSet]:
    """Return the packages that pyproject.toml names, with their bounds, and those of SAFE."""
    # Not importlib.metadata: a job's sources come from a checkout, and may be newer than what its image has installed.
    file = ROOT / "pyproject.toml"
    if file.is_file():
        listed = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:  # installed from a wheel, which brings its metadata instead
        listed = importlib.metadata.requires("retinanet-conf") or []
    requirements = map(Requirement, listed)
    return {
        one.name: one.specifier & SAFE.get(one.name, SpecifierSet())
        for one in requirements
        if one.marker is None or one.marker.evaluate()
    }


def meets(version: str, bounds: SpecifierSet) -> bool:
    """Say whether a version keeps within bounds; what is behind its numbers (rc1, .dev0, +cu132) does not count."""
    try:
        return Version(Version(version).base_version) in bounds
    except InvalidVersion:
        return False


def look_at_versions() -> dict[str, str | None]:
    """Python, the declared packages (None for what is not installed) and a digest of the project's own sources."""
    packages = {name: _installed(name) for name in (*PACKAGES, *declared())}
    return {"python": platform.python_version(), **packages, "sources": sources_digest(ROOT)}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def sources_digest(root: Path) -> str:
    """Return the Python files of the project as one short digest."""
    content = hashlib.sha256()
    for path in sorted(path for package in ("model", "orchestrator") for path in (root / package).rglob("*.py")):
        content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def judge_versions(where: str, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge whether every package is installed and keeps within its bounds."""
    faults = []
    for name, bounds in declared().items():
        if name in facts and not facts[name]:
            faults.append(f"{name} is not installed")
        elif name in facts and not meets(facts[name], bounds):
            faults.append(f"{name} {facts[name]} is not {bounds}")
    seen = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "ray", "mlflow") if facts.get(name))
    way_out = (
        "install requirements.lock of this checkout there, or use the image that is built from it; what lies outside "
        "the bounds of pyproject.toml may have known vulnerabilities, which `pip-audit` names"
    )
    yield finding("versions", where, "fail" if faults else "ok", "; ".join(faults) or seen, way_out)
