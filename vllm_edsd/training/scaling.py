"""How acceptance grows with training and size: a log-linear law (after Scylla, arXiv 2505.07858) fitted to finished runs.

tau_K = a_K + b_K ln(tokens) + c_K ln(parameters), tau_K = 1 + the shares accepted at the first K positions, for every K at
once by least squares. Intervals are Student's, from draws of the coefficients that are common to all K.
"""

import dataclasses
from collections.abc import Sequence

import numpy

from vllm_edsd.evaluation.intervals import Estimate, estimate
from vllm_edsd.training.finished import Finished

DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Law:
    """`factors` are those of tokens and parameters that differ between the runs; `coefficients` [1 + factors, K].

    `draws` [DRAWS, 1 + factors, K]; logarithms are taken from their means `centre` [factors].
    """

    factors: tuple[str, ...]
    centre: numpy.ndarray
    coefficients: numpy.ndarray
    draws: numpy.ndarray

    def lengths(self, tokens: int, parameters: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Acceptance length for K = 1, 2, ...: [K] and its draws [DRAWS, K], within 1 .. K + 1."""
        values = {"tokens": tokens, "parameters": parameters}
        row = numpy.append(1.0, numpy.log([values[name] for name in self.factors]) - self.centre)
        most = 2 + numpy.arange(self.coefficients.shape[1])
        return (row @ self.coefficients).clip(1, most), (row @ self.draws).clip(1, most)

    def per_doubling(self, factor: str) -> Estimate:
        """What twice as much of `factor` adds to the acceptance length at the largest K."""
        place = 1 + self.factors.index(factor)
        return _estimate(self.coefficients[place, -1] * numpy.log(2), self.draws[:, place, -1] * numpy.log(2))


def fit(runs: Sequence[Finished], seed: int) -> Law | str:
    """The law of runs of one kind, or why they do not give one."""
    factors = tuple(name for name in ("tokens", "parameters") if len({getattr(run, name) for run in runs}) > 1)
    if not factors:
        return f"all runs ({len(runs)}) are of one size and as many training tokens: nothing to compare"
    logs = numpy.log([[getattr(run, name) for name in factors] for run in runs])
    centre = logs.mean(0)
    design = numpy.column_stack([numpy.ones(len(runs)), logs - centre])
    needed = design.shape[1]
    if numpy.linalg.matrix_rank(design) < needed:
        return f"{len(runs)} runs in which size and training tokens grow together: train a size for longer or shorter"
    free = len(runs) - needed
    if free < 1:
        return f"{len(runs)} runs are too few for a law with {needed} coefficients and an error: train {1 - free} more"
    depth = min(len(run.per_position) for run in runs)
    lengths = 1 + numpy.array([run.per_position[:depth] for run in runs]).cumsum(-1)
    found = numpy.linalg.lstsq(design, lengths, rcond=None)[0]
    rest = (lengths - design @ found) / numpy.sqrt(free)
    random = numpy.random.default_rng(seed)
    root = numpy.linalg.cholesky(numpy.linalg.inv(design.T @ design))
    # A matrix-variate Student distribution: rest.T @ rest is the residuals' covariance over K.
    noise = root @ random.standard_normal((DRAWS, needed, len(runs))) @ rest
    spread = numpy.sqrt(random.chisquare(free, DRAWS) / free)
    return Law(factors, centre, found, found + noise / spread[:, None, None])


def _estimate(value: float, draws: numpy.ndarray) -> Estimate:
    return estimate(float(value), draws, prompts=len(draws))
