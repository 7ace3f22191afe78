"""The rules by Prometheus's own tool: what fires each alert, and what must not."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "operations"
RULES = ROOT / "deploy" / "prometheus" / "edsd-rules.yaml"
COMMAND = re.compile(r"^    (sed .* deploy/prometheus/edsd-rules\.yaml) > rules\.yaml$", re.MULTILINE)
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
    assert f"runbooks/{alert}.md" in (PAGES / "alert.md").read_text()


@pytest.mark.parametrize(
    "page, new, old", [("watch.md", "edsd_policy_info", "edsd:"), ("alert.md", "runbook_url: https:", "runbook:")]
)
def test_rules_that_a_page_makes_of_ours_are_valid(page, new, old, promtool, tmp_path):
    """For another spelling of the metrics, and with whole addresses of the runbooks."""
    (command,) = COMMAND.findall((PAGES / page).read_text())
    rules = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert new in rules and old not in rules
    (tmp_path / "rules.yaml").write_text(rules)
    assert f"{len(ALL)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


def test_rules_name_metrics_that_exist_and_record_none_in_vain(samples):
    text = "\n".join(rule["expr"] for rule in ALL)
    assert set(re.findall(r"\b(?:edsd|vllm):\w+", text)) <= samples
    used = set(re.findall(r"\b(?:model|instance|size):\w+:\w+", text))
    assert used <= set(RECORDED)
    # What no rule needs is for operators, who are told.
    told = (PAGES / "metrics.md").read_text()
    assert all(f"`{name}`" in told for name in set(RECORDED) - used)
