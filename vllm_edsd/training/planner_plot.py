"""A plan as a picture: the law against the runs, and the speed-up of every option."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from vllm_edsd.files import atomic
from vllm_edsd.training.finished import Finished
from vllm_edsd.training.scaling import Law, fit


def draw(runs: Sequence[Finished], result: dict[str, Any], seed: int, path: Path) -> None:
    """Writes a PNG to `path`, whole or not at all. Raises UserError when it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, kind in enumerate(result["laws"]):
        law = fit([run for run in runs if run.kind == kind], seed + number)
        for place, size in enumerate(sorted({run.parameters for run in runs if run.kind == kind})):
            colour = f"C{3 * number + place}"
            mine = [run for run in runs if (run.kind, run.parameters) == (kind, size)]
            lengths = [1 + sum(run.per_position) for run in mine]
            left.scatter([run.tokens for run in mine], lengths, color=colour, label=f"{kind} {size / 1e6:.2f}M")
            if isinstance(law, Law):
                tokens = numpy.geomspace(min(run.tokens for run in runs), result["tokens"], 20)
                found = [law.lengths(int(count), size) for count in tokens]
                low, high = numpy.percentile([draws[:, -1] for _, draws in found], [2.5, 97.5], axis=1)
                left.plot(tokens, [lengths[-1] for lengths, _ in found], color=colour)
                left.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
            options = [option for option in result["options"] if (option["kind"], option["parameters"]) == (kind, size)]
            options.sort(key=lambda option: option["num_tokens"])
            speed = [option["speedup"] for option in options]
            means = [found["mean"] for found in speed]
            errors = [[found["mean"] - found["low"] for found in speed], [found["high"] - found["mean"] for found in speed]]
            depths = [option["num_tokens"] for option in options]
            right.errorbar(depths, means, errors, color=colour, marker="o", capsize=3)
    right.axhline(1, color="grey", linestyle="--")
    left.set_xscale("log")
    left.set_xlabel("answer tokens trained on")
    left.set_ylabel("acceptance length")
    left.legend(fontsize=8)
    right.set_xticks(sorted({option["num_tokens"] for option in result["options"]}))
    right.set_xlabel("K")
    right.set_ylabel(f"speed-up at {result['tokens']} training tokens")
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
