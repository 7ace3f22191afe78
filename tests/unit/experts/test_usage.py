import torch

from vllm_edsd.experts.usage import Usage

BEFORE = torch.tensor([[0, 1, 2], [0, 3, 4], [0, 1, 7]])


def counted(*steps):
    usage = Usage([2, 5], 8, torch.device("cpu"))
    for layer, before, after in steps:
        usage.count(layer, before, after)
    return usage.read()


def test_a_step_that_cuts_nothing():
    assert counted((5, BEFORE, [])) == {2: [0.0] * 6, 5: [3, 9, 9, 6, 6, 1]}


def test_a_step_that_cuts_all():
    assert counted((2, BEFORE, [BEFORE[:, :1]]))[2] == [3, 9, 3, 6, 1, 1]


def test_a_step_in_two_parts():
    """Two tokens keep one expert each, the third all three: 0, 3, and 0, 1, 7."""
    cut = torch.tensor([[0], [3]])
    assert counted((2, BEFORE, [cut, BEFORE[2:]]))[2] == [3, 9, 5, 6, 4, 1]


def test_steps_add_up_by_layer():
    found = counted((2, BEFORE, []), (5, BEFORE[:1], [BEFORE[:1, :2]]), (2, BEFORE[1:], []))
    assert found == {2: [5, 15, 15, 11, 11, 2], 5: [1, 3, 2, 3, 2, 1]}
