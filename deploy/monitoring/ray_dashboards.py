"""Writes the Grafana dashboard of nodes, tasks and memory that the installed Ray brings along.

    .venv/bin/python deploy/monitoring/ray_dashboards.py [FOLDER]

It is generated, and changes with Ray, so it is not kept here. Ray's dashboard of Ray Train stays empty, because rnc
turns those metrics off (orchestrator/cluster/environment.py); ours, dashboards/suite.json, stands in for it.
"""

import sys
from pathlib import Path

from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_default_grafana_dashboard

BESIDE_OURS = Path(__file__).with_name("dashboards") / "ray"


def main(folder: Path = BESIDE_OURS) -> None:
    """Write it into a folder, by default where Grafana looks for dashboards."""
    folder.mkdir(parents=True, exist_ok=True)
    content, _ = generate_default_grafana_dashboard()
    (folder / "nodes.json").write_text(content)
    print(folder / "nodes.json")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
