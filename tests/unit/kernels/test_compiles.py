"""Every kernel compiles for a Hopper GPU here, where none is; what the interpreter allows, a GPU may not."""

import torch

SHARED_MEMORY = 227 * 1024  # bytes a thread block of compute capability 9.0 can have


def logits(rows, vocabulary, dtype=torch.bfloat16):
    return torch.randn(rows, vocabulary).to(dtype)


def drafts(counts, vocabulary, greedy):
    total = sum(counts)
    ends = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    chances = torch.rand(total, vocabulary)
    last = torch.zeros(len(counts), dtype=torch.int64)
    return torch.zeros(total, dtype=torch.int64), ends, None if greedy else chances, chances, last, last, max(counts)


def test_draft_stats(compiled):
    compiled("draft_stats", logits(3, 151936))
    built = compiled("draft_stats", logits(1000, 63, torch.float32), torch.ones(1000), torch.zeros(63, dtype=torch.int64))
    assert {"_reduce", "_merge"} <= set(built) and max(built.values()) < SHARED_MEMORY


def test_soft_ce(compiled):
    mask = torch.ones(3, dtype=torch.bool)
    for loss, given in (("kl", None), ("kl", mask), ("tv", mask), ("hybrid", mask)):
        draft = logits(3, 32003).requires_grad_()
        built = compiled("soft_ce", draft, logits(3, 32003), given, loss, upstream=torch.ones(3))
    assert {"_forward", "_backward"} <= set(built) and max(built.values()) < SHARED_MEMORY


def test_budget(compiled):
    for requests, positions, tokens in ((1, 1, 1), (1024, 16, 100)):
        lengths = torch.full((requests,), positions, dtype=torch.int32)
        built = compiled("budget", torch.rand(requests, positions), lengths, tokens)
    assert "_admit" in built and max(built.values()) < SHARED_MEMORY


def test_block_verify(compiled):
    for counts, greedy, method in (([1], True, "block"), ([3, 0, 5], False, "block"), ([3, 0, 5], False, "standard")):
        built = compiled("block_verify", *drafts(counts, 151936, greedy), method)
    assert {"_judge", "_emit"} <= set(built) and max(built.values()) < SHARED_MEMORY
