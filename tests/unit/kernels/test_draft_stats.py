import pytest
import torch

from vllm_edsd.kernels.draft_stats import draft_stats, naive

SIZES = [(1, 151936), (7, 32003), (2, 49152), (1000, 63), (7, 1), (0, 63)]


def logits(rows, vocabulary, dtype=torch.float32):
    """Every third logit is -inf; where there are rows to spare, one is nothing but -inf."""
    x = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows + vocabulary)) * 4
    x[:, 2::3] = -torch.inf
    if rows > 2:
        x[1] = -torch.inf
    return x.to(dtype)


def close(found, wanted):
    torch.testing.assert_close(tuple(found), tuple(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "vocabulary"), SIZES)
def test_equals_naive(interpreted, rows, vocabulary, dtype):
    x = logits(rows, vocabulary, dtype)
    heat = torch.rand(rows) + 0.5
    close(interpreted("draft_stats", x, heat), naive(x, heat, None))


def test_one_temperature_for_all_rows_and_strided_logits(interpreted):
    padded = logits(5, 80)
    wanted = naive(padded[:, :63], torch.full((5,), 0.7), None)
    close(interpreted("draft_stats", padded[:, :63], 0.7), wanted)
    close(interpreted("draft_stats", padded[:, :63].T.contiguous().T, 0.7), wanted)
    assert not torch.allclose(interpreted("draft_stats", padded[:, :63], 1.0)[2], wanted.entropy, rtol=1e-2)


def test_draft_ids_become_target_ids_and_ties_go_to_the_lowest(interpreted):
    x = torch.zeros(3, 9000)
    x[1, [8000, 4500]] = 5.0
    x[2, 8999] = 1.0
    d2t = torch.arange(9000) * 2
    for answer in (interpreted("draft_stats", x, 1.0, d2t), draft_stats(x, 1.0, d2t)):
        assert answer[0].tolist() == [0, 3 * 4500, 3 * 8999]


def test_naive_is_the_definition():
    x = logits(9, 63)[2:]
    stats = draft_stats(x, 0.5)
    distribution = torch.distributions.Categorical(logits=(x / 0.5).clamp(min=-1e6))
    torch.testing.assert_close(stats.entropy, distribution.entropy())
    torch.testing.assert_close(stats.max_probability, distribution.probs.amax(-1))
    assert torch.equal(stats.token, x.argmax(-1))


def test_a_row_of_nothing_says_so(interpreted):
    x = torch.full((1, 63), -torch.inf)
    for answer in (interpreted("draft_stats", x), draft_stats(x)):
        assert [float(value) for value in answer] == [0, 0, torch.inf, -torch.inf]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(63),), "logits"),
        ((torch.zeros(2, 0),), "logits"),
        ((torch.zeros(2, 3, dtype=torch.float16),), "float16"),
        ((torch.zeros(2, 3), 0.0), "temperature is 0.0"),
        ((torch.zeros(2, 3), torch.ones(3)), "temperature"),
        ((torch.zeros(2, 3), 1.0, torch.zeros(2, dtype=torch.int64)), "d2t"),
    ],
)
def test_errors_name_the_argument(arguments, named):
    with pytest.raises(ValueError, match=named):
        draft_stats(*arguments)
