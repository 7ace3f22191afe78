"""Results of turns.py as a Markdown table and a picture: python benchmarks/turns_table.py PICTURE.png RESULT.json [...]"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from vllm_edsd.files import atomic

COLUMNS = (
    "concurrency",
    "max_tokens",
    "arm",
    "tokens",
    "steps",
    "seconds",
    "speedup",
    "speedup_parts",
    "identical_share",
)


def cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{one:.2f}" for one in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _level(row: dict[str, Any]) -> tuple[int, int]:
    """The most tokens of an answer, and requests at a time."""
    return row["max_tokens"], row["concurrency"]


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """The arms' names, the second `none` told from the first."""
    plain = itertools.chain(["none"], itertools.repeat("none again"))
    return [next(plain) if row["arm"] == "none" else row["arm"] for row in rows]


def main(picture: str, *results: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    found = [json.loads(Path(name).read_text()) for name in results]
    rows = sorted((row for result in found for row in result["rows"]), key=_level)
    print("\n".join(f"    {result['command']}" for result in found) + "\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(cell(row[name]) for name in COLUMNS) + " |")

    levels = [list(alike) for _, alike in itertools.groupby(rows, _level)]
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for level in levels for name in _names(level)))
    for place, level in enumerate(levels):
        width = 0.8 / len(level)
        for index, (name, row) in enumerate(zip(_names(level), level, strict=True)):
            left = place + (index - (len(level) - 1) / 2) * width
            bars = axes.bar(left, row["speedup"], width, color=f"C{names.index(name)}")
            axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(0.98, color="grey", linewidth=0.8, linestyle=":")
    ticks = [f"{requests} at a time,\n{tokens} tokens" for tokens, requests in (_level(level[0]) for level in levels)]
    axes.set_xticks(range(len(levels)), ticks)
    axes.set_title("speed-up over plain decoding, step by step in one process (dotted: 0.98)", fontsize=9)
    patches = [Patch(color=f"C{index}", label=name) for index, name in enumerate(names)]
    figure.legend(handles=patches, fontsize=8, loc="outside right upper")
    with atomic(Path(picture)) as partial:
        figure.savefig(partial, format="png", dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
