"""The picture of Prometheus's graphs: which page a browser is sent to. A script stands in for the browser."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "grafana" / "graphs.py"


@pytest.fixture
def draw(tmp_path):
    def run(*arguments):
        command = [sys.executable, SCRIPT, "http://localhost:9090/", tmp_path / "graphs.png", *arguments]
        return subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)

    return run


def test_the_panels_own_queries_are_drawn(draw, tmp_path):
    browser = tmp_path / "chromium"
    browser.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    browser.chmod(0o755)
    done = draw("--range", "80s", "--interval", "15s", "--instance", "a:8000")
    assert done.returncode == 0, done.stderr
    *options, address = done.stdout.splitlines()
    assert f"--screenshot={tmp_path / 'graphs.png'}" in options
    fields = {name: value for name, (value,) in parse_qs(urlsplit(address).query).items()}
    assert address.startswith("http://localhost:9090/graph?")
    graphs = ["g0", "g1", "g2"]
    assert set(fields) == {f"{graph}.{part}" for graph in graphs for part in ("expr", "tab", "range_input")}
    queries = [fields[f"{graph}.expr"] for graph in graphs]
    metrics = ("edsd:step_acceptance_length_sum", "edsd:accepted_tokens_total", "edsd:guard_tokens_per_second")
    for query, metric in zip(queries, metrics, strict=True):
        assert f'{metric}{{model_name=~".*", instance=~"a:8000"}}' in query and "$" not in query
    assert "[15s]" in queries[0] and fields["g0.range_input"] == "80s"


def test_without_a_browser_it_says_what_to_install(draw):
    done = draw()
    assert done.returncode == 1 and "apt-get install chromium" in done.stderr
