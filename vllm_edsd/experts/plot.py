"""A profile as a picture: divergence by layer and experts per token, and how the routing weight is spread."""

from pathlib import Path

import numpy as np

from vllm_edsd.experts.profile import ExpertsProfile
from vllm_edsd.files import atomic


def draw(profile: ExpertsProfile, out: Path) -> None:
    """Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    names = [str(layer.layer) for layer in profile.layers]
    curves = np.array([layer.divergence[:-1] for layer in profile.layers])
    shares = np.array([layer.weight_share for layer in profile.layers])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.22 * len(names) + 2.2), layout="constrained")
    lowest = max(curves[curves > 0].min(initial=1.0), 1e-6)
    image = left.imshow(
        curves.clip(lowest), aspect="auto", norm=LogNorm(lowest, max(curves.max(), 2 * lowest)), cmap="viridis"
    )
    figure.colorbar(image, ax=left, label="KL from the whole model (nats per answer token)")
    left.set_title(f"one layer at fewer experts ({'prompt only' if profile.mode == 'prefill' else 'all tokens'})")
    spread = right.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="magma")
    figure.colorbar(spread, ax=right, label="share of the routing weight")
    right.set_title("weight held by the strongest experts")
    for axes, columns in ((left, curves.shape[1]), (right, shares.shape[1])):
        axes.set_xticks(range(columns), [str(k) for k in range(1, columns + 1)])
        axes.set_xlabel("experts per token")
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_ylabel("layer")
    with atomic(out) as partial:
        figure.savefig(partial, dpi=110, format="png")
    pyplot.close(figure)
