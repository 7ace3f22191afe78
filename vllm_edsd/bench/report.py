"""A bench's result as a file and as a table."""

import json
import os
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic

COLUMNS = (
    *("arm", "conc.", "tokens\n/s", "speed\n-up", "quarter\nmedian", "accept\nlength", "same\nas none"),
    *("TTFT\np50", "ITL\np50", "ITL\np99", "failed"),
)


def check_place(path: Path) -> None:
    """Raises UserError if a file could not be written to `path`: better told before a long run than after it."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; give a file's name")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {path}: {nearest} is no writable directory; choose another place")


def write(result: dict[str, Any], path: Path) -> None:
    """Writes the result as JSON, whole or not at all. Raises UserError when it cannot be written."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")


def table(result: dict[str, Any]) -> Table:
    """One row for each arm and concurrency, latencies in ms; a dash where a figure has no meaning."""
    shown = Table(box=SIMPLE_HEAD, padding=0, title=_title(result["environment"]))
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "arm" else "right", overflow="fold")
    for row in result["arms"]:
        shown.add_row(
            label(row),
            str(row["concurrency"]),
            figure(row["output_tokens_per_s"], 1),
            figure(row["speedup"], 2),
            figure(row["speedup_quarter_median"], 2),
            figure(row["acceptance_length"], 2),
            "-" if row["identical_share"] is None else f"{row['identical_share']:.1%}",
            figure(row["ttft_ms"]["p50"], 0),
            figure(row["itl_ms"]["p50"], 1),
            figure(row["itl_ms"]["p99"], 1),
            str(row["failed_requests"]),
        )
    return shown


def positions(result: dict[str, Any]) -> list[str]:
    """One line for each arm and concurrency that drafted: the share accepted at each draft position."""
    return [
        f"{label(row)}, concurrency {row['concurrency']}: accepted by position "
        + " ".join(figure(share, 2) for share in row["per_position"])
        for row in result["arms"]
        if row["per_position"]
    ]


def label(row: dict[str, Any]) -> str:
    """The arm's name, with the policy where there is one."""
    return f"{row['arm']} {row['policy']}" if row.get("policy") else row["arm"]


def _title(environment: dict[str, Any]) -> str:
    return (
        f"{Path(environment['target']).name}, {environment['dtype']}, temperature {environment['temperature']:g}, "
        f"{environment['prompt_count']} prompts"
    )


def figure(value: float | None, digits: int) -> str:
    """A number with so many digits, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
