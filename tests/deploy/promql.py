"""What the rules and dashboards of deploy/monitoring ask of Prometheus: their expressions, and the metrics in them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
WORDS = {"and", "by", "ignoring", "on", "or", "unless", "without"}
NOT_NAMES = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on|ignoring|without)\s*\([^)]*\)|\$\w+')
NAMES_BY_PATTERN = re.compile(r'__name__=~"([^"]*)"')


def rules(folder: Path = MONITORING) -> list[dict[str, str]]:
    """Every alert of rules.yml."""
    content = yaml.safe_load((folder / "rules.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def panels(dashboard: Path) -> list[dict[str, object]]:
    """Every panel of a dashboard, those within its rows included."""
    found = json.loads(dashboard.read_text())["panels"]
    return [one for panel in found for one in (panel, *panel.get("panels", []))]


def dashboard_expressions(dashboard: Path) -> Iterator[str]:
    """Every expression of a dashboard, with its variables put in."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):  # type: ignore[attr-defined]
            yield filled(target["expr"])


def filled(expression: str) -> str:
    """Put in what Grafana puts in for variables."""
    expression = re.sub(r"\$(__rate_interval|__interval|\{interval\})", "5m", expression)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


def metrics_in(expression: str, known: set[str]) -> set[str]:
    """The names of metrics in an expression; a pattern over names stands for the known ones that it matches."""
    patterns = NAMES_BY_PATTERN.findall(expression)
    named = {name for pattern in patterns for name in known if re.fullmatch(pattern, name)}
    bare = NOT_NAMES.sub(" ", expression)
    return named | {word for word in re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare) if word not in WORDS}
