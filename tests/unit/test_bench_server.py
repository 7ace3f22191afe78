"""The life of a server's process group, with a stand-in for vLLM."""

import os
import signal
import sys
import threading
import time

import psutil
import pytest

from vllm_edsd.engine import server as module
from vllm_edsd.errors import UserError

HEALTHY = """
import http.server, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN if "--deaf" in sys.argv else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(module, "_environment", lambda model: {**os.environ, "PIDS": str(tmp_path / "pids")})

    def use(code):
        monkeypatch.setattr(module, "_command", lambda model: [sys.executable, "-c", code])
        return tmp_path / "log"

    return use


def pids(tmp_path):
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_gone(found):
    until = time.monotonic() + 10
    while not all(gone(pid) for pid in found) and time.monotonic() < until:
        time.sleep(0.05)
    return all(gone(pid) for pid in found)


@pytest.mark.parametrize("arguments", [[], ["--deaf"]], ids=["ends when asked", "must be killed"])
def test_the_whole_group_is_gone_afterwards(stand_in, tmp_path, arguments):
    with module.serve("m", arguments, stand_in(HEALTHY)) as server:
        found = pids(tmp_path)
        assert not any(gone(pid) for pid in found)
        server.check()
    assert wait_gone(found)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_group_is_gone_after_an_exception(stand_in, tmp_path, error):
    with pytest.raises(error), module.serve("m", [], stand_in(HEALTHY)):
        raise error
    assert wait_gone(pids(tmp_path))


def test_sigterm_stops_a_paused_server(stand_in, tmp_path):
    with pytest.raises(SystemExit) as end, module.serve("m", [], stand_in(HEALTHY)) as server:
        server.pause()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(10)
    assert end.value.code == 128 + signal.SIGTERM
    assert wait_gone(pids(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_paused_group_stands_still(stand_in, tmp_path):
    with module.serve("m", [], stand_in(HEALTHY)) as server:
        server.pause()
        time.sleep(0.2)
        assert {psutil.Process(pid).status() for pid in pids(tmp_path)} == {psutil.STATUS_STOPPED}
        server.resume()
        assert server.get("/health") == ""


def test_a_server_that_dies_tells_why(stand_in):
    log = stand_in("print('before'); raise ValueError('no such drafter')")
    with pytest.raises(UserError, match=r"exit code 1; it said: ValueError: no such drafter"), module.serve("m", [], log):
        pass


def test_a_server_that_never_comes_up_is_stopped(stand_in, tmp_path):
    waited = []
    log = stand_in(HEALTHY.replace("200 if", "503 if"))
    with (
        pytest.raises(UserError, match="not up within 3 seconds"),
        module.serve("m", [], log, seconds=3, progress=waited.append),
    ):
        pass
    assert waited
    assert wait_gone(pids(tmp_path))


def test_no_answer_is_a_user_error(stand_in):
    with module.serve("m", [], stand_in(HEALTHY)) as server, pytest.raises(UserError, match="/metrics"):
        server.counters()


def test_environment_of_a_server(monkeypatch, tmp_path):
    monkeypatch.setenv("EDSD_DRAFTER", "smollm2-edsd")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "EDSD_DRAFTER" not in module._environment(str(tmp_path))
    assert module._environment(str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in module._environment("some/hub-id")
