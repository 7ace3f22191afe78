import pytest
import torch

from vllm_edsd.drafters.layers import DraftCache, diagonal_attention, masked_attention

LENGTH, CHAINS, HEADS, KV_HEADS, DIM = 7, 5, 6, 2, 8


def padded():
    """Two rows, the second padded by three on the left; a padded chain sees itself alone."""
    visible = torch.ones(2, CHAINS, LENGTH, dtype=torch.bool).tril(LENGTH - CHAINS)
    visible[1, :, :3] = False
    visible[1] |= torch.eye(LENGTH, dtype=torch.bool)[LENGTH - CHAINS :]
    return visible


def packed():
    """Two sequences packed into each row: of 4 and 3 positions, of 3 and 4."""
    visible = torch.ones(2, LENGTH, LENGTH, dtype=torch.bool).tril()
    visible[0, 4:, :4] = visible[1, 3:, :3] = False
    return visible[:, LENGTH - CHAINS :]


def naive(query, cache, visible):
    """Chain by chain, head by head, over the keys that it may see."""
    keys, values = cache.prefix
    out = torch.zeros(*query.shape[:2], HEADS, DIM)
    for row in range(len(query)):
        for chain in range(CHAINS):
            seen = visible[row, chain]
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                mine = torch.cat([keys[row, seen, group], *[key[row, chain, group][None] for key, _ in cache.own]])
                its = torch.cat([values[row, seen, group], *[value[row, chain, group][None] for _, value in cache.own]])
                out[row, chain, head] = (mine @ query[row, chain, head] / DIM**0.5).softmax(-1) @ its
    return out.flatten(2)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("visible", [padded(), packed()], ids=["padded", "packed"])
@pytest.mark.parametrize("attention", [diagonal_attention, masked_attention], ids=["diagonal", "masked"])
def test_a_chain_sees_its_prefix_and_its_own_steps(attention, visible, depth):
    generator = torch.Generator().manual_seed(depth)
    cache, inputs = DraftCache(), []
    for step in range(depth):
        for _ in range(2):
            size = (2, LENGTH if step == 0 else CHAINS, KV_HEADS, DIM)
            inputs.append(torch.randn(size, generator=generator, requires_grad=True))
        cache.add(*inputs[-2:])
    query = torch.randn(2, CHAINS, HEADS, DIM, generator=generator, requires_grad=True)
    found, expected = attention(query, cache, visible), naive(query, cache, visible)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=generator)
    for mine, its in zip(
        *(torch.autograd.grad((out * weight).sum(), [query, *inputs]) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(mine, its)
