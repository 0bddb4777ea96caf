"""The ASGI application of our own MLflow server: MLflow's, whose first page opens on trained models.

MLflow 3's page opens on language models, and on a server of this machine with an assistant beside it that takes a
quarter of the window. No address says otherwise: the page remembers both in the browser's storage, which is therefore
filled before its own script runs. What somebody has chosen there once stays.
"""

from pathlib import Path

from mlflow.server import app as flask_app
from mlflow.server.fastapi_app import app
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from orchestrator import names
from orchestrator.mlflow_server.files import list_files
from orchestrator.mlflow_server.runs import list_runs

__all__ = ["app"]

SCRIPT = """<script>
try {
  const chosen = {"mlflow.workflowType_v1": '"machine_learning"', "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"};
  for (const [name, value] of Object.entries(chosen))
    if (localStorage.getItem(name) === null) localStorage.setItem(name, value);
} catch {}
if (!location.hash) location.replace("#/experiments");
</script>"""  # noqa: E501


def opened_on_models(page: str) -> str:
    """Return MLflow's page with a script before all of its own."""
    return page.replace("<head>", f"<head>{SCRIPT}", 1)


async def _front(_: Request) -> HTMLResponse:
    page = Path(str(flask_app.static_folder), "index.html").read_text(encoding="utf-8")
    # As MLflow answers: a page that is kept would ask for the scripts of an older version.
    return HTMLResponse(opened_on_models(page), headers={"Cache-Control": "no-cache"})


# Before MLflow's own, which takes every path.
app.router.routes[:0] = [Route("/", _front, methods=["GET"])]
flask_app.add_url_rule(names.LISTED_RUNS, view_func=list_runs)
flask_app.add_url_rule(names.LISTED_FILES, view_func=list_files, methods=["POST"])
