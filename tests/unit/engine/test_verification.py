"""Block verification inside vLLM's rejection sampler: what it decides, and what it leaves to vLLM."""

import pytest
import torch
from scipy.stats import chisquare
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from vllm_edsd.engine import cpu_sampling, hooks, verification

VOCABULARY = 5
LOGITS = torch.tensor([[1.0, 0.5, 0.0, -0.5, 2.0], [0.0, 1.5, -1.0, 1.0, 0.5], [0.3, -0.2, 1.1, 0.0, -2.0]])
PROPOSAL = torch.tensor([[0.3, 0.2, 0.1, 0.2, 0.2], [0.1, 0.3, 0.3, 0.2, 0.1]])


@pytest.fixture
def sampler(monkeypatch):
    made = verification.BlockVerifier(Sampler())
    # As `cpu_sampling.install` has it, once vLLM's model runner is built.
    monkeypatch.setattr(rejection_sampler, "_expand", cpu_sampling.expand)
    return made


def settings(requests, **changes):
    """vLLM's sampling metadata; by default temperature 1 and nothing else."""
    zeros = torch.zeros(requests)
    given = {
        "temperature": torch.ones(requests),
        "all_greedy": False,
        "all_random": True,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": zeros,
        "presence_penalties": zeros,
        "repetition_penalties": zeros + 1,
        "output_token_ids": [[] for _ in range(requests)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    return SamplingMetadata(**given | changes)


def batch(drafts):
    """Metadata of ragged drafts, a list for each request, whose logits lie request after request."""
    counts = torch.tensor([len(draft) for draft in drafts])
    ends = (counts + 1).cumsum(0)
    every = torch.arange(int(ends[-1]))
    return SpecDecodeMetadata(
        draft_token_ids=torch.tensor([token for draft in drafts for token in draft], dtype=torch.int32),
        num_draft_tokens=counts.tolist(),
        cu_num_draft_tokens=counts.cumsum(0).int(),
        cu_num_sampled_tokens=ends.int(),
        target_logits_indices=every[~torch.isin(every, ends - 1)],
        bonus_logits_indices=ends - 1,
        logits_indices=every,
    )


def draws(chances, requests, generator):
    return torch.multinomial(chances, requests, replacement=True, generator=generator)


def test_greedy_requests_keep_what_the_target_would_write(sampler):
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 5, (300,), generator=generator).tolist()
    drafts = [torch.randint(0, 2, (count,), generator=generator).tolist() for count in counts]
    logits = torch.randn(sum(counts) + len(counts), VOCABULARY, generator=generator)
    logits[:, :2] += 2
    probs = torch.rand(sum(counts), VOCABULARY, generator=generator).softmax(-1)
    temperature = torch.tensor([0.0, 0.8] * 150)
    found = sampler(batch(drafts), probs, logits.clone(), settings(300, temperature=temperature, all_random=False))
    begin = 0
    for request, draft in enumerate(drafts):
        said = logits[begin : begin + len(draft) + 1].argmax(-1).tolist()
        begin += len(draft) + 1
        if temperature[request] == 0:
            kept = next((place for place, token in enumerate(draft) if token != said[place]), len(draft))
            wanted = said[: kept + 1]
            assert found.sampled_token_ids[request].tolist() == wanted + [-1] * (max(counts) - kept)


def processed(logits, how):
    """The distribution that vLLM's sampler draws from, in float64."""
    logits = logits.double()
    if how == "penalties":
        logits = logits - 0.7 * torch.tensor([2, 0, 1, 0, 0]) - 0.4 * torch.tensor([1, 0, 1, 0, 0])
    if how == "temperature":
        logits = logits / 0.6
    if how == "top-k":
        logits = logits.masked_fill(logits < logits.sort(descending=True)[0][2], -torch.inf)
    if how == "top-p":
        order = logits.sort(descending=True)
        before = order.values.softmax(-1).cumsum(-1) - order.values.softmax(-1)
        logits = logits.masked_fill((before >= 0.6)[order.indices.argsort()], -torch.inf)
    return logits.softmax(-1)


def options(how, requests):
    fill = torch.full
    return {
        "plain": {},
        "temperature": {"temperature": fill((requests,), 0.6)},
        "top-k": {"top_k": fill((requests,), 3, dtype=torch.int32)},
        "top-p": {"top_p": fill((requests,), 0.6)},
        "-inf": {},
        "penalties": {
            "no_penalties": False,
            "prompt_token_ids": fill((requests, 1), 3),
            "frequency_penalties": fill((requests,), 0.7),
            "presence_penalties": fill((requests,), 0.4),
            "output_token_ids": [[0, 2, 0]] * requests,
            "spec_token_ids": [[0]] * requests,
        },
    }[how]


@pytest.mark.parametrize("how", ["plain", "temperature", "top-k", "top-p", "-inf", "penalties"])
@pytest.mark.parametrize("known", [True, False], ids=["probabilities", "one-hot"])
def test_the_first_token_is_the_processed_targets(how, known, sampler):
    requests, generator = 100_000, torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    logits = LOGITS[:2].repeat(requests, 1)
    if how == "-inf":
        logits[::2, 0] = -torch.inf
    drafts = draws(PROPOSAL[0], requests, generator)
    metadata = settings(requests, **options(how, requests))
    wanted = processed(logits[0], how)
    probs = PROPOSAL[0].expand(requests, -1).contiguous() if known else None
    found = sampler(batch(drafts[:, None].tolist()), probs, logits, metadata).sampled_token_ids[:, 0]
    counts = torch.bincount(found.long(), minlength=VOCABULARY)
    assert counts[wanted == 0].sum() == 0
    possible = wanted > 0
    assert chisquare(counts[possible], wanted[possible] * requests).pvalue > 1e-3


def test_blocks_keep_more_than_single_tokens(sampler):
    """Two drafts from (2/3, 1/3) for a target (1/3, 2/3): 11/9 are kept, and 10/9 would be one by one (Sun et al.)."""
    requests, generator = 50_000, torch.Generator().manual_seed(1)
    q, logits = torch.tensor([2 / 3, 1 / 3]), torch.tensor([1 / 3, 2 / 3]).log().repeat(3 * requests, 1)
    drafts = draws(q, 2 * requests, generator).view(requests, 2)
    found = sampler(batch(drafts.tolist()), q.repeat(2 * requests, 1), logits, settings(requests)).sampled_token_ids
    assert float((found >= 0).sum(1).float().mean()) - 1 == pytest.approx(11 / 9, abs=0.02)


def test_log_probabilities_are_those_of_the_tokens(sampler):
    drafts = [[1, 4], [], [3]]
    logits = torch.cat([LOGITS, LOGITS[:1], LOGITS[1:]])
    probs = PROPOSAL[[0, 1, 0]]
    said = sampler(batch(drafts), probs, logits.clone(), settings(3, max_num_logprobs=0))
    rows, logprobs = sampler.parse_output(said.sampled_token_ids, VOCABULARY, (), said.logprobs_tensors)
    places = [place for begin, row in zip((0, 3, 4), rows, strict=True) for place in range(begin, begin + len(row))]
    tokens = [token for row in rows for token in row]
    wanted = logits.log_softmax(-1)[places, tokens]
    torch.testing.assert_close(torch.as_tensor(logprobs.logprobs)[:, 0], wanted)


def test_a_seed_of_its_own_makes_a_request_repeatable():
    def seeds():
        generators = {0: torch.Generator().manual_seed(5), 2: torch.Generator().manual_seed(5)}
        found = verification.seeds([3, 1, 0], generators, torch.device("cpu")).tolist()
        return found, generators[2].get_state()

    (first, untouched), (second, _) = seeds(), seeds()
    assert first[0] == second[0] and first[1] != second[1]
    assert torch.equal(untouched, torch.Generator().manual_seed(5).get_state())
    assert len(set(first)) == 3


def test_vllm_calls_the_step_that_is_replaced():
    assert "rejection_sample" in rejection_sampler.RejectionSampler.forward.__code__.co_names
    assert hooks.problem(hooks.ADAPT) is None
