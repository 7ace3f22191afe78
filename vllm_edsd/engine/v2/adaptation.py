"""What a model runner V2 does beside vLLM's adaptive verification: live costs, and plain decoding where drafting loses."""

from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group

from vllm_edsd.engine.clock import decodes
from vllm_edsd.engine.stops import Stops
from vllm_edsd.engine.v2.estimate import GreedyDrafts
from vllm_edsd.engine.v2.times import StepTimes, Taken
from vllm_edsd.engine.v2.verification import LiveVerification
from vllm_edsd.observability.catalog import GUARD
from vllm_edsd.observability.tally import Tally
from vllm_edsd.observability.watch import show_contests
from vllm_edsd.policy.base import Step
from vllm_edsd.policy.contest import Contests

LEARN = 16  # steps between two looks at what steps took, at which ranks agree
REFIT = 256  # steps between two refits of the costs
Tag = tuple[int, bool, bool]  # requests, whether the step drafted, and whether the one before it did not do the same


class Adaptation:
    """Changes `runner`, whose KV cache is initialized, and needs `begin` called before each of its steps.

    Where drafting loses, steps rest: the drafter reads what was decoded, in one pass that keeps its cache whole, and drafts
    nothing. Ranks decide alike, since all learn what the first one measured, at the same step.
    """

    def __init__(self, runner: Any, config: Any, tally: Tally):
        self.tally = tally
        self.verification = LiveVerification.instead_of(runner.adaptive_verification)
        self.times = StepTimes(Stops())
        self.contests = Contests()
        greedy = config.speculative_config.draft_sample_method == "greedy"
        # Sampled drafts are judged by distributions that a resting drafter does not make; ranks of a data-parallel group
        # run their drafters together.
        self.rests = greedy and config.parallel_config.data_parallel_size == 1
        self.steps = 0
        self.speculator = runner.speculator
        if greedy:
            GreedyDrafts(self.speculator)
        self.draft, runner.speculator.propose = runner.speculator.propose, self._propose
        self.prepare, runner.prepare_dummy_attn = runner.prepare_dummy_attn, self._prepare_dummy_attn
        runner.adaptive_verification, runner.step_timing = self.verification, self.times
        tally.watch("policy", self._show)

    def begin(self, output: Any) -> None:
        """A step begins; `output` is the scheduler's."""
        counts = output.num_scheduled_tokens
        # While vLLM warms up, kernels are compiled: such steps say nothing.
        if not counts or self.verification.cost_tables is None:
            return
        self.times.begin(frozenset(counts), decodes(output))
        self.steps += 1
        if self.steps % LEARN == 0:
            self._learn()
        if self.steps % REFIT == 0:
            self.verification.refit()

    def _show(self) -> None:
        """Called from another thread: reads numbers, changes nothing."""
        show_contests(self.tally, self.contests)
        self.tally.total("edsd:drafted_tokens", self.verification.drafted)
        self.tally.total("edsd:cut_tokens", self.verification.cut)

    def _learn(self) -> None:
        found: list[tuple[Tag, Taken]] = get_tp_group().broadcast_object(list(self.times.finished()))
        for (requests, drafted, changed), taken in found:
            if drafted:
                self.verification.observe(taken)
            if not changed:
                step = Step(taken.requests, 0, taken.tokens, int(drafted), taken.emitted, taken.milliseconds / 1e3)
                self.contests.of(requests).learn(drafted, step)

    def _propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: Any,
        num_sampled: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        given = (input_batch, attn_metadata, slot_mappings, last_hidden_states, aux_hidden_states, num_sampled)
        mark = self.times.mark
        if mark is None:  # a dummy step
            return self.draft(*given, *args, **kwargs)
        before = resting = self.verification.resting
        if mark.decoding:
            if self.rests:
                self.verification.resting = resting = not self.contests.of(len(mark.ids)).next()
            self.tally.count("edsd:steps", 1, str(not resting).lower())
            self.tally.count("edsd:fallbacks", int(resting), GUARD)
        self.times.drafting(num_sampled, (len(mark.ids), not resting, resting != before))
        tokens = self.draft(*given, *args, **kwargs | ({"num_speculative_tokens": 0} if resting else {}))
        self.times.drafted()
        if resting:
            # Should another step verify them after all: a token of the vocabulary, that nobody believes in.
            tokens.zero_()
            self.speculator.draft_token_confidence_probs[: len(tokens)].zero_()
        return tokens

    def _prepare_dummy_attn(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self.verification.pricing:
            input_batch.is_padding.fill_(False)
        return self.prepare(input_batch, *args, **kwargs)
