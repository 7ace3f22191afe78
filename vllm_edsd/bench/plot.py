"""A bench's result as a picture: speed, acceptance length, acceptance by position."""

from pathlib import Path
from typing import Any

from vllm_edsd.bench.report import label
from vllm_edsd.files import atomic


def plot(result: dict[str, Any], path: Path) -> None:
    """Writes a PNG to `path`, whole or not at all. Raises UserError when it cannot be written."""
    from matplotlib.figure import Figure

    rows = result["arms"]
    arms = list(dict.fromkeys(map(label, rows)))
    levels = list(dict.fromkeys(row["concurrency"] for row in rows))
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    speed, length, position = figure.subplots(1, 3)
    width = 0.8 / len(arms)
    for index, arm in enumerate(arms):
        mine = {row["concurrency"]: row for row in rows if label(row) == arm}
        places = [place + (index - (len(arms) - 1) / 2) * width for place in range(len(levels))]
        speeds = [mine[level]["output_tokens_per_s"] for level in levels]
        bars = speed.bar(places, speeds, width, label=arm, color=f"C{index}")
        speedups = [mine[level]["speedup"] for level in levels]
        speed.bar_label(bars, ["" if value is None else f"{value:.2f}x" for value in speedups], fontsize=7)
        bars = length.bar(places, [mine[level]["acceptance_length"] for level in levels], width, color=f"C{index}")
        length.bar_label(bars, fmt="%.2f", fontsize=7)
        shares = mine[levels[0]]["per_position"]
        position.plot(range(1, len(shares) + 1), shares, marker="o", color=f"C{index}")
    for axes, title in (
        (speed, "output tokens/s (speed-up over none)"),
        (length, "acceptance length, with the bonus token"),
    ):
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(levels)), [f"concurrency {level}" for level in levels])
    position.set_title(f"share accepted by draft position, concurrency {levels[0]}", fontsize=9)
    position.set_ylim(0, 1)
    position.set_xticks(range(1, max((len(row["per_position"]) for row in rows), default=1) + 1))
    figure.legend(loc="outside lower center", ncols=len(arms), fontsize=8)
    environment = result["environment"]
    figure.suptitle(
        f"{Path(environment['target']).name}, {environment['dtype']}, temperature {environment['temperature']:g}, "
        f"{environment['prompt_count']} prompts, {environment['machine']['processor']}",
        fontsize=10,
    )
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
