"""Verdicts of a soak; knows nothing of servers."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FLAT = 0.03
WARM_UP = 75.0  # seconds, at least: what the largest batches took is kept by the allocator


@dataclass(frozen=True)
class Check:
    """One thing that must hold, whether it does, and what was seen."""

    name: str
    holds: bool
    seen: str


def flat(name: str, times: Sequence[float], values: Sequence[float]) -> Check:
    """Whether the last tenth's median is within FLAT of that at the end of the warm-up: a quarter of it, or WARM_UP."""
    end = times[-1]
    warm = max(end / 4, WARM_UP)
    early = [value for time, value in zip(times, values, strict=True) if 0.8 * warm <= time <= 1.2 * warm]
    late = [value for time, value in zip(times, values, strict=True) if time >= 0.9 * end]
    if not early or not late:
        return Check(name, False, f"{len(times)} samples are too few")
    before, after = statistics.median(early), statistics.median(late)
    growth = after / before - 1
    return Check(
        name, abs(growth) <= FLAT, f"{before:.0f} MiB after {warm:.0f} seconds, {after:.0f} MiB at the end ({growth:+.1%})"
    )


def json_lines(name: str, lines: Sequence[str]) -> Check:
    """Whether each line is one JSON object with time, level, logger and message."""
    bad = [line for line in lines if not _record(line)]
    return Check(name, bool(lines) and not bad, f"{len(lines)} lines" + "".join(f"; not so: {line!r}" for line in bad[:3]))


def quiet(name: str, lines: Sequence[str], others: Sequence[str], provoked: str) -> Check:
    """Whether no record of the log `lines` is an error or has a traceback, nor any of the `others`, which are plain text.

    Errors that contain `provoked` are as they should be.
    """
    records = [record for line in lines if (record := _record(line))]
    loud = [str(record["message"]) for record in records if record["level"] in ("ERROR", "CRITICAL") or "exc_info" in record]
    loud += [line for line in others if "Traceback" in line or "Error:" in line]
    loud = [line for line in loud if provoked not in line]
    return Check(name, not loud, "none" if not loud else f"{len(loud)}: " + " | ".join(line[:200] for line in loud[:3]))


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and {"time", "level", "logger", "message"} <= record.keys() else None
