"""The chance that a drafted token is accepted, given that all before it were: a logistic fit that follows the workload.

logit P = w_t logit(top) + w_h H + w_r r + b_j, with `top` and entropy `H` of the draft distribution, `r` the logit of the
request's own recent acceptance, and `b_j` one term for each position [ours; features after SpecDec++ (arXiv 2405.19715)].
Fitted by one Newton step on each step's outcomes, older ones forgotten exponentially.
"""

from collections.abc import Sequence

import numpy as np

POSITIONS = 8  # later ones share the last one's term
FORGET = 0.995  # of the evidence that stays from one step to the next
PRIOR = 20.0  # outcomes that the starting weights count for
RECENT = 0.1  # weight of a request's newest outcome
BINS = 10  # of predicted chance, for calibration
EDGE = 1e-3  # chances are kept this far from 0 and 1


class AcceptanceEstimator:
    """Starts as `P = top` and learns; all inputs are functions of the tokens before the one that is judged."""

    def __init__(self) -> None:
        width = 3 + POSITIONS
        self.weights = np.zeros(width)
        self.weights[0] = 1.0
        self.evidence = np.eye(width) * PRIOR * 0.25
        self.recent: dict[str, float] = {}
        self.bins = np.zeros((BINS, 3))  # count, predicted, accepted

    def features(self, requests: Sequence[str], top: np.ndarray, entropy: np.ndarray, first: int = 0) -> np.ndarray:
        """[R, n] figures of positions first.. to [R, n, width]."""
        rows, count = top.shape
        out = np.zeros((rows, count, 3 + POSITIONS))
        out[..., 0] = _logit(np.nan_to_num(top))
        out[..., 1] = np.nan_to_num(entropy, posinf=0.0, neginf=0.0)
        out[..., 2] = np.array([_logit(self.recent.get(request, 0.5)) for request in requests])[:, None]
        places = np.minimum(np.arange(first, first + count), POSITIONS - 1)
        out[:, np.arange(count), 3 + places] = 1.0
        return out

    def chances(self, features: np.ndarray) -> np.ndarray:
        """[..., width] to the chance of acceptance [...]."""
        return 1 / (1 + np.exp(-np.clip(features @ self.weights, -30, 30)))

    def learn(self, requests: Sequence[str], features: np.ndarray, verified: np.ndarray, accepted: np.ndarray) -> None:
        """Outcomes of one draft: features [R, n, width]; int [R]: tokens verified and accepted.

        Judged are the accepted tokens and the first that was not; those behind it say nothing.
        """
        count = features.shape[1]
        judged = np.minimum(verified, accepted + 1)
        places = np.arange(count)[None, :]
        seen, hit = places < judged[:, None], places < accepted[:, None]
        rows, outcome = features[seen], hit[seen].astype(float)
        if not len(rows):
            return
        guess = self.chances(rows)
        self._calibrate(guess, outcome)
        self.evidence = self.evidence * FORGET + (rows.T * np.maximum(guess * (1 - guess), EDGE)) @ rows
        # A ridge keeps directions in which nothing is ever seen from drifting.
        ridge = np.eye(len(self.weights)) * 0.05
        self.weights = self.weights + np.linalg.solve(self.evidence + ridge, rows.T @ (outcome - guess))
        for request, done, total in zip(requests, accepted, verified, strict=True):
            if total:
                before = self.recent.get(request, 0.5)
                self.recent[request] = before + RECENT * (float(done > 0) - before)

    def _calibrate(self, guess: np.ndarray, outcome: np.ndarray) -> None:
        self.bins *= FORGET
        place = np.minimum((guess * BINS).astype(int), BINS - 1)
        np.add.at(self.bins, place, np.column_stack([np.ones_like(guess), guess, outcome]))

    def calibration_error(self) -> float:
        """Expected calibration error over recent outcomes: mean |predicted - accepted| by bin, weighted by count."""
        total = self.bins[:, 0].sum()
        return float(np.abs(self.bins[:, 1] - self.bins[:, 2]).sum() / total) if total else 0.0

    def forget(self, requests: Sequence[str]) -> None:
        """These requests are finished."""
        for request in requests:
            self.recent.pop(request, None)


def _logit(chance: np.ndarray | float) -> np.ndarray | float:
    inside = np.clip(chance, EDGE, 1 - EDGE)
    return np.log(inside / (1 - inside))
