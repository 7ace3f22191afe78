"""Whether this process was stopped for a while: what it timed meanwhile is no measurement."""

import signal
import threading
from typing import Any


class Stops:
    """Counts how often this process was stopped and went on (SIGSTOP, Ctrl-Z, the turns of `vllm-edsd bench`).

    The count stays 0 where this is made outside the main thread, or SIGCONT has a handler already.
    """

    def __init__(self) -> None:
        self.count = 0
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCONT) == signal.SIG_DFL:
            signal.signal(signal.SIGCONT, self._continued)

    def _continued(self, *_: Any) -> None:
        self.count += 1
