"""The logit-lens curve as a picture."""

from pathlib import Path

from vllm_edsd.files import atomic
from vllm_edsd.training.lens import Curve


def draw(curve: Curve, target: str, path: Path) -> None:
    """Writes a PNG to `path`, whole or not at all. Raises UserError when it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    layers = range(len(curve.entropy))
    axes.fill_between(layers, curve.low, curve.high, alpha=0.25, linewidth=0)
    axes.plot(layers, curve.entropy, marker="o", markersize=3)
    for layer in curve.suggested or ():
        axes.axvline(layer, color="C1", linestyle="--")
        axes.annotate(str(layer), (layer, axes.get_ylim()[1]), color="C1", ha="right", va="top")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("input of layer (the last: output)")
    axes.set_ylabel("logit-lens entropy, nats")
    axes.set_title(f"{target}, {curve.positions} positions of {curve.samples} answers", fontsize=10)
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
