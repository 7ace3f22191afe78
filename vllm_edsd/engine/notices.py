"""Log lines about single requests, each naming its request: once for each, and not too many at a time."""

import time
from collections.abc import Callable, Iterable

from vllm.logger import init_logger

MOST, SECONDS = 5, 60.0  # lines in so many seconds
# vLLM's default logging shows what is below `vllm`.
logger = init_logger("vllm.edsd")


class Notices:
    """Warnings of one kind; `message` has a place for the request's id."""

    def __init__(self, message: str, now: Callable[[], float] = time.monotonic):
        self.message = message
        self.now = now
        self.told: set[str] = set()
        self.lines = self.left_out = 0
        self.until = 0.0

    def tell(self, requests: Iterable[str]) -> None:
        """Warns of those of `requests` that it has not warned of; beyond the limit it counts them for a later line."""
        for request in requests:
            if request in self.told:
                continue
            self.told.add(request)
            if self.now() >= self.until:
                self.until, self.lines = self.now() + SECONDS, 0
            if self.lines < MOST:
                more = f" ({self.left_out} more requests since the last such line)" if self.left_out else ""
                logger.warning(self.message + "%s", request, more)
                self.lines, self.left_out = self.lines + 1, 0
            else:
                self.left_out += 1

    def forget(self, requests: Iterable[str]) -> None:
        """These requests are finished."""
        self.told.difference_update(requests)
