import itertools

import pytest
import torch

from vllm_edsd.kernels.budget import LARGEST, budget, naive


def batch(requests, positions, seed=0, levels=0):
    """Chances and lengths; with `levels` the chances are coarse, so that many survivals are equal, 0 and 1 among them."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(requests, positions, generator=generator)
    if levels:
        chances = (chances * levels).round() / levels
    return chances, torch.randint(0, positions + 1, (requests,), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize(("requests", "positions"), [(1, 1), (1, 7), (7, 5), (63, 16), (1000, 7), (3, 0), (0, 4)])
def test_equals_naive(interpreted, requests, positions, levels):
    chances, lengths = batch(requests, positions, levels=levels)
    for tokens in (0, 1, requests, 2 * requests + 1, 10**6):
        for given in (tokens, torch.tensor([tokens], dtype=torch.int32)):
            survival, counts = interpreted("budget", chances, lengths, given)
            wanted = naive(chances, lengths, given)
            assert torch.equal(survival, wanted[0]) and torch.equal(counts, wanted[1])


@pytest.mark.parametrize("seed", range(5))
def test_no_other_counts_survive_longer(seed):
    chances, lengths = batch(3, 4, seed, levels=3 * (seed % 2))
    for tokens in range(13):
        survival, counts = budget(chances, lengths, tokens)
        expected = [
            sum(float(survival[request, :count].sum()) for request, count in enumerate(choice))
            for choice in itertools.product(range(5), repeat=3)
            if sum(choice) <= tokens
        ]
        found = sum(float(survival[request, : counts[request]].sum()) for request in range(3))
        assert found == pytest.approx(max(expected)) and counts.sum() <= tokens and (counts <= lengths).all()


def test_equal_survivals_go_to_the_earlier_position_then_request(interpreted):
    chances, lengths = torch.ones(3, 4), torch.tensor([4, 1, 4], dtype=torch.int32)
    for answer in (interpreted("budget", chances, lengths, 6), naive(chances, lengths, 6)):
        assert answer[1].tolist() == [3, 1, 2]


def test_what_cannot_be_reached_is_not_verified(interpreted):
    chances, lengths = torch.tensor([[0.5, 0.0, 1.0], [0.1, 0.1, 0.1]]), torch.tensor([3, 2], dtype=torch.int32)
    for answer in (interpreted("budget", chances, lengths, 6), naive(chances, lengths, 6)):
        assert answer[1].tolist() == [1, 2]


def test_a_batch_too_large_for_one_program_is_right_too(interpreted):
    chances, lengths = batch(LARGEST // 2 + 1, 2)
    assert torch.equal(interpreted("budget", chances, lengths, 5000)[1], naive(chances, lengths, 5000)[1])


def test_waits_for_no_result():
    """Meta tensors have no values to wait for."""
    chances, lengths = (tensor.to("meta") for tensor in batch(7, 5))
    _, counts = naive(chances, lengths, torch.empty(1, dtype=torch.int32, device="meta"))
    assert counts.shape == (7,)
    with pytest.raises(RuntimeError):
        counts.max().item()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(3), torch.zeros(3, dtype=torch.int32), 1), "chances"),
        ((torch.zeros(3, 2).double(), torch.zeros(3, dtype=torch.int32), 1), "chances.*float64"),
        ((torch.zeros(3, 2), torch.zeros(3), 1), "lengths"),
        ((torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), -1), "tokens is -1"),
        ((torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), torch.ones(1)), "tokens"),
    ],
)
def test_errors_name_the_argument(arguments, named):
    with pytest.raises(ValueError, match=named):
        budget(*arguments)
