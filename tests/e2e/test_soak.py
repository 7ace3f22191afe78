"""Two minutes of `make soak`: load and faults, health while the guard has drafting off, JSON logs, a drain at SIGTERM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.roomy]

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak"


def test_two_minutes_of_everything(target, tmp_path):
    out = tmp_path / "soak.json"
    command = [sys.executable, str(SOAK), "--minutes", "2", "--json", str(out), "--log", str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert all(check["holds"] for check in result["checks"]) and len(result["checks"]) == 15
    assert min(result["requests"].values()) > 0 and sum(result["requests"].values()) > 100
