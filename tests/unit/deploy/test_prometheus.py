"""The rules by Prometheus's own tool: what fires each alert, and what must not."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "edsd-rules.yaml"
CASES = Path(__file__).parent / "edsd-rules.test.yaml"
ALL = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL if "alert" in rule}
RECORDED = {rule["record"]: rule for rule in ALL if "record" in rule}


def test_rules_and_configuration_are_valid_and_fire_when_they_should(promtool):
    assert f"{len(ALL)} rules found" in promtool("check", "config", RULES.parent / "prometheus.yaml")
    assert "SUCCESS" in promtool("test", "rules", CASES)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert):
    tests = yaml.safe_load(CASES.read_text())["tests"]
    cases = [
        (number, case["exp_alerts"])
        for number, test in enumerate(tests)
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == alert
    ]
    # Where it fires for one server, the others of the test are the control.
    servers = [{re.search(r'(?:instance|model_name)="(\w+)"', s["series"])[1] for s in t["input_series"]} for t in tests]
    control = any(len(expected) < len(servers[number]) for number, expected in cases)
    assert any(expected for _, expected in cases) and control


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_it_is_and_has_a_page(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert {"summary", "description", "runbook"} == set(rule["annotations"])
    page = ROOT / rule["annotations"]["runbook"]
    assert page.stem == alert
    text = page.read_text()
    assert text.startswith(f"# {alert}\n")
    assert f"runbooks/{alert}.md" in (ROOT / "docs" / "operations" / "alert.md").read_text()


def test_rules_name_metrics_that_exist_and_record_none_in_vain(samples):
    text = "\n".join(rule["expr"] for rule in ALL)
    assert set(re.findall(r"\b(?:edsd|vllm):\w+", text)) <= samples
    used = set(re.findall(r"\b(?:model|instance|size):\w+:\w+", text))
    assert used <= set(RECORDED)
    # What no rule needs is for operators, who are told.
    told = (ROOT / "docs" / "operations" / "metrics.md").read_text()
    assert all(f"`{name}`" in told for name in set(RECORDED) - used)
