"""How much of a drafter's chains the target accepts, judged along the target's own answer.

Teacher forcing is exact here, not an approximation. A draft token counts only if all before it were accepted, and accepted
tokens are the text; so the drafter's prefix is always the text. Given that the emitted token is x, the draft was accepted

- with a greedy draft, if it is x: drawing the text from p and comparing is rejection sampling with a one-hot proposal;
- with a draft sampled from q, with the chance P(accepted and emitted x) / P(emitted x) = min(p(x), q(x)) / p(x).

So, given the text, the chance of every course of a request is known, and `follow` sums over all of them.
"""

import dataclasses

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.answers import Answer
from vllm_edsd.evaluation.target import Target
from vllm_edsd.training.batches import Batch
from vllm_edsd.training.unroll import unroll


@dataclasses.dataclass(frozen=True)
class Judge:
    """How drafts are made and accepted: chains of `depth` tokens; `sampled` drafts are drawn at the temperature.

    `dtype` is of the matrix products. At temperature 0 every draft is greedy, as in vLLM.
    """

    depth: int
    temperature: float
    sampled: bool
    dtype: torch.dtype

    @torch.inference_mode()
    def counts(self, target: Target, drafters: dict[str, Drafter], answer: Answer) -> dict[str, torch.Tensor]:
        """For each drafter float64 [1 + depth]: the expected number of drafts, and of accepted tokens by draft position."""
        asked = len(answer.question.tokens)
        text = answer.tokens[: asked + answer.length + self.depth - 1].to(target.device)
        layers, final = target.states(text[:-1])
        logs = None
        if self.sampled and self.temperature > 0:
            logs = target.log_chances(final[asked:], text[asked + 1 :], self.temperature)
        found = {}
        for name, drafter in drafters.items():
            hidden = torch.cat([layers[layer] for layer in drafter.config.layers], -1)
            chances = self._chances(drafter, target.embedding, hidden, text, asked, logs)
            if not chances.isfinite().all():
                raise UserError(f"drafter {name} says NaN to prompt {answer.question.id}; its weights are damaged")
            found[name] = follow(chances[: answer.length - 1].double().cpu())
        return found

    def _chances(
        self,
        drafter: Drafter,
        embedding: torch.Tensor,
        hidden: torch.Tensor,
        text: torch.Tensor,
        asked: int,
        logs: torch.Tensor | None,
    ) -> torch.Tensor:
        """[chains, depth]: the chance that chain c's token j, which the text has at asked + 1 + c + j, is accepted."""
        inputs = len(hidden)
        chains = inputs - asked + 1  # the first starts at the question's last token
        none = hidden.new_zeros(1, chains, 0)
        batch = Batch(
            hidden=hidden[None].to(self.dtype),
            following=text[None, 1:],
            positions=torch.arange(inputs, device=text.device)[None],
            real=torch.ones(1, inputs, dtype=torch.bool, device=text.device),
            final=none,
            argmax=none.long(),
            valid=torch.ones(1, chains, dtype=torch.bool, device=text.device),
        )
        chances = torch.zeros(chains, self.depth, device=text.device)
        with torch.autocast(text.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for step, state in enumerate(unroll(drafter, embedding, batch, [1] * self.depth)):
                count = chains - 1 - step
                wanted = text[asked + 1 + step :][:count]
                logits = drafter.logits(state[0, :count]).float()
                if logs is None:
                    hits = (drafter.draft_ids[logits.argmax(-1)] == wanted).float()
                    chances[:count, step] = hits.masked_fill(~logits.isfinite().all(-1), torch.nan)
                    continue
                known = drafter.t2d[wanted]
                rows = torch.searchsorted(drafter.draft_ids, wanted[known])
                drawn = (logits[known] / self.temperature).log_softmax(-1).gather(1, rows[:, None])[:, 0]
                chances[:count, step][known] = (drawn - logs[step:][known]).clamp(max=0).exp()
        return chances


def follow(chances: torch.Tensor) -> torch.Tensor:
    """Expected drafts, and accepted tokens by position, of a request that goes through one answer as a server does.

    `chances` float64 [chains, depth]: of each token to be accepted, given that those before it were. A draft that keeps m
    tokens moves on by m + 1, the bonus token included. With chances of 0 and 1 it is a plain count. Returns [1 + depth].
    """
    chains, depth = chances.shape
    survival = torch.cat([torch.ones(chains, 1, dtype=chances.dtype), chances.cumprod(-1)], 1)
    kept = survival - torch.cat([survival[:, 1:], torch.zeros(chains, 1, dtype=chances.dtype)], 1)
    visits = torch.zeros(chains + depth + 1, dtype=chances.dtype)
    visits[0] = 1
    for chain in range(chains):
        visits[chain + 1 : chain + 2 + depth] += visits[chain] * kept[chain]
    return visits[:chains] @ survival
