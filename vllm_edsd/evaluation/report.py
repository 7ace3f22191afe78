"""Acceptance as JSON and as a table: lengths with their intervals, over all prompts and by category."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from rich.box import SIMPLE_HEAD
from rich.table import Table

from vllm_edsd.evaluation.answers import Answer
from vllm_edsd.evaluation.intervals import Estimate, estimate, lengths, resampled, shares


def result(counts: numpy.ndarray, answers: Sequence[Answer], seed: int, environment: dict[str, Any]) -> dict[str, Any]:
    """One drafter's `acceptance_length`, `per_position`, `categories`, `counts` and `environment`, as written to a file.

    `counts` [prompts, 1 + depth] hold drafts and accepted tokens by position. They are summed before they are divided, as a
    server's counters are; the prompts are what is drawn again for the intervals.
    """
    named = numpy.array([answer.question.category for answer in answers])
    categories = {name: _acceptance(counts[named == name], seed) for name in dict.fromkeys(named.tolist())}
    return {
        **_acceptance(counts, seed),
        "categories": {name: {"prompts": int((named == name).sum()), **found} for name, found in categories.items()},
        "counts": {
            "prompts": len(answers),
            "answer_tokens": sum(answer.length for answer in answers),
            "drafts": round(float(counts[:, 0].sum()), 3),
            "accepted_tokens": round(float(counts[:, 1:].sum()), 3),
        },
        "environment": environment,
    }


def _acceptance(counts: numpy.ndarray, seed: int) -> dict[str, Any]:
    sums, samples, prompts = counts.sum(0), resampled(counts, seed), len(counts)
    by_position = zip(shares(sums), shares(samples).T, strict=True)
    return {
        "acceptance_length": estimate(float(lengths(sums)), lengths(samples), prompts),
        "per_position": [estimate(float(share), drawn, prompts) for share, drawn in by_position],
    }


def table(found: dict[str, Any], drafter: str) -> Table:
    """All prompts first, then the categories."""
    environment = found["environment"]
    shown = Table(
        box=SIMPLE_HEAD,
        title=f"{drafter} on {Path(environment['target']).name}, {environment['dtype']}, K={environment['num_tokens']}, "
        f"temperature {environment['temperature']:g}, {found['counts']['prompts']} prompts",
    )
    for column in ("category", "prompts", "acceptance length", "95%", "accepted by position"):
        shown.add_column(column, justify="left" if column == "category" else "right")
    rows = {"(all)": {"prompts": found["counts"]["prompts"], **found}, **found["categories"]}
    for name, row in rows.items():
        length = row["acceptance_length"]
        positions = " ".join(f"{share['mean']:.2f}" for share in row["per_position"])
        shown.add_row(name, str(row["prompts"]), f"{length['mean']:.3f}", span(length), positions)
    return shown


def span(found: Estimate) -> str:
    """An interval, or a dash where there is none."""
    return "-" if found["low"] is None or found["high"] is None else f"{found['low']:.3f} .. {found['high']:.3f}"
