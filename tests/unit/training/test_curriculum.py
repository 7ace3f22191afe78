import pytest
import torch

from vllm_edsd.training.curriculum import depth, easy_tokens, masked_share
from vllm_edsd.training.recipe import Curriculum

PUBLISHED = Curriculum(periods=10, entropy_rate=0.03)


def test_step_n_is_the_published_schedule():
    assert [depth(PUBLISHED, epoch / 10, 7) for epoch in range(10)] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]


def test_fixed_depth_is_full_depth():
    fixed = Curriculum(grow_depth=False)
    assert {depth(fixed, progress, 7) for progress in (0.0, 0.5, 0.99)} == {7}


def test_entropy_share_falls_to_nothing_and_is_clipped():
    shares = [masked_share(PUBLISHED, epoch / 10) for epoch in range(10)]
    assert shares == pytest.approx([0.27, 0.24, 0.21, 0.18, 0.15, 0.12, 0.09, 0.06, 0.03, 0.0])
    assert masked_share(Curriculum(entropy_rate=0.2), 0.0) == 0.4
    assert masked_share(PUBLISHED, 1.0) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mask_drops_the_most_uncertain(share):
    entropy = torch.tensor([0.1, 3.0, 0.2, 5.0, 0.3, 0.4, 4.0, 0.0])
    keep = easy_tokens(entropy, share)
    assert int((~keep).sum()) == int(share * 8)
    if 0 < share < 1:
        assert entropy[~keep].min() > entropy[keep].max()
