"""The alerts and dashboards of deploy/monitoring: checked and unit-tested by promtool, and with mistakes in them."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from orchestrator.worker.gauges import GAUGES, UPDATES
from tests.deploy.programs import program
from tests.deploy.promql import MONITORING, dashboard_expressions, filled, metrics_in, panels, rules

COMPOSE = MONITORING.parent / "compose"
DASHBOARD = MONITORING / "dashboards" / "suite.json"
OURS = {f"ray_{name}" for name in (*GAUGES, UPDATES)}
OTHERS = {"up", "ALERTS", "mlflow_http_request_total", "mlflow_http_request_duration_seconds_bucket"}
"""What Prometheus and MLflow tell; test_monitoring_real.py sees that they do."""


def promtool(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False)


def known_metrics() -> set[str]:
    """Names that exist: ours, MLflow's, and those that Ray's source defines for a node."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    return OURS | OTHERS | {f"ray_{name}" for name in METRICS_GAUGES}


@pytest.fixture
def monitoring(tmp_path: Path) -> Path:
    """A copy, in which mistakes may be made."""
    return Path(shutil.copytree(MONITORING, tmp_path / "monitoring"))


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} holds {text.count(old)} times {old!r}"
    file.write_text(text.replace(old, new))


def test_the_configuration_and_the_rules_are_valid():
    for command, file in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        options = ["--syntax-only"] if command == "config" else []  # no password lies here
        done = promtool("check", command, *options, file, folder=MONITORING)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_only_then():
    done = promtool("test", "rules", "rules_test.yml", folder=MONITORING)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_must_not():
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert set(cases) == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


WHILE_TRAINING = "and on (SessionName) max by (SessionName) (max_over_time(ray_rnc_training_active[5m])) == 1"


@pytest.mark.parametrize(
    ("alert", "field", "old", "new"),
    [
        ("TrainingStuck", "expr", "max_over_time(ray_rnc_training_active[5m])", "ray_rnc_training_active"),
        ("TrainingStuck", "expr", "== 1", ">= 0"),
        ("TrainingStuck", "expr", "[15m]", "[5m]"),
        ("TrainingStuck", "expr", "sum by (suite, train_key)", "sum by (suite)"),
        ("TrainingStuck", "expr", "unless", "and"),
        ("TrainingStuck", "for", "15m", "1h"),
        ("RestartsRepeated", "expr", ">= 2", ">= 3"),
        ("RestartsRepeated", "expr", ">= 2", ">= 1"),
        ("RestartsRepeated", "expr", "[1h]", "[3h]"),
        ("WorkLost", "expr", "0.2", "0.3"),
        ("WorkLost", "expr", "0.2", "0.1"),
        ("WorkLost", "expr", "- min_over_time(ray_rnc_lost_images_total[6h])", ""),
        ("SuiteEndedUnfinished", "expr", "> 0", "> 40"),
        ("SuiteEndedUnfinished", "expr", "> 0", ">= 0"),
        ("SuiteEndedUnfinished", "expr", "ray_rnc_rows[5m]", "ray_rnc_rows[45m]"),
        ("NodeDown", "for", "2m", "0m"),
        ("NodeDown", "for", "2m", "10m"),
        ("NodeDown", "expr", "== 0", "== 1"),
        ("NodeLost", "expr", '_(active|idle)_nodes"}) > 0', '_active_nodes"}) > 0'),
        ("NodeLost", "expr", WHILE_TRAINING, ""),
        ("NodeLost", "expr", "[15m:15s]", "[5m:15s]"),
        ("DiskNearlyFull", "expr", "0.1", "0.05"),
        ("DiskNearlyFull", "expr", "/ (ray_node_disk_free + ray_node_disk_usage) < 0.1", "< 10e9"),
        ("StorageNearlyFull", "expr", "0.1", "0.03"),
        ("StorageNearlyFull", "expr", "100e9", "100e12"),
        ("StorageNearlyFull", "expr", "and on", "or on"),
        ("GpuIdle", "expr", "< 5", "< 20"),
        ("GpuIdle", "expr", "< 5", "> 95"),
        ("GpuIdle", "expr", WHILE_TRAINING, ""),
        ("MLflowDown", "expr", 'up{job=~".*mlflow.*"} == 0', 'up{job=~".*mlflow.*"} == 2'),
        ("MLflowDown", "expr", "max_over_time", "min_over_time"),
        ("MLflowDown", "for", "2m", "0m"),
        ("MLflowDown", "alert", "MLflowDown", "MlflowDown"),
    ],
)
def test_a_mistake_in_a_rule_is_found(monitoring: Path, alert: str, field: str, old: str, new: str):
    content = yaml.safe_load((monitoring / "rules.yml").read_text())
    (rule,) = (rule for group in content["groups"] for rule in group["rules"] if rule["alert"] == alert)
    assert rule[field].count(old) == 1
    rule[field] = rule[field].replace(old, new)
    (monitoring / "rules.yml").write_text(yaml.safe_dump(content))
    assert promtool("check", "rules", "rules.yml", folder=monitoring).returncode == 0, "it should be valid, and wrong"
    done = promtool("test", "rules", "rules_test.yml", folder=monitoring)
    assert (done.returncode, "FAILED" in done.stdout + done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("command", "file", "old", "new"),
    [
        ("config", "prometheus.yml", "scrape_interval:", "scrape_intervall:"),
        ("config", "prometheus.yml", "type: A", "type: B"),
        ("config", "prometheus.yml", "      password_file:", "     password_file:"),
        ("config", "prometheus.yml", "job_name: mlflow", "job_name: ray"),
        ("rules", "rules.yml", "min_over_time(ray_rnc_restarts_total[1h])", "min_over_time(ray_rnc_restarts_total)"),
        ("rules", "rules.yml", "        for: 1m", "        for: one minute"),
        ("rules", "rules.yml", "  - name: mlflow\n    rules:", "  - name: mlflow\n  rules:"),
        ("rules", "rules.yml", "{{ $labels.ip }} has", "{{ $labels.ip } has"),
    ],
)
def test_a_broken_file_is_refused(monitoring: Path, command: str, file: str, old: str, new: str):
    change(monitoring / file, old, new)
    options = ["--syntax-only"] if command == "config" else []
    assert promtool("check", command, *options, file, folder=monitoring).returncode != 0


