"""The reference engine: draft, verify in one target forward, accept; clear rather than fast, and the ground truth."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.reference.growth import Plan, grow
from vllm_edsd.reference.model import Model, Session
from vllm_edsd.scoring.distributions import probabilities
from vllm_edsd.scoring.scorer import Scorer


@dataclass(frozen=True)
class Sampling:
    """How the target's tokens are sampled: see `probabilities`. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass
class Generation:
    """What was generated for B prompts, and what it took; all int64."""

    tokens: torch.Tensor  # [B, N], -1 past the end
    steps: torch.Tensor  # [B]: target forwards, the prompt's not counted
    drafted: torch.Tensor  # [B]: draft tokens
    verified: torch.Tensor  # [B]: draft tokens that the target saw
    accepted: torch.Tensor  # [B]: draft tokens that became text, those past the end included

    @property
    def lists(self) -> list[list[int]]:
        """The tokens without padding."""
        return [[token for token in row if token >= 0] for row in self.tokens.tolist()]


class Engine:
    """Speculative decoding of independent texts side by side: each row is a run of its own, with its own tree.

    `target` and `drafter` share a vocabulary (UserError otherwise); `drafter` may be the target itself.
    """

    def __init__(self, target: Model, drafter: Model, scorer: Scorer, plan: Plan, sampling: Sampling) -> None:
        if target.vocabulary != drafter.vocabulary:
            raise UserError(
                f"the target has {target.vocabulary} tokens and the drafter {drafter.vocabulary}: give one of its vocabulary"
            )
        self.target, self.drafter, self.scorer, self.plan, self.sampling = target, drafter, scorer, plan, sampling

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, generator: torch.Generator, stop: Collection[int] = ()
    ) -> Generation:
        """Up to `tokens` new tokens for each prompt, the first of `stop` included. UserError for an empty prompt.

        `generator` lives on the models' device.
        """
        if not prompts or not all(map(len, prompts)):
            raise UserError(
                "there is no prompt, or an empty one: give each at least one token, such as the beginning of text"
            )
        device, count = generator.device, len(prompts)
        out = torch.full((count, tokens), -1, device=device)
        made, *counters = (torch.zeros(count, dtype=torch.long, device=device) for _ in range(5))
        steps, drafted, verified, accepted = counters
        sessions = [model.start(count) for model in (self.target, self.drafter)]
        roots = prefill(sessions, prompts, device)
        rows = torch.arange(count, device=device)[: count if tokens else 0]
        while len(rows):
            draft = grow(sessions[1], roots, self.target.vocabulary, self.plan, self.scorer, generator)
            drafted[rows] += draft.alive.sum(1) - 1
            draft = self.scorer.prune(draft)
            chances = probabilities(sessions[0].feed(draft.tokens, draft.parents), **vars(self.sampling))
            verdict = self.scorer.verify(draft, chances, generator)
            roots = verdict.following
            steps[rows] += 1
            verified[rows] += draft.alive.sum(1) - 1
            accepted[rows] += verdict.lengths
            path = torch.cat([torch.zeros_like(verdict.slots[:, :1]), verdict.slots], 1)
            emitted = torch.where(verdict.slots >= 0, draft.tokens.gather(1, verdict.slots.clamp(min=0)), roots[:, None])
            going = write(out, made, rows, emitted, verdict.lengths + 1, stop)
            rows, roots = rows[going], roots[going]
            for session in sessions:
                session.commit(path)
                session.select(going)
        return Generation(out, steps, drafted, verified, accepted)


def prefill(sessions: Sequence[Session], prompts: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Makes all but the last token of each prompt the sessions' text; returns the last ones, int64 [B], the first roots."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    slots = torch.arange(padded.shape[1] - 1, device=device).expand(len(padded), -1)
    if slots.shape[1]:
        for session in sessions:
            session.feed(padded[:, :-1], (slots - 1).clamp(min=0))
            session.commit(slots.masked_fill(slots >= lengths[:, None] - 1, -1))
    return padded.gather(1, lengths[:, None] - 1)[:, 0]


def write(
    out: torch.Tensor,
    made: torch.Tensor,
    rows: torch.Tensor,
    emitted: torch.Tensor,
    counts: torch.Tensor,
    stop: Collection[int],
) -> torch.Tensor:
    """Appends the first `counts` [R] of `emitted` [R, S] to `rows` [R] of `out` [B, N], which hold `made` [B] tokens.

    Nothing is written past N or past a token of `stop`. Returns which of the rows go on, bool [R].
    """
    going = made[rows] < out.shape[1]
    stops = torch.tensor(sorted(stop), dtype=torch.long, device=out.device)
    for column in range(emitted.shape[1]):
        new = (going & (column < counts)).nonzero()[:, 0]
        place = rows[new]
        out[place, made[place]] = emitted[new, column]
        made[place] += 1
        going[new] = (made[place] < out.shape[1]) & ~torch.isin(emitted[new, column], stops)
    return going
