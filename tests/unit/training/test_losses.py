import pytest
import torch

from vllm_edsd.training.losses import ROWS, head_loss


@pytest.mark.parametrize("rows", [1, 7, ROWS, ROWS + 3, 1000])
def test_equals_the_naive_loss_and_its_gradients(rows):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 12, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(63, 12, requires_grad=True)
    target = torch.randn(rows, 63).softmax(-1)
    naive = -0.3 * (target * (hidden @ weight.T).log_softmax(-1)).sum()
    wanted = torch.autograd.grad(naive, (hidden, weight))
    loss, guesses = head_loss(hidden, weight, target, 0.3)
    found = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, naive, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(guesses, (hidden @ weight.T).argmax(-1))


def test_no_rows_is_no_loss():
    weight = torch.randn(5, 3, requires_grad=True)
    loss, guesses = head_loss(torch.empty(0, 3), weight, torch.empty(0, 5), 1.0)
    loss.backward()
    assert loss == 0 and len(guesses) == 0
    assert torch.equal(weight.grad, torch.zeros(5, 3))
