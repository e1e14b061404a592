"""The dashboard and the alert rules in docs/ use metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cfproxy.auth.models import TokenStatus
from cfproxy.errors import error_kinds
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.prometheus import MetricsCollector
from cfproxy.observability.status import STATES
from cfproxy.pacing.queue import FairQueue
from cfproxy.pacing.rate import RateLimit
from tests.support.clock import FakeClock
from tests.support.paths import ROOT
from tests.unit.auth.test_expiry import a_login

DOCS = ROOT / "docs"
ALERTS = DOCS / "alerts.yaml"
FROM_PROMETHEUS = {"up"}


def exposed() -> dict[str, set[str]]:
    """Return the name and labels of each sample, from a process that has recorded everything once."""
    metrics = Metrics()
    metrics.accounts["default"] = lambda: TokenStatus(a_login(), 30.0, None, 0.0, None, False, 7)
    fair_queue = FairQueue(RateLimit(20.0, 1.0), FakeClock(), 10, 60.0)
    metrics.pacing["https://api"] = lambda: replace(fair_queue.state(), replicas=2)
    metrics.request_stats("default", "https://api").record("GET", "/", 200, "", total_s=0.1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(MetricsCollector(metrics).render({"default": 1}).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alert_rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=lambda text: str(text)[:40])
def test_used_metrics_and_labels_exist(where: str, expression: str) -> None:
    """Every metric in an expression exists, and every label that it filters or groups by."""
    known = exposed()
    names = re.findall(r"\b((?:cfproxy|process)_[a-z0-9_]+|up)\b(?=[{\[ )]|$)", expression)
    assert names, where
    for name, chosen in re.findall(r"\b((?:cfproxy|process)_[a-z0-9_]+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", chosen)) - {"instance", "job"}
        assert labels <= known[name], (where, name)
    assert set(names) <= set(known) | FROM_PROMETHEUS, where
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        labels = {label.strip() for label in grouped.split(",")} - {"instance", "le"}
        assert labels <= set().union(*(known[name] for name in names)), where


def test_every_metric_is_documented() -> None:
    """The table in docs/operations.md lists each metric and nothing else."""
    told = set(re.findall(r"`(cfproxy_[a-z_]+)`", (DOCS / "operations.md").read_text(encoding="utf-8")))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed() if name.startswith("cfproxy_")}
    assert told == shown


def test_states_and_problems_in_the_rules_exist() -> None:
    """A rule for a renamed state would never fire."""
    for rule in alert_rules():
        for label, pattern in re.findall(r'\b(state|problem)=~?"([^"]*)"', rule["expr"]):
            values = STATES if label == "state" else {kind.slug for kind in error_kinds()}
            for alternative in pattern.split("|"):
                assert any(re.fullmatch(alternative, value) for value in values), rule["alert"]


def test_every_alert_says_what_to_do() -> None:
    """It has a severity, a summary and a next step."""
    for rule in alert_rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool; on Debian: apt-get install prometheus"
)


@needs_promtool
def test_promtool_accepts_rules_and_exposition() -> None:
    """Prometheus' own tool validates both."""
    rules = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, check=False)
    assert rules.returncode == 0, rules.stdout + rules.stderr
    metrics = Metrics()
    metrics.request_stats("default", "https://api").record("GET", "/", 200, "", total_s=0.1)
    judged = subprocess.run(
        ["promtool", "check", "metrics"],
        input=MetricsCollector(metrics).render(),
        capture_output=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr


def firing(tmp_path: Path, series: dict[str, str], expected: dict[int, list[tuple[str, str]]]) -> str:
    """Replay `series` with promtool, one value per hour; return its output if the alerts differ.

    Args:
        tmp_path: for its file.
        series: values in promtool's notation, by series.
        expected: the hour → alerts as (name, severity) of account default that fire then, of those named.
    """
    labels = {"account": "default"}
    names = {name for alerts in expected.values() for name, _ in alerts}
    document = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "1h",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {
                        "eval_time": f"{hour}h",
                        "alertname": name,
                        "exp_alerts": [
                            {"exp_labels": labels | {"severity": severity}, **texts_of(name)}
                            for wanted, severity in alerts
                            if wanted == name
                        ],
                    }
                    for hour, alerts in expected.items()
                    for name in sorted(names)
                ],
            }
        ],
    }
    path = tmp_path / "alerts.json"
    path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    ran = subprocess.run(["promtool", "test", "rules", path], capture_output=True, check=False, text=True)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def texts_of(name: str) -> dict[str, Any]:
    """Return a rule's annotations, rendered for account default and an instance without a name."""
    (rule,) = (rule for rule in alert_rules() if rule["alert"] == name)
    fill = {"{{ $labels.account }}": "default", "{{ $labels.instance }}": ""}
    texts = rule["annotations"]
    for mark, text in fill.items():
        texts = {key: value.replace(mark, text) for key, value in texts.items()}
    return {"exp_annotations": texts}


@pytest.mark.slow
@needs_promtool
def test_an_ending_login_raises_one_alert_at_a_time(tmp_path: Path) -> None:
    """The week's alert is replaced by the one for two days, which lasts until someone logs in."""
    week, days = ("CfproxyLoginEndsInAWeek", "warning"), ("CfproxyLoginEndsInTwoDays", "critical")
    series = {'cfproxy_login_expiry_warning{account="default"}': "0 0 1 1 2 2 3 3 4 4 0 0"}
    expected = {1: [], 3: [week], 5: [days], 7: [days], 9: [days], 11: []}
    assert firing(tmp_path, series, expected) == ""
