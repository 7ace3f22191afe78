import torch

from vllm_edsd.training.evaluation import walk


def test_walk_accepts_runs_and_moves_past_the_bonus_token():
    matches = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    # from 0: two accepted, then chain 3: its first token fails, then chain 4: all three
    assert walk(matches) == [2, 0, 3]


def test_walk_over_nothing():
    assert walk(torch.zeros(0, 3, dtype=torch.bool)) == []
