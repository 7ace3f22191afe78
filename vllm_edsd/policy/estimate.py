"""The chance that a drafted token is accepted, given that all before it were: a logistic fit that follows the workload.

logit P = w_t logit(top) + w_h H + w_r r + b_j, with `top` and entropy `H` of the draft distribution, `r` the logit of the
request's own recent acceptance, and `b_j` one term for each position [ours; features after SpecDec++ (arXiv 2405.19715)].
Fitted by one Newton step on the outcomes of each few steps, older ones forgotten exponentially.
"""

import math
from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, Verdict

POSITIONS = 8  # later ones share the last one's term
FORGET = 0.995  # of the evidence that stays from one step to the next
FIT = 8  # steps between two fits, which would cost more than all the rest after each; the first FIT are fitted at once
PRIOR = 20.0  # outcomes that the starting weights count for
RECENT = 0.1  # weight of a request's newest outcome
BINS = 10  # of predicted chance, for calibration
RIDGE = 0.05 * np.eye(3 + POSITIONS)  # keeps directions in which nothing is ever seen from drifting
EDGE = 1e-3  # chances are kept this far from 0 and 1
LARGEST = 500.0  # of a logit: exp of more would be infinite


class AcceptanceEstimator:
    """Starts as `P = top` and learns; all inputs are functions of the tokens before the one that is judged."""

    def __init__(self) -> None:
        width = 3 + POSITIONS
        self.weights = np.zeros(width)
        self.weights[0] = 1.0
        self.evidence = np.eye(width) * PRIOR * 0.25
        self.recent: dict[str, float] = {}
        self.bins = np.zeros((BINS, 3))  # count, predicted, accepted; older ones forgotten
        self.totals = np.zeros(3)  # the same since the start
        self.unfitted: list[tuple[np.ndarray, np.ndarray]] = []  # features and outcomes of a step's judged tokens
        self.fits = 0

    def features(self, requests: Sequence[str], top: np.ndarray, entropy: np.ndarray, first: int = 0) -> np.ndarray:
        """[R, n] figures of positions first.. to [R, n, width]."""
        rows, count = top.shape
        out = np.zeros((rows, count, 3 + POSITIONS))
        sound = np.isfinite(top + entropy)
        if not sound.all():
            top, entropy = np.where(sound, top, 0.5), np.where(sound, entropy, 0.0)
        inside = np.minimum(np.maximum(top, EDGE), 1 - EDGE)
        out[..., 0] = np.log(inside / (1 - inside))
        out[..., 1] = entropy
        for row, request in enumerate(requests):
            out[row, :, 2] = _logit(self.recent.get(request, 0.5))
        for place in range(count):
            out[:, place, 3 + min(first + place, POSITIONS - 1)] = 1.0
        return out

    def chances(self, features: np.ndarray) -> np.ndarray:
        """[..., width] to the chance of acceptance [...]."""
        return 1 / (1 + np.exp(np.minimum(features @ -self.weights, LARGEST)))

    def learn(self, requests: Sequence[str], features: np.ndarray, verified: np.ndarray, accepted: np.ndarray) -> None:
        """Outcomes of one draft: features [R, n, width]; int [R]: tokens verified and accepted.

        Judged are the accepted tokens and the first that was not; those behind it say nothing.
        """
        places = np.arange(features.shape[1])
        seen = places < np.minimum(verified, accepted + 1)[:, None]
        rows = features[seen]
        if not len(rows):
            return
        self.unfitted.append((rows, (places < accepted[:, None])[seen]))
        for request, done, total in zip(requests, accepted.tolist(), verified.tolist(), strict=True):
            if total:
                before = self.recent.get(request, 0.5)
                self.recent[request] = before + RECENT * ((done > 0) - before)
        if self.fits < FIT or len(self.unfitted) == FIT:
            self._fit()

    def _fit(self) -> None:
        rows, outcome = (np.concatenate(parts) for parts in zip(*self.unfitted, strict=True))
        guess = self.chances(rows)
        self._calibrate(guess, outcome)
        kept = FORGET ** len(self.unfitted)
        self.evidence = self.evidence * kept + (rows.T * np.maximum(guess * (1 - guess), EDGE)) @ rows
        self.weights = self.weights + np.linalg.solve(self.evidence + RIDGE, rows.T @ (outcome - guess))
        self.fits += 1
        self.unfitted.clear()

    def _calibrate(self, guess: np.ndarray, outcome: np.ndarray) -> None:
        self.bins *= FORGET ** len(self.unfitted)
        judged = np.ones((len(guess), 3))
        judged[:, 1], judged[:, 2] = guess, outcome
        np.add.at(self.bins, np.minimum((guess * BINS).astype(int), BINS - 1), judged)
        self.totals += judged.sum(axis=0)

    def calibration_error(self) -> float:
        """Expected calibration error over recent outcomes: mean |predicted - accepted| by bin, weighted by count."""
        total = self.bins[:, 0].sum()
        return float(np.abs(self.bins[:, 1] - self.bins[:, 2]).sum() / total) if total else 0.0

    def forget(self, requests: Sequence[str]) -> None:
        """These requests are finished."""
        for request in requests:
            self.recent.pop(request, None)

    def state(self) -> dict[str, float]:
        """As `DraftPolicy.state`."""
        judged, estimated, accepted = self.totals.tolist()
        return {
            "tracked_requests": float(len(self.recent)),
            "judged": judged,
            "estimated": estimated,
            "accepted": accepted,
            "calibration_error": self.calibration_error(),
        }


class Survival:
    """The chance that each token of a draft and all before it are accepted, extended as the draft grows."""

    def __init__(self, estimator: AcceptanceEstimator, drafting: Drafting):
        self.estimator = estimator
        self.drafting = drafting
        self.features: list[np.ndarray] = []
        self.newest = np.empty((len(drafting.requests), 0))  # chances of what the last update added
        self.values = np.empty((len(drafting.requests), 0))

    def update(self) -> np.ndarray:
        """float64 [R, drafted]; 0 from the first position on whose figures are not finite."""
        done, drafting = self.values.shape[1], self.drafting
        if done < drafting.drafted:
            top, entropy = drafting.top[:, done:], drafting.entropy[:, done:]
            features = self.estimator.features(drafting.requests, top, entropy, done)
            self.features.append(features)
            self.newest = self.estimator.chances(features) * np.isfinite(top + entropy)
            before = self.values[:, -1:] if done else 1.0
            self.values = np.concatenate([self.values, before * self.newest.cumprod(axis=1)], axis=1)
        return self.values

    def learn(self, verdicts: Sequence[Verdict]) -> None:
        """Teaches the estimator what became of this draft; requests may have left meanwhile."""
        row = {request: place for place, request in enumerate(self.drafting.requests)}
        known = [verdict for verdict in verdicts if verdict.request in row]
        if known and self.features:
            self.estimator.learn(
                [verdict.request for verdict in known],
                np.concatenate(self.features, axis=1)[[row[verdict.request] for verdict in known]],
                np.array([verdict.verified for verdict in known]),
                np.array([verdict.accepted for verdict in known]),
            )


def _logit(chance: float) -> float:
    inside = min(max(chance, EDGE), 1 - EDGE)
    return math.log(inside / (1 - inside))
