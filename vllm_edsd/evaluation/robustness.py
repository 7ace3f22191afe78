"""What foreign system prompts cost a drafter: drop_k = (tau_ref - tau_k) / tau_ref for each class k of them.

tau_ref is under the training system prompt. The factor of two drafters is the first's drop over the second's. Everything is
resampled over user turns, the same ones for all classes and drafters, as all are measured on them.
"""

from typing import Any

import numpy

from vllm_edsd.evaluation.intervals import LEVELS, Estimate, estimate, lengths, resampled, rounded
from vllm_edsd.evaluation.systems import REFERENCE

FOREIGN = "foreign"  # the mean over the classes other than the reference


def result(counts: dict[str, dict[str, numpy.ndarray]], seed: int, environment: dict[str, Any]) -> dict[str, Any]:
    """From `counts[class][drafter]` [turns, 1 + depth] to `drafters`, `factors` and `environment`, as written to a file."""
    names = list(counts[REFERENCE])
    turns = len(counts[REFERENCE][names[0]])
    tau = {name: _taus({kind: found[name] for kind, found in counts.items()}, seed) for name in names}
    drops = {name: _drops(found) for name, found in tau.items()}
    drafters = {}
    for name in names:
        classes = {
            kind: {
                "acceptance_length": estimate(found[0], found[1:], turns),
                **({"drop": estimate(drop[0], drop[1:], turns)} if (drop := drops[name].get(kind)) is not None else {}),
            }
            for kind, found in tau[name].items()
        }
        foreign = drops[name][FOREIGN]
        drafters[name] = {"classes": classes, "drop": estimate(foreign[0], foreign[1:], turns)}
    first = names[0]
    factors = [
        {
            "first": first,
            "second": name,
            "classes": {kind: _compare(drops[first][kind], drops[name][kind], turns) for kind in drops[name]},
        }
        for name in names[1:]
    ]
    return {"drafters": drafters, "factors": factors, "environment": environment}


def _taus(counts: dict[str, numpy.ndarray], seed: int) -> dict[str, numpy.ndarray]:
    """By class: the acceptance length, then those of the resamples, [1 + RESAMPLES]."""
    return {
        kind: numpy.concatenate([[lengths(found.sum(0))], lengths(resampled(found, seed))]) for kind, found in counts.items()
    }


def _drops(taus: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
    reference = taus[REFERENCE]
    drops = {kind: (reference - found) / reference for kind, found in taus.items() if kind != REFERENCE}
    return {**drops, FOREIGN: numpy.mean(list(drops.values()), axis=0)}


def _compare(first: numpy.ndarray, second: numpy.ndarray, turns: int) -> dict[str, Any]:
    """The first's drop over the second's, and their difference, which has a meaning for drops of any sign.

    Where the second does not drop, the ratio is beyond every number if the first does, and is none if neither does: then the
    value or an end of the interval is None. `defined` is the share of resamples in which the second drops.
    """
    falls = second > 0
    beyond = numpy.where(first > 0, numpy.inf, numpy.nan)
    ratio = numpy.divide(first, second, out=beyond, where=falls)
    factor: Estimate = {"mean": rounded(float(ratio[0])), "low": None, "high": None}
    if turns > 1 and not numpy.isnan(ratio[1:]).any():
        # Order statistics, since between a number and infinity nothing can be interpolated.
        low, high = numpy.percentile(ratio[1:], LEVELS, method="nearest")
        factor |= {"low": rounded(float(low)), "high": rounded(float(high))}
    difference = first - second
    return {
        "factor": factor,
        "defined": round(float(falls[1:].mean()), 4),
        "difference": estimate(float(difference[0]), difference[1:], turns),
    }
