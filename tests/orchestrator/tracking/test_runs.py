"""Runs as they are written to a real MLflow server."""

from orchestrator import names
from orchestrator.tracking.runs import create_run, get_run, open_tracking, write


def test_more_tags_params_and_metrics_than_mlflow_takes_at_once_are_written_in_several_calls(mlflow_uri: str) -> None:
    tracking = open_tracking(mlflow_uri, "many")
    run_id = create_run(mlflow_uri, str(tracking.experiment_id), "a run", {names.SUITE: "many"})
    tags, params = ({f"{kind}{number}": str(number) for number in range(250)} for kind in ("tag", "param"))
    metrics = {f"AP_class/{number}": float(number) for number in range(1001)}
    write(mlflow_uri, run_id, tags=tags, params=params, metrics=metrics)
    run = get_run(mlflow_uri, run_id)
    assert tags.items() <= run.tags.items()
    assert (run.params, run.metrics) == (params, metrics)
