"""The learning rate over a run."""

import math


def share(step: int, steps: int, warmup: float) -> float:
    """The share of the full learning rate at `step` of `steps`: a linear warm-up over their share `warmup`, then a cosine to
    zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
