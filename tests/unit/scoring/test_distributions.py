import pytest
import torch

from vllm_edsd.scoring.distributions import normalised, probabilities, race

LOGITS = torch.tensor([2.0, 1.0, -torch.inf, 0.0])


def test_temperature_top_k_and_top_p():
    chances = probabilities(LOGITS)
    torch.testing.assert_close(chances, LOGITS.double().softmax(-1))
    assert chances[2] == 0
    assert probabilities(LOGITS, 0).tolist() == [1, 0, 0, 0]
    assert probabilities(LOGITS, top_k=2).nonzero()[:, 0].tolist() == [0, 1]
    assert probabilities(LOGITS, top_p=float(chances[0])).nonzero()[:, 0].tolist() == [0]
    assert probabilities(LOGITS, top_p=float(chances[0]) + 0.01).nonzero()[:, 0].tolist() == [0, 1]
    assert probabilities(LOGITS, 0.5, 3, 0.99).sum() == pytest.approx(1)


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_values_out_of_range(options):
    with pytest.raises(ValueError, match="temperature"):
        probabilities(LOGITS, **options)


def test_a_race_is_a_sample():
    weights = torch.tensor([0.7, 0.0, 0.3]).double().expand(100_000, 3)
    wins = race(weights, torch.Generator().manual_seed(0)).argmax(1).bincount(minlength=3)
    assert wins[1] == 0
    assert wins[0] / 100_000 == pytest.approx(0.7, abs=0.005)


def test_nothing_left_falls_back():
    rows = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert normalised(rows, torch.tensor([0.5, 0.5])).tolist() == [[0.5, 0.5], [0.25, 0.75]]
