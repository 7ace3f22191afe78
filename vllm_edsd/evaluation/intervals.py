"""Means of ratios with 95% bootstrap intervals over prompts."""

import numpy

RESAMPLES = 2000
LEVELS = (2.5, 97.5)

Estimate = dict[str, float | None]


def resampled(values: numpy.ndarray, seed: int) -> numpy.ndarray:
    """Sums of `values` [prompts, ...] over prompts drawn with replacement, [RESAMPLES, ...]; the same draws for one seed."""
    count = len(values)
    times = numpy.random.default_rng(seed).multinomial(count, numpy.full(count, 1 / count), RESAMPLES)
    return numpy.tensordot(times.astype(float), values, 1)


def estimate(value: float, samples: numpy.ndarray, prompts: int) -> Estimate:
    """`mean` with the percentile interval of `samples`; no interval (None) from fewer than two prompts."""
    low, high = (float(each) for each in numpy.percentile(samples, LEVELS)) if prompts > 1 else (None, None)
    return {"mean": rounded(value), "low": rounded(low), "high": rounded(high)}


def rounded(value: float | None) -> float | None:
    """Four digits; None for what is no number."""
    return round(value, 4) if value is not None and numpy.isfinite(value) else None


def shares(sums: numpy.ndarray) -> numpy.ndarray:
    """Drafts and accepted tokens [..., 1 + depth] to the share accepted by position [..., depth]; 0 without drafts."""
    drafts = sums[..., :1]
    return numpy.divide(sums[..., 1:], drafts, out=numpy.zeros_like(sums[..., 1:]), where=drafts > 0)


def lengths(sums: numpy.ndarray) -> numpy.ndarray:
    """Drafts and accepted tokens [..., 1 + depth] to the acceptance length [...], bonus token included."""
    return 1 + shares(sums).sum(-1)
