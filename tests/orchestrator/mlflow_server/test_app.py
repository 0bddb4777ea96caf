"""MLflow's first page as our own server gives it; tests/system/test_browse.py looks at it in a browser."""

import re

import requests

from orchestrator.site import Site
from orchestrator.tracking.server import tracking_server


def test_the_page_fills_the_browsers_storage_before_mlflows_own_script_runs(mortal_site: Site) -> None:
    uri = tracking_server(mortal_site)
    answer = requests.get(uri, timeout=60)
    assert answer.headers["content-type"].startswith("text/html") and answer.headers["cache-control"] == "no-cache"
    first, own = (answer.text.index(text) for text in ("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "main."))
    assert first < own
    # what the page asks for next is there: MLflow answers all other paths
    (script,) = re.findall(r'src="(static-files/[^"]+main[^"]+)"', answer.text)
    assert requests.get(f"{uri}/{script}", timeout=60).ok and requests.get(f"{uri}/health", timeout=60).text == "OK"
    # MLflow's guard against other names of this machine stands before the page, too
    assert requests.get(uri, headers={"Host": "elsewhere.example"}, timeout=60).status_code == 403
