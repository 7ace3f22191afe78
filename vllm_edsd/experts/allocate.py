"""Which layers give up experts: the greedy allocation of methods.md section 2."""

from collections.abc import Mapping, Sequence


def allocate(divergence: Mapping[int, Sequence[float]], budget: float) -> dict[int, int]:
    """Experts per token by layer, on average at most `budget` (0..1] times the model's.

    `divergence[layer][k - 1]` is D_l(k) for k = 1..K. Again and again the layer whose D rises least per expert saved gives
    some up; a step may span several experts, since D need not be convex.
    """
    counts = {layer: len(curve) for layer, curve in divergence.items()}
    target = _whole(budget * sum(counts.values()))
    while sum(counts.values()) > target:
        steps = [
            ((divergence[layer][k - 1] - divergence[layer][count - 1]) / (count - k), layer, k)
            for layer, count in counts.items()
            for k in range(1, count)
        ]
        if not steps:
            break
        _, layer, k = min(steps)
        # No further than the budget asks.
        counts[layer] = max(k, counts[layer] - (sum(counts.values()) - target))
    return counts


def uniform(layers: Sequence[int], top_k: int, budget: float) -> dict[int, int]:
    """The same number of experts everywhere, at most `budget` times the model's, at least one: the baseline."""
    return dict.fromkeys(layers, max(1, _whole(budget * top_k)))


def _whole(count: float) -> int:
    """Rounded down, but for what floating point lacks: 17/28 of 28 is 17."""
    return int(count + 1e-9)
