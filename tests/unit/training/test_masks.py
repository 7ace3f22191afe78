import pytest
import torch

from vllm_edsd.training.masks import WINDOW, Mask

ENTROPY = torch.tensor([0.1, 3.0, 0.2, 5.0, 0.3, 0.4, 4.0, 0.0])


def mask(name, selection="local", seed=0):
    return Mask(name, selection, seed, torch.device("cpu"))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("selection", ["local", "global"])
def test_drops_the_most_uncertain(share, selection):
    keep = mask("entropy", selection).keep(ENTROPY, share, 0)
    assert int((~keep).sum()) == int(share * 8)
    if 0 < share < 1:
        assert ENTROPY[~keep].min() > ENTROPY[keep].max()


def test_reversed_drops_the_surest():
    assert mask("reversed").keep(ENTROPY, 0.25, 0).tolist() == [False, *[True] * 6, False]


def test_random_drops_the_same_share_blindly_and_repeatably():
    entropy = torch.arange(1000.0)
    keep = mask("random").keep(entropy, 0.3, 7)
    assert int((~keep).sum()) == 300
    assert 350 < entropy[~keep].mean() < 650
    assert torch.equal(keep, mask("random").keep(entropy, 0.3, 7))
    assert not torch.equal(keep, mask("random").keep(entropy, 0.3, 8))
    assert not torch.equal(keep, mask("random", seed=1).keep(entropy, 0.3, 7))


def test_none_keeps_all():
    assert mask("none").keep(ENTROPY, 0.4, 0).all()


def test_global_spares_an_easy_batch_and_masks_a_hard_one():
    torch.manual_seed(0)
    chosen = mask("entropy", "global")
    for step in range(20):
        chosen.keep(torch.rand(500), 0.25, step)
    assert chosen.keep(torch.rand(500) * 0.5, 0.25, 20).all()
    assert not chosen.keep(torch.rand(500) * 0.1 + 0.9, 0.25, 21).any()
    shares = [float((~chosen.keep(torch.rand(500), 0.25, step)).float().mean()) for step in range(22, 62)]
    assert sum(shares) / len(shares) == pytest.approx(0.25, abs=0.03)


def test_global_remembers_so_many_positions():
    chosen = mask("entropy", "global")
    for step in range(3):
        chosen.keep(torch.full((WINDOW // 2 + 1,), float(step)), 0.1, step)
    assert len(chosen.recent) == WINDOW and chosen.recent.min() == 1


def test_no_positions():
    for selection in ("local", "global"):
        assert len(mask("entropy", selection).keep(torch.empty(0), 0.4, 0)) == 0
