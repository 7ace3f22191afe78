"""Results of turns.py as a Markdown table and a picture: python benchmarks/turns_table.py PICTURE.png RESULT.json [...]"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm_edsd.files import atomic

COLUMNS = (
    "concurrency",
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


def main(picture: str, *results: str) -> None:
    from matplotlib.figure import Figure

    found = [json.loads(Path(name).read_text()) for name in results]
    rows = sorted((row for result in found for row in result["rows"]), key=lambda row: row["concurrency"])
    print("\n".join(f"    {result['command']}" for result in found) + "\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(cell(row[name]) for name in COLUMNS) + " |")

    levels = list(dict.fromkeys(row["concurrency"] for row in rows))
    by_level = [[row for row in rows if row["concurrency"] == level] for level in levels]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(by_level[0])
    for index, alike in enumerate(zip(*by_level, strict=True)):
        places = [place + (index - (len(by_level[0]) - 1) / 2) * width for place in range(len(levels))]
        name = alike[0]["arm"] if index == 0 or alike[0]["arm"] != "none" else "none again"
        bars = axes.bar(places, [row["speedup"] for row in alike], width, label=name, color=f"C{index}")
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(0.98, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(levels)), [f"{level} at a time" for level in levels])
    axes.set_title("speed-up over plain decoding, step by step in one process (dotted: 0.98)", fontsize=9)
    axes.legend(fontsize=8, loc="upper right")
    with atomic(Path(picture)) as partial:
        figure.savefig(partial, format="png", dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
