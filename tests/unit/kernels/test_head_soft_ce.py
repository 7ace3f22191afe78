import pytest
import torch

from vllm_edsd.kernels.head_soft_ce import ROWS, head_soft_ce, naive
from vllm_edsd.kernels.soft_ce import LOSSES
from vllm_edsd.training.losses import head_loss


def inputs(rows, seed=0):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(rows, 12, requires_grad=True), torch.randn(63, 12, requires_grad=True)
    return hidden, weight, torch.randn(rows, 63), torch.rand(rows) > 0.3


def reference(hidden, weight, target, mask, loss):
    total, guesses = naive(hidden, weight, target, 0.3, mask, loss)
    return total.detach(), guesses, torch.autograd.grad(total * 2, (hidden, weight))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [1, 7, ROWS["cpu"] + 3])
def test_equals_naive_and_its_autograd(interpreted, rows, loss):
    hidden, weight, target, mask = inputs(rows)
    wanted, guesses, gradients = reference(hidden, weight, target, mask, loss)
    here, said = head_soft_ce(hidden, weight, target, 0.3, mask, loss)
    torch.testing.assert_close(torch.autograd.grad(here * 2, (hidden, weight)), gradients, rtol=1e-4, atol=1e-5)
    total, found = interpreted("head_soft_ce", hidden, weight, target, 0.3, mask, loss, upstream=torch.tensor(2.0))
    torch.testing.assert_close((here.detach(), total), (wanted, wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)
    assert torch.equal(said, guesses)


def test_differs_from_the_trainers_loss_by_the_targets_entropy_alone():
    hidden, weight, target, _ = inputs(40)
    p = target.softmax(-1)
    wanted, guesses = head_loss(hidden, weight, p, 0.3)
    entropy = -(p * p.log()).sum() * 0.3
    found, said = head_soft_ce(hidden, weight, target, 0.3)
    torch.testing.assert_close(found, wanted - entropy, rtol=1e-5, atol=1e-4)
    gradients = [torch.autograd.grad(loss, (hidden, weight)) for loss in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert torch.equal(said, guesses)


def test_no_rows_is_no_loss(interpreted):
    hidden, weight, target, mask = inputs(0)
    total, (_, gradient) = interpreted("head_soft_ce", hidden, weight, target, 0.3, mask, "kl", upstream=torch.tensor(1.0))
    assert total == 0 and not gradient.any()


def test_errors_name_the_argument():
    hidden, weight, target, _ = inputs(4)
    with pytest.raises(ValueError, match="equal shapes"):
        head_soft_ce(hidden, weight, target[:3], 1.0)
