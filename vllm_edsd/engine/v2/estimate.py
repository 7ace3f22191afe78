"""Greedy drafts and their estimated acceptance from one reading of the logits over the draft vocabulary.

vLLM spreads these over the target's vocabulary and reads them there twice, for the likeliest token and for its odds.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.spec_decode.acceptance_estimator import OnlineAcceptanceEstimator

from vllm_edsd.kernels.draft_stats import draft_stats

MOST = 40.0  # log-odds, either way; as vLLM has it


class GreedyDrafts:
    """In the place of `speculator`'s own sampling, whose drafts must be greedy; its estimator is replaced."""

    def __init__(self, speculator: Any):
        self.speculator = speculator
        rows = speculator.max_num_reqs
        # One row more: rows that pad a CUDA graph have the index -1.
        speculator.acceptance_estimator = OnlineAcceptanceEstimator(
            rows + 1, speculator.num_speculative_steps, speculator.device
        )
        self.heat = torch.ones(rows + 1, dtype=torch.float32, device=speculator.device)
        speculator.sample_draft = self.sample_draft

    def sample_draft(
        self,
        hidden_states: torch.Tensor,
        sample_src_positions: torch.Tensor,
        idx_mapping: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        draft_step: torch.Tensor,
        *unused: Any,
    ) -> torch.Tensor:
        """As vLLM's: the drafted tokens int64 [R]; what is estimated of them goes where `observe_verification` finds it."""
        speculator = self.speculator
        model, estimator = speculator.model, speculator.acceptance_estimator
        logits = model.logits_processor(model.lm_head, hidden_states)
        # Acceptance is decided at the request's temperature; 0 stands for greedy, which has none.
        self.heat[:-1] = torch.where(temperature > 0, temperature, 1.0)
        stats = draft_stats(
            logits if logits.dtype == torch.bfloat16 else logits.float(), self.heat[idx_mapping], model.draft_id_to_target_id
        )
        _estimate(
            *(stats.max_probability, idx_mapping, draft_step, estimator.slope, estimator.intercepts),
            *(estimator.features, estimator.predictions, speculator.draft_token_confidence_probs),
        )
        return stats.token


@torch.compile(dynamic=True)
def _estimate(
    probability: torch.Tensor,
    rows: torch.Tensor,
    step: torch.Tensor,
    slope: torch.Tensor,
    intercepts: torch.Tensor,
    features: torch.Tensor,
    predictions: torch.Tensor,
    confidences: torch.Tensor,
) -> None:
    """vLLM's logistic estimate of draft position `step`; a drafter that gave no numbers is believed to be wrong."""
    odds = torch.nan_to_num((probability / (1 - probability)).log(), nan=-MOST).clamp(-MOST, MOST)
    chance = (slope * odds + intercepts[step]).sigmoid()
    places = (rows, step.expand_as(rows))
    features.index_put_(places, odds)
    predictions.index_put_(places, chance)
    confidences[: len(rows)].index_copy_(1, step.reshape(1), chance[:, None])
