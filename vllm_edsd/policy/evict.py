"""EVICT (arXiv 2605.00342) for a batch of chains: verify what pays, and stop drafting when nothing further can.

E[k] = tokens emitted in expectation if the k globally likeliest draft tokens are verified, bonus tokens included; C[k] =
what the whole step costs; k* = argmax E[k] / C[k]. Survival only falls along a request, so the k best are whole prefixes.
"""

import collections
from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Step, Verdict, leading
from vllm_edsd.policy.cost import CostModel, Load
from vllm_edsd.policy.estimate import POSITIONS, AcceptanceEstimator, Survival

EXPLORE = 12  # at least so many steps between two that try another length: what is never done cannot be priced
SHARE = 0.01  # of the time may be lost to such steps
SMOOTHING = 0.05  # weight of the newest step in running means
FIRSTS = 64  # newest drafts by which the next ones are foreseen


class Evict(DraftPolicy):
    """Estimates survival from the draft distributions and cost from the server's own steps, both online."""

    def __init__(self, max_tokens: int, cost: CostModel | None = None):
        super().__init__(max_tokens)
        self.estimator = AcceptanceEstimator()
        self.cost = cost or CostModel()
        self.typical = np.full(POSITIONS, 0.5)  # running mean of the estimated chance by position
        self.firsts = collections.deque([0.5], maxlen=FIRSTS)  # estimated chances of drafts' first tokens
        self.context = 0.0  # tokens of a request, lately
        self.later = 0.0  # seconds for each token emitted that drafting costs beside its steps
        self.rate = 0.0  # running mean of tokens per second
        self.verified = 0.0  # running mean of the tokens verified for a request
        self.last: Survival | None = None
        self.least = 0.0  # survival worth verifying, with `judged` tokens drafted
        self.judged = 0
        self.waited = self.trials = 0
        self.pause = EXPLORE  # steps until another length is tried
        self.tried: int | None = None  # the length of a step that explores

    def start(self, requests: Sequence[str]) -> bool:
        self.last = None
        self.judged = 0
        self.waited += 1
        self.tried = self._explore(len(requests)) if self.waited >= self.pause else None
        return True

    def promise(self, requests: int) -> float:
        """As `DraftPolicy.promise`, with drafts of one token: where those lose, longer ones do."""
        context = round(self.context * requests)
        plain = self.cost.seconds(Load(requests, context, 0, 0)) / requests
        firsts = np.resize(self.firsts, (requests, 1))
        return plain / (1 / budget(firsts, Load(requests, context, 0, 1), self.cost)[1] + self.later)

    def _explore(self, requests: int) -> int:
        """Another length, up to two more than is usual; the next one comes the later, the dearer this one is."""
        usual = round(self.verified)
        length = 1 + self.trials % min(self.max_tokens, usual + 2)
        load = Load(requests, 0, usual * requests, usual)
        longer = Load(requests, 0, length * requests, length)
        lost = self.cost.seconds(longer) / self.cost.seconds(load) - 1
        self.trials, self.waited = self.trials + 1, 0
        self.pause = round(max(EXPLORE, lost / SHARE))
        return length

    def _survival(self, drafting: Drafting) -> np.ndarray:
        if self.last is None or self.last.drafting is not drafting:
            self.last = Survival(self.estimator, drafting)
        if self.last.values.shape[1] < drafting.drafted:
            self.last.update()
            if drafting.drafted == 1:
                self.firsts.extend(self.last.newest[:, 0].tolist())
            place = min(drafting.drafted, POSITIONS) - 1
            newest = self.last.newest[:, -1]
            self.typical[place] += SMOOTHING * (newest.sum() / len(newest) - self.typical[place])
        return self.last.values

    def proceed(self, drafting: Drafting) -> bool:
        survival = self._survival(drafting)
        if self.tried is not None:
            return drafting.drafted < self.tried
        expected = survival[:, -1:] * self.typical[min(drafting.drafted, POSITIONS - 1)]
        requests, context = len(drafting.requests), drafting.context
        self.least, rate = budget(survival, Load(requests, context, 0, drafting.drafted), self.cost)
        self.judged = drafting.drafted
        longer = np.concatenate([survival, expected], axis=1)
        return budget(longer, Load(requests, context, 0, drafting.drafted + 1), self.cost)[1] > rate

    def cut(self, drafting: Drafting) -> np.ndarray:
        survival = self._survival(drafting)
        load = Load(len(drafting.requests), drafting.context, 0, drafting.drafted)
        if self.tried is not None:
            counts = leading(survival > 0)
        elif drafting.sampled:
            # The price of a verified token, from past steps only: neither later positions nor their number count.
            rate = self.rate or load.requests / self.cost.seconds(Load(load.requests, load.context, 0, 0))
            counts = leading(survival >= rate * self.cost.weights[2])
        else:
            least = self.least if self.judged == drafting.drafted else budget(survival, load, self.cost)[0]
            counts = leading(survival >= least)
        self.verified += SMOOTHING * (float(counts.mean()) - self.verified)
        return counts

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        if self.last is not None:
            self.last.learn(verdicts)

    def timed(self, step: Step) -> None:
        self.cost.learn(step)
        self.context = step.context / step.requests
        if step.seconds > 0:
            self.rate += SMOOTHING * (step.emitted / step.seconds - self.rate) if self.rate else step.emitted / step.seconds

    def reads(self, later: float, now: float) -> None:
        self.later = later

    def forget(self, requests: Sequence[str]) -> None:
        self.estimator.forget(requests)

    def state(self) -> dict[str, float]:
        return {**self.estimator.state(), "verified_length": self.verified}


def budget(survival: np.ndarray, load: Load, cost: CostModel) -> tuple[float, float]:
    """The smallest of `survival` [R, n] worth verifying (above 1 where none is) and the tokens per second with it.

    `load` is the step before anything is verified; `survival` never rises along a row.
    """
    emitted, seconds, price = float(load.requests), cost.seconds(load), cost.prices[2]
    least, rate = 2.0, emitted / seconds
    # Few numbers: cheaper one by one, and each next one is worth less while it costs the same.
    for chance in sorted(survival.ravel().tolist(), reverse=True):
        emitted, seconds = emitted + chance, seconds + price
        if emitted <= rate * seconds:
            break
        least, rate = chance, emitted / seconds
    return least, rate
