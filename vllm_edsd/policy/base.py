"""What decides, at every step, whether to draft, how far, and how much of it the target verifies.

Lossless by construction: a policy sees past outcomes and, for each drafted position, figures of the draft *distribution*,
which the tokens before that position determine. Whether a token is verified must not depend on that token or a later one.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass
class Drafting:
    """A draft in the making for R requests; arrays are float64 [R, drafted], one column for each token drafted so far.

    `top` is the drafter's largest probability, `entropy` its entropy in nats. Both are of the distribution that the token of
    that column was taken from. A row whose figures are not finite must not be verified from there on (`usable`).
    `context` is the sum of the requests' lengths in tokens. `sampled` says that tokens were drawn, not the likeliest taken:
    then no decision on a position may use the figures of a later one, which depend on the token drawn.
    """

    requests: Sequence[str]
    top: np.ndarray
    entropy: np.ndarray
    context: int = 0
    sampled: bool = False

    @classmethod
    def begin(cls, requests: Sequence[str], context: int = 0, sampled: bool = False) -> "Drafting":
        nothing = np.empty((len(requests), 0))
        return cls(requests, nothing, nothing, context, sampled)

    @property
    def drafted(self) -> int:
        return self.top.shape[1]

    def add(self, top: np.ndarray, entropy: np.ndarray) -> None:
        """Appends one drafted position: [R] each."""
        self.top = np.column_stack([self.top, top])
        self.entropy = np.column_stack([self.entropy, entropy])

    def usable(self) -> np.ndarray:
        """bool [R, drafted]: the figures are finite here and at every earlier position."""
        return np.logical_and.accumulate(np.isfinite(self.top) & np.isfinite(self.entropy), axis=1)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one request's draft: `verified` tokens went to the target, which accepted the first `accepted`."""

    request: str
    verified: int
    accepted: int


@dataclasses.dataclass(frozen=True)
class Step:
    """What a whole step cost, from one forward pass of the target to the next.

    `requests` decoding requests of `context` tokens in all, `tokens` that the target ran (drafts included), `drafted` draft
    steps made after it, `emitted` tokens, and `seconds` of wall clock.
    """

    requests: int
    context: int
    tokens: int
    drafted: int
    emitted: int
    seconds: float


class DraftPolicy(ABC):
    """Base of every length policy; entry points in the group `vllm_edsd.policies` name a class for each.

    Called in this order at every step: `timed` (what the last step cost), `observe` (what became of the last draft),
    `beside` where something drafts without a model, `reads`, `start`, `proceed` after each drafted token, `cut`. Where a
    batch size is new `promise` is asked. `max_tokens` is K, beyond which nothing is drafted.
    """

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens

    @abstractmethod
    def start(self, requests: Sequence[str]) -> bool:
        """Whether to draft at all for these requests."""

    def promise(self, requests: int) -> float:
        """What drafting for so many requests should emit per second, in what plain decoding does; 1 where it cannot say."""
        return 1.0

    @abstractmethod
    def proceed(self, drafting: Drafting) -> bool:
        """Whether to draft one more token for the batch; called with 1 to max_tokens - 1 tokens drafted."""

    @abstractmethod
    def cut(self, drafting: Drafting) -> np.ndarray:
        """How many of the drafted tokens the target verifies: int [R], 0 to drafted."""

    def beside(self, requests: Sequence[str], chances: Sequence[Sequence[float]], context: int) -> np.ndarray | None:
        """How many tokens of drafts made without a model to verify, int [R], and the drafter rests; None: it goes on.

        `chances[r]` are those of each token of request r's draft, which may be empty; `context` as in `Drafting`.
        """
        return None

    def observe(self, verdicts: Sequence[Verdict]) -> None:  # noqa: B027 - not every policy learns
        """What the target accepted of the last draft."""

    def timed(self, step: Step) -> None:  # noqa: B027
        """What the last step cost."""

    def reads(self, later: float, now: float) -> None:  # noqa: B027
        """What drafting costs beside the steps that are timed, since the drafter must have read what came before.

        `later` seconds for each token emitted, as long as it drafts; `now` seconds once, should it begin in this step.
        """

    def forget(self, requests: Sequence[str]) -> None:  # noqa: B027
        """These requests are finished: their state goes."""

    def state(self) -> dict[str, float]:
        """Figures worth watching, by name.

        Some are exported as metrics: `tracked_requests`, the requests of which it keeps state; `judged`, `estimated` and
        `accepted`, since the start: tokens judged, the sum of the chances it gave them, those accepted; `calibration_error`.
        """
        return {}


class Wrapper(DraftPolicy):
    """Base of what stands around a policy: passes everything on."""

    def __init__(self, policy: DraftPolicy):
        super().__init__(policy.max_tokens)
        self.policy = policy

    def beside(self, requests: Sequence[str], chances: Sequence[Sequence[float]], context: int) -> np.ndarray | None:
        return self.policy.beside(requests, chances, context)

    def start(self, requests: Sequence[str]) -> bool:
        return self.policy.start(requests)

    def promise(self, requests: int) -> float:
        return self.policy.promise(requests)

    def proceed(self, drafting: Drafting) -> bool:
        return self.policy.proceed(drafting)

    def cut(self, drafting: Drafting) -> np.ndarray:
        return self.policy.cut(drafting)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self.policy.observe(verdicts)

    def timed(self, step: Step) -> None:
        self.policy.timed(step)

    def reads(self, later: float, now: float) -> None:
        self.policy.reads(later, now)

    def forget(self, requests: Sequence[str]) -> None:
        self.policy.forget(requests)

    def state(self) -> dict[str, float]:
        return self.policy.state()


def leading(keep: np.ndarray) -> np.ndarray:
    """How many of each row's entries are true before the first that is not: bool [R, n] to int [R]."""
    return np.logical_and.accumulate(keep, axis=1).sum(axis=1)
