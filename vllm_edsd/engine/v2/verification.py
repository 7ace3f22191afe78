"""vLLM's adaptive verification (model runner V2), with costs that are true of MoE targets and follow the server."""

from collections.abc import Iterator
from typing import Any

from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager

from vllm_edsd.engine.v2.times import Taken
from vllm_edsd.policy.live_curve import LiveCurve

Curve = list[tuple[int, float]]


class LiveVerification(AdaptiveVerificationManager):
    """Seen in vLLM 0.32.0: dummy steps are priced with all tokens marked as padding, which MoE layers skip
    (VLLM_MOE_SKIP_PADDING), and with one token id, which goes to the same experts; and they are priced once.
    """

    pricing = False  # dummy steps run to be priced
    resting = False  # the last step made no drafts: nothing is to be verified
    fitted = False  # the curves below are there
    drafting: LiveCurve
    verifying: LiveCurve
    drafted = cut = 0  # tokens, since the start

    @classmethod
    def instead_of(cls, manager: AdaptiveVerificationManager) -> "LiveVerification":
        """One with the state of `manager`, which is not to be used any more."""
        live = object.__new__(cls)
        vars(live).update(vars(manager))
        return live

    def batches_to_profile(self, capture_sizes: list[int]) -> Iterator[dict[str, Any]]:
        """As vLLM's, with random token ids."""
        self.pricing = True
        try:
            for batch in super().batches_to_profile(capture_sizes):
                yield {**batch, "randomize_inputs": True}
        finally:
            self.pricing = False

    def set_cost_curves(self, draft_curve: Curve, verify_curve: Curve) -> None:
        """As vLLM's: the first rank's curves, by which all ranks decide from now on. The first are kept, to be refitted."""
        super().set_cost_curves(draft_curve, verify_curve)
        if not self.fitted:
            self.drafting = LiveCurve(draft_curve, self.req_states.max_num_reqs)
            self.verifying = LiveCurve(verify_curve, self._cudagraph_limit)
            self.fitted = True

    def observe(self, taken: Taken) -> None:
        """A step that drafted. What is neither target nor drafter (sampling, the engine's own work) counts as verifying."""
        self.drafting.observe(taken.requests, taken.drafting)
        self.verifying.observe(taken.tokens, taken.milliseconds - taken.drafting)

    def refit(self) -> None:
        """Called by all ranks at the same step."""
        self.set_cost_curves(self.drafting.refit(), self.verifying.refit())

    def get_num_tokens(self, num_tokens_per_req: dict[str, int], draft_tokens: dict[str, list[int]]) -> int:
        """As vLLM's; after a step that made no drafts the budget is 0."""
        tokens = super().get_num_tokens(num_tokens_per_req, draft_tokens)
        assert self._batch_budget is not None
        drafts, others, budget = self._batch_budget
        if self.resting:
            self._batch_budget = (drafts, others, 0)
            return sum(others.values())
        drafted = sum(drafts.values())
        self.drafted, self.cut = self.drafted + drafted, self.cut + drafted - budget
        return tokens