def expressions() -> list[str]:
    return [filled(rule["expr"]) for rule in rules()] + list(dashboard_expressions(DASHBOARD))


def is_promql(expressions: list[str], folder: Path) -> bool:
    records = [{"record": f"e{place}", "expr": expression} for place, expression in enumerate(expressions)]
    (folder / "expressions.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": records}]}))
    return promtool("check", "rules", "expressions.yml", folder=folder).returncode == 0


def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path):
    found = list(dashboard_expressions(DASHBOARD))
    assert len(found) >= len(panels(DASHBOARD))
    assert is_promql(found, tmp_path)
    for place, expression in enumerate(found):
        assert not is_promql([*found[:place], f"{expression})", *found[place + 1 :]], tmp_path)


def test_every_metric_that_rules_and_dashboard_name_exists():
    known = known_metrics()
    named = {name for expression in expressions() for name in metrics_in(expression, known)}
    assert named <= known
    assert named >= OURS, "told, and shown nowhere"


@pytest.mark.parametrize(
    ("expression", "stranger"),
    [
        ('sum by (suite) (ray_rnc_row{suite=~"$suite"})', "ray_rnc_row"),
        ("rate(rnc_training_updates_total[$__rate_interval]) > 1e9", "rnc_training_updates_total"),
        ("max(up) unless on (suite) ray_node_gpu_utilization", "ray_node_gpu_utilization"),
    ],
)
def test_a_metric_that_does_not_exist_is_found(expression: str, stranger: str):
    known = known_metrics()
    assert metrics_in(filled(expression), known) - known == {stranger}


def test_the_dashboard_can_be_loaded_its_panels_lie_side_by_side_and_use_its_variables():
    dashboard = json.loads(DASHBOARD.read_text())
    shown = panels(DASHBOARD)
    assert len({panel["id"] for panel in shown}) == len(shown)
    boxes = [json.loads(json.dumps(panel["gridPos"])) for panel in shown]
    for one, other in combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == variables


def test_rays_own_dashboard_is_written_where_grafana_looks(tmp_path: Path):
    command = [sys.executable, str(MONITORING / "ray_dashboards.py"), str(tmp_path / "ray")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (written,) = (tmp_path / "ray").iterdir()
    assert str(written) in done.stdout
    assert json.loads(written.read_text())["uid"] != json.loads(DASHBOARD.read_text())["uid"]
    assert is_promql(list(dashboard_expressions(written)), tmp_path)


def compose(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program("docker-compose"), "-f", "compose.monitoring.yaml", "config"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )


SECRETS = {"GRAFANA_ADMIN_PASSWORD_FILE": "admin", "RNC_MLFLOW_READER_PASSWORD_FILE": "reader"}


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_monitoring_does_not_start_without_its_passwords(missing: str):
    done = compose(COMPOSE, **{name: value for name, value in SECRETS.items() if name != missing})
    assert (done.returncode != 0, missing in done.stderr) == (True, True)


def test_monitoring_is_reached_from_this_machine_only_and_mounts_what_is_there():
    done = compose(COMPOSE, **SECRETS)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    ports = [port for service in services.values() for port in service["ports"]]
    assert [port["host_ip"] for port in ports] == ["127.0.0.1"] * len(ports)
    binds = [mount for service in services.values() for mount in service["volumes"] if mount["type"] == "bind"]
    assert all(Path(mount["source"]).exists() and mount["read_only"] for mount in binds)
    assert all(service["read_only"] and service["cap_drop"] == ["ALL"] for service in services.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    tmpfs: [/tmp]", "    tempfs: [/tmp]"),
        ("networks: [monitoring]", "networks: [monitor]"),
        ("depends_on: [prometheus]", "depends_on: [prometheu]"),
        ("secrets: [mlflow-reader-password]", "secrets: [mlflow-password]"),
    ],
)
def test_a_mistake_in_the_compose_file_is_found(tmp_path: Path, old: str, new: str):
    shutil.copy(COMPOSE / "compose.monitoring.yaml", tmp_path)
    change(tmp_path / "compose.monitoring.yaml", old, new)
    assert compose(tmp_path, **SECRETS).returncode != 0


def test_grafana_finds_what_is_mounted_for_it():
    services = yaml.safe_load((COMPOSE / "compose.monitoring.yaml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    provisioning = MONITORING / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dashboards.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert mounts["../monitoring/dashboards"] == provider["options"]["path"]
    assert source["url"].strip("${}") in services["grafana"]["environment"]
    assert services["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
