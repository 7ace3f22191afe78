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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_program_takes_several_tiles(interpreted, dtype):
    """Five tiles, four of them in one program; rows that are nothing at first, in the end or at all, and one that grows."""
    x = logits(6, 9008, dtype)
    x[2, :5000], x[3, 5000:], x[4, :8192] = -torch.inf, -torch.inf, -torch.inf
    x[5] = 40 * torch.arange(9008) / 9008
    heat = torch.rand(6) + 0.5
    close(interpreted("draft_stats", x, heat, PROGRAMS=1, STEPS=4), naive(x, heat, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [[2088, 3075], [3548, 4103], [300, 8200], [2049, 2050], [2049, 3073]], ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_first_of_equals_wherever_they_are(interpreted, columns, steps, dtype):
    """In one lane or two of a tile, in two tiles of a program, in two programs; with aligned rows and without."""
    x = torch.zeros(2, 9009, dtype=dtype)
    x[:, columns] = 5.0
    for given in (x[:, :9008], x[:, :9008].contiguous()):
        assert interpreted("draft_stats", given, PROGRAMS=1, STEPS=steps)[0].tolist() == [min(columns)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_is_not_hidden_and_its_token_is_one_of_the_vocabulary(interpreted, dtype):
    x = logits(3, 5000, dtype)
    x[0, 4000], x[1] = torch.nan, torch.nan
    token, chance, entropy, total = interpreted("draft_stats", x, PROGRAMS=1)
    assert total.isnan().tolist() == [True, True, False] and (token < 5000).all()
    assert chance[:2].tolist() == [0, 0] and entropy[:2].tolist() == [torch.inf, torch.inf]


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
