"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 15.0


class Progress:
    """What is being done, and how many of `total` answers are in; a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("starting", total=None)
        self.text = ""
        self.done = 0
        self.total = 0
        self.said = float("-inf")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False)

    def status(self, text: str) -> None:
        """What is being done now."""
        self.text = text
        self._show()

    def advance(self, answers: int = 1) -> None:
        """So many more answers are in."""
        self.done += answers
        self._show()

    def _show(self) -> None:
        self.bar.update(self.task, description=self.text, completed=self.done, total=self.total or None)
        if not self.console.is_terminal and time.monotonic() - self.said > LINE_SECONDS:
            self.said = time.monotonic()
            self.say(f"{self.text}: {self.done} of {self.total} answers")
