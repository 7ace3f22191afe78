import pytest
from pydantic import ValidationError

from vllm_edsd.training.curriculum import Curriculum, depth, masked_share

PUBLISHED = Curriculum(periods=10, entropy_rate=0.03)


def test_step_n_is_the_published_schedule():
    assert [depth(PUBLISHED, epoch / 10, 7) for epoch in range(10)] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]


def test_fixed_depth_is_full_depth():
    fixed = Curriculum(depth="fixed")
    assert {depth(fixed, progress, 7) for progress in (0.0, 0.5, 0.99)} == {7}


def test_entropy_share_falls_to_nothing_and_is_clipped():
    shares = [masked_share(PUBLISHED, epoch / 10) for epoch in range(10)]
    assert shares == pytest.approx([0.27, 0.24, 0.21, 0.18, 0.15, 0.12, 0.09, 0.06, 0.03, 0.0])
    assert masked_share(Curriculum(entropy_rate=0.2), 0.0) == 0.4
    assert masked_share(PUBLISHED, 1.0) == 0.0


def test_reads_how_the_depth_was_written_before():
    assert Curriculum(grow_depth=False) == Curriculum(depth="fixed")
    assert Curriculum(grow_depth=True) == Curriculum()


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("mask", "entropy, reversed, random, none"),
        ("selection", "local, global"),
        ("depth", "step-n, fixed"),
    ],
)
def test_an_unknown_name_lists_the_known(key, known):
    with pytest.raises(ValidationError, match=f"unknown; known: {known}"):
        Curriculum(**{key: "other"})
