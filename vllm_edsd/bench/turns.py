"""Servers in turn: one may use the processor at a time, and each has a clock that stands still while it waits."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from vllm_edsd.engine.server import Server

TURN_SECONDS = 8.0  # many steps, but short against the minutes in which a machine's speed changes

Result = TypeVar("Result")


class Turn:
    """A server that waits, with all its processes, but for its turns."""

    def __init__(self, server: Server):
        self.server = server
        self.used = 0.0
        self.begun: float | None = None
        server.pause()

    def __enter__(self) -> None:
        self.begun = time.perf_counter()
        self.server.resume()

    def __exit__(self, *_: Any) -> None:
        self.server.pause()
        self.used, self.begun = self.now(), None

    def now(self) -> float:
        """Seconds of all turns so far, the running one's included."""
        return self.used + (time.perf_counter() - self.begun if self.begun is not None else 0.0)


async def take_turns(work: Mapping[Turn, Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of `work`, each of which asks one server; as long as several do, each is awake for TURN_SECONDS at a time.

    What one of them raises ends the others and is raised.
    """
    tasks = {turn: asyncio.ensure_future(one) for turn, one in work.items()}
    try:
        while waiting := {turn: task for turn, task in tasks.items() if not task.done()}:
            seconds = TURN_SECONDS if len(waiting) > 1 else None
            for turn, task in waiting.items():
                with turn:
                    await asyncio.wait([task], timeout=seconds)
                if task.done():
                    task.result()
        return [task.result() for task in tasks.values()]
    finally:
        for task in tasks.values():
            task.cancel()
