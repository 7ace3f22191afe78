"""vLLM's EAGLE proposer (model runner V1) with a length policy: drafts as far as it wants, hands on what it keeps."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.eagle import EagleProposer

from vllm_edsd.engine.backlog import Backlog, Batch
from vllm_edsd.engine.clock import StepClock, decodes
from vllm_edsd.engine.enough import Enough
from vllm_edsd.engine.model_free import ModelFree
from vllm_edsd.engine.notices import Notices
from vllm_edsd.engine.reading import reading
from vllm_edsd.engine.reload import DrafterSwitch
from vllm_edsd.engine.stops import Stops
from vllm_edsd.kernels.draft_stats import draft_stats
from vllm_edsd.observability.catalog import STRUCTURED
from vllm_edsd.observability.tally import Tally
from vllm_edsd.policy.base import Drafting, DraftPolicy, Verdict
from vllm_edsd.policy.reads import Reads

AHEAD = 64  # with fewer tokens another pass costs more than the attention and MLP that it spares [estimated]
NONFINITE = "request %s: the drafter gave NaN or infinity; its draft ends there, its text is what it would be without"


class AdaptiveProposer(EagleProposer):
    """Needs an unpadded drafter batch (`disable_padded_drafter_batch`) and synchronous scheduling: ragged lists go out."""

    def __init__(
        self,
        vllm_config: Any,
        device: torch.device,
        runner: Any,
        make_policy: Callable[[], DraftPolicy],
        tally: Tally,
        beside: ModelFree | None,
    ):
        super().__init__(vllm_config, device, runner)
        self.runner = runner
        self.policy = make_policy()
        self.tally = tally
        self.beside = beside
        self.copied = False  # the last drafts were made without the model
        for name in ("edsd:beside_tokens", "edsd:beside_accepted_tokens"):
            tally.count(name, 0)
        self.switch = DrafterSwitch(self, Path(vllm_config.speculative_config.model), make_policy)
        tally.watch("drafter", lambda: tally.put("edsd:tracked_requests", float(self.tracked()), "drafter"))
        self.clock = StepClock(Stops())
        self.backlog = Backlog(self.block_size_of, self.max_num_tokens)
        self.reads = Reads()
        # Nobody else reads what the drafter's cache holds of a prompt, and it needs nothing but what the backlog keeps.
        self.alone = not vllm_config.cache_config.enable_prefix_caching and not self.supports_mm_inputs
        self.begun = 0.0  # of the step, in seconds
        self.nonfinite = Notices(NONFINITE)
        self.verified: dict[str, int] = {}
        self.emitted: list[int] = []
        self.drafting: Drafting | None = None
        self.tokens: list[torch.Tensor] = []
        self.probs: list[torch.Tensor] = []
        self.rows: list[int] = []
        self.constrained = torch.empty(0, dtype=torch.bool)

    def block_size_of(self) -> int:
        """Tokens in a KV cache block; known once the cache is."""
        return self.block_size

    def _attention(self) -> dict[str, Any]:
        layers = self.vllm_config.compilation_config.static_forward_context
        return {name: layers[name] for name in self._draft_attn_layer_names}

    def tracked(self) -> int:
        """Requests of which something is kept here."""
        return len(self.backlog.waiting) + len(self.nonfinite.told) + len(self.switch.old_requests)

    def scheduled(self, output: Any) -> None:
        """At the beginning of a step, before the target runs: `output` is the scheduler's."""
        gone = [*output.finished_req_ids]
        if self.alone:  # else prompts are read whether it drafts or not
            for state in filter(None, map(self.runner.requests.get, gone)):
                self.reads.finished(state.num_prompt_tokens)
        self.policy.forget(gone)
        self.backlog.forget(gone)
        self.switch.forget(gone)
        self.begun = time.perf_counter()
        self.nonfinite.forget(gone)
        self.verified = {request: len(tokens) for request, tokens in output.scheduled_spec_decode_tokens.items()}
        step = self.clock.begin(output.num_scheduled_tokens, decodes(output))
        if step is not None:
            self.policy.timed(step)

    def prepare_next_token_ids_cpu(self, sampled_token_ids: list[list[int]], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.emitted = [len(tokens) for tokens in sampled_token_ids]
        return super().prepare_next_token_ids_cpu(sampled_token_ids, *args, **kwargs)

    def propose(  # type: ignore[override]
        self,
        num_speculative_tokens: int,
        target_token_ids: torch.Tensor,
        target_positions: torch.Tensor,
        target_hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        token_indices_to_sample: torch.Tensor | None,
        common_attn_metadata: CommonAttentionMetadata,
        sampling_metadata: SamplingMetadata,
        **kwargs: Any,
    ) -> list[list[int]]:
        reached = time.perf_counter()
        requests = self.runner.input_batch.req_ids
        self._observe(requests)
        # Rows that emitted nothing are prompts not yet read to their end.
        self.rows = [row for row, count in enumerate(self.emitted) if count]
        asked = [requests[row] for row in self.rows]
        step = Batch(common_attn_metadata, target_token_ids, target_positions, target_hidden_states, next_token_ids)
        context = int(common_attn_metadata.seq_lens.sum())
        found = self._look(asked, context) if self.beside is not None and asked else None
        self.copied = found is not None
        waits = self.backlog.tokens() + (len(target_token_ids) if self.alone else 0)
        self.policy.reads(self.reads.per_token(), self.reads.seconds(waits))
        wanted = found is None and bool(asked) and self.policy.start(asked)
        if not wanted and (self.clock.decoding or self.alone) and self.backlog.room(len(target_token_ids)):
            self.backlog.add(requests, step)
            self.clock.drafted(context, 0, sum(self.emitted))
            self._count(reached, 0)
            self._last_draft_probs = None
            return self._spread(found or [], len(requests))
        before, step = self.backlog.take(requests, step, self._at_once(len(asked)) if wanted else self.max_num_tokens)
        for early in before:
            self._read(early, sampling_metadata)
        sampled = self._enable_probabilistic_draft_probs and not sampling_metadata.all_greedy
        self.drafting = Drafting.begin(asked, context, sampled)
        self.tokens, self.probs = [], []
        self.constrained = torch.tensor(self.structured(requests))
        if sampled:
            self.tally.count("edsd:fallbacks", int(self.constrained[self.rows].sum()), STRUCTURED)
        self._pass(step, num_speculative_tokens if wanted else 0, sampling_metadata, token_indices_to_sample, **kwargs)
        self._last_draft_probs = torch.stack(self.probs, dim=1).contiguous() if self.probs else None
        self.clock.drafted(context, len(self.tokens), sum(self.emitted))
        kept = self._spread(self._kept() if found is None else found, len(requests))
        self._count(reached, len(self.tokens))
        return kept

    def _at_once(self, requests: int) -> int:
        """The most tokens to draft after in one pass; of more it is quicker to read all but the last beforehand."""
        spares = len(self._draft_attn_layer_names) == 1 and not self.supports_mm_inputs
        return requests + AHEAD if spares else self.max_num_tokens

    def _read(self, step: Batch, sampling: SamplingMetadata) -> None:
        """The drafter reads `step`, which is timed."""
        begun, stops = self.clock.now(), self.clock.stops.count
        self._pass(step, 0, sampling)
        if self.clock.stops.count == stops:
            self.reads.took(len(step.tokens), self.clock.now() - begun)

    def _pass(self, step: Batch, most: int, sampling: SamplingMetadata, indices: Any = None, **kwargs: Any) -> None:
        """The drafter reads `step` and drafts up to `most` tokens."""
        # On CPU vLLM's lengths and their upper bound are one tensor, and its drafting loop would advance it twice a step.
        metadata = dataclasses.replace(step.metadata, seq_lens=step.metadata.seq_lens.clone())
        with contextlib.suppress(Enough), contextlib.nullcontext() if most else reading(self._attention()):
            super().propose(most, *step.part, step.next, indices, metadata, sampling, **kwargs)

    def _sample_draft_tokens(
        self, hidden_states: torch.Tensor, sampling_metadata: SamplingMetadata
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert self.drafting is not None
        model: Any = self.model
        # vLLM's own `compute_logits` would spread them over the target's vocabulary.
        logits = model.logits_processor(model.lm_head, hidden_states)
        stats = draft_stats(logits if logits.dtype == torch.bfloat16 else logits.float(), d2t=model.draft_id_to_target_id)
        tokens, probs = stats.token, None
        if self.drafting.sampled:
            tokens, probs = self._sample_from_logits(model.compute_logits(hidden_states), sampling_metadata)
            assert probs is not None
            if self.constrained.any():
                # The scheduler cuts these at the first token that the grammar forbids: no draw may decide about that.
                fixed = torch.zeros_like(probs).scatter_(1, stats.token[:, None], 1.0)
                tokens = torch.where(self.constrained, stats.token, tokens)
                probs = torch.where(self.constrained[:, None], fixed, probs)
            self.probs.append(probs)
        self.tokens.append(tokens)
        figures = torch.stack([stats.max_probability, stats.entropy])[:, self.rows].double().cpu().numpy()
        self.drafting.add(*figures)
        if len(self.tokens) < self.num_speculative_tokens and not self.policy.proceed(self.drafting):
            raise Enough
        return tokens, probs

    def _count(self, reached: float, drafted: int) -> None:
        """Counts a step that read no prompt; the target was done at `reached`."""
        if self.clock.decoding:
            self.tally.count("edsd:steps", 1, str(drafted > 0).lower())
            self.tally.observe("edsd:verify_seconds", (reached - self.begun,))
            if drafted:
                self.tally.observe("edsd:draft_seconds", (time.perf_counter() - reached,))

    def structured(self, requests: Sequence[str]) -> list[bool]:
        """Whether each request's output must follow a grammar (a JSON schema, a regular expression, ...)."""
        return [self.runner.requests[request].sampling_params.structured_outputs is not None for request in requests]

    def _observe(self, requests: Sequence[str]) -> None:
        """Tells the policy what became of the drafts that the target has just verified."""
        accepted = {request: count - 1 for request, count in zip(requests, self.emitted, strict=True) if count}
        verdicts = [
            Verdict(request, self.verified[request], count)
            for request, count in accepted.items()
            if self.verified.get(request)
        ]
        self.policy.observe(verdicts)
        if self.copied:
            self.tally.count("edsd:beside_accepted_tokens", sum(verdict.accepted for verdict in verdicts))
        else:
            self.reads.decoded(sum(self.emitted))
        if self.tokens and self.drafting is not None:
            self.switch.observe([(request, accepted[request]) for request in self.drafting.requests if request in accepted])
            self.tokens = []

    def _look(self, asked: Sequence[str], context: int) -> list[list[int]] | None:
        """Drafts made without the model for the requests of `self.rows`, where the policy prefers them to the drafter's."""
        assert self.beside is not None
        batch = self.runner.input_batch
        texts = [batch.token_ids_cpu[row, : batch.num_tokens_no_spec[row]] for row in self.rows]
        drafts = [self.beside.draft(text, self.emitted[row]) for text, row in zip(texts, self.rows, strict=True)]
        chances = [self.beside.chances(text, draft) for text, draft in zip(texts, drafts, strict=True)]
        counts = self.policy.beside(asked, chances, context)
        if counts is None:
            return None
        self.tally.count("edsd:beside_tokens", int(counts.sum()))
        return [draft[:count] for draft, count in zip(drafts, counts.tolist(), strict=True)]

    def _kept(self) -> list[list[int]]:
        """The tokens that the policy keeps, for each request of `self.rows`; none where nothing was drafted."""
        if not self.tokens or self.drafting is None:
            return []
        usable = np.asarray(self.drafting.usable().all(axis=1))
        self.nonfinite.tell(request for request, fine in zip(self.drafting.requests, usable, strict=True) if not fine)
        drafted = torch.stack(self.tokens, dim=1).tolist()
        counts = self.policy.cut(self.drafting).tolist()
        return [drafted[row][:count] for row, count in zip(self.rows, counts, strict=True)]

    def _spread(self, drafts: Sequence[list[int]], requests: int) -> list[list[int]]:
        """`drafts` of `self.rows` among the `requests` of the batch; no drafts at all stand for empty ones."""
        spread: list[list[int]] = [[] for _ in range(requests)]
        for row, draft in zip(self.rows, drafts, strict=False):
            spread[row] = draft
        return spread
