import pytest
import torch

from vllm_edsd.drafters.layers import DraftCache, Rotary, unrolled_attention


def naive(query, prefix, own, visible):
    """One softmax over explicitly concatenated keys, chain by chain and head by head."""
    keys, values = prefix
    batch, chains, heads, dim = query.shape
    group = heads // keys.shape[2]
    out = torch.zeros(batch, chains, heads, dim)
    for b in range(batch):
        for c in range(chains):
            for h in range(heads):
                seen = visible[b, c]
                k = torch.cat([keys[b, seen, h // group], *[key[b, c, h // group][None] for key, _ in own]])
                v = torch.cat([values[b, seen, h // group], *[value[b, c, h // group][None] for _, value in own]])
                out[b, c, h] = (k @ query[b, c, h] * dim**-0.5).softmax(0) @ v
    return out.flatten(2)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("length", "chains"), [(1, 1), (9, 4), (13, 13)])
def test_unrolled_attention_equals_naive(steps, length, chains):
    torch.manual_seed(steps)
    pair = lambda size: (torch.randn(2, size, 2, 8), torch.randn(2, size, 2, 8))  # noqa: E731
    cache = DraftCache()
    cache.add(*pair(length))
    for _ in range(steps):
        cache.add(*pair(chains))
    query = torch.randn(2, chains, 6, 8)
    visible = torch.ones(chains, length, dtype=torch.bool).tril(length - chains).expand(2, -1, -1)
    torch.testing.assert_close(
        unrolled_attention(query, cache, visible), naive(query, cache.prefix, cache.own, visible), rtol=1e-4, atol=1e-5
    )


def test_rotary_scores_depend_on_distance_only():
    rotary, q, k = Rotary(16, 10000.0), torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(a, b):
        return float((rotary(q, torch.tensor([[a]])) * rotary(k, torch.tensor([[b]]))).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-3)
    assert score(7, 3) != pytest.approx(score(7, 5), abs=1e-3)
