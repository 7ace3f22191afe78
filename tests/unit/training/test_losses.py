import pytest
import torch

from vllm_edsd.kernels import soft_ce
from vllm_edsd.training.losses import LOSSES, ROWS, head_loss


def naive(logits, wanted, loss):
    """The formulas of the module's docstring, row by row."""
    if loss in ("ce", "ce_text"):
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    log_q = logits.log_softmax(-1)
    p, q = wanted, log_q.exp()
    alpha = torch.minimum(p, q).sum(-1)
    forward = (p * (p.log() - log_q)).sum(-1)
    kept = torch.exp(-3 * alpha.detach())
    return {
        "kl": -(p * log_q).sum(-1),
        "reverse_kl": (q * (log_q - p.log())).sum(-1),
        "tv": 1 - alpha,
        "hybrid": kept * forward + (1 - kept) * (1 - alpha),
    }[loss]


def inputs(rows, loss, dtype=torch.float64):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(63, 12, dtype=dtype, requires_grad=True)
    distribution = LOSSES[loss].wanted == "distribution"
    wanted = torch.randn(rows, 63, dtype=dtype).softmax(-1) if distribution else torch.randint(0, 63, (rows,))
    return hidden, weight, wanted


@pytest.mark.parametrize("rows", [1, 7, ROWS["cpu"], 2 * ROWS["cpu"] + 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_naive_loss_and_its_gradients(loss, rows):
    hidden, weight, wanted = inputs(rows, loss)
    logits = hidden @ weight.T
    expected = 0.3 * naive(logits, wanted, loss).sum()
    gradients = torch.autograd.grad(2 * expected, (hidden, weight))
    found, guesses = head_loss(hidden, weight, wanted, 0.3, loss)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(2 * found, (hidden, weight)), gradients, rtol=1e-9, atol=1e-10)
    assert torch.equal(guesses, logits.argmax(-1))


@pytest.mark.parametrize("loss", soft_ce.LOSSES)
def test_agrees_with_the_kernels_definition(loss):
    hidden, weight, _ = inputs(40, loss, torch.float32)
    target = torch.randn(40, 63)
    expected = soft_ce.naive(hidden @ weight.T, target, None, loss).sum()
    found, _ = head_loss(hidden, weight, target.softmax(-1), 1.0, loss)
    entropy = torch.distributions.Categorical(logits=target).entropy().sum() if loss == "kl" else 0.0
    torch.testing.assert_close(found - entropy, expected, rtol=1e-5, atol=1e-4)
    gradients = [torch.autograd.grad(value, (hidden, weight)) for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_precision_is_near_and_keeps_nothing_of_the_vocabularys_size(loss):
    hidden, weight, wanted = inputs(300, loss, torch.float32)
    exact, _ = head_loss(hidden, weight, wanted, 1 / 300, loss)
    low = wanted.bfloat16() if wanted.is_floating_point() else wanted
    found, _ = head_loss(hidden.bfloat16(), weight, low, 1 / 300, loss)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.01)
    assert sorted(tuple(kept.shape) for kept in found.grad_fn.saved_tensors) == [(63, 12), (300, 12)]


@pytest.mark.parametrize("loss", LOSSES)
def test_chances_of_nothing_are_finite(loss):
    """A target as sure as bfloat16 can say, and a drafter that is as sure of another token."""
    hidden, weight = torch.eye(3, requires_grad=True), (200 * torch.eye(3)).requires_grad_()
    certain = torch.eye(3).roll(1, 0)
    wanted = certain if LOSSES[loss].wanted == "distribution" else certain.argmax(-1)
    found, _ = head_loss(hidden, weight, wanted, 1.0, loss)
    assert all(torch.isfinite(value).all() for value in (found, *torch.autograd.grad(found, (hidden, weight))))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_rows_is_no_loss(loss):
    _, weight, wanted = inputs(0, loss)
    found, guesses = head_loss(torch.empty(0, 12, dtype=torch.float64), weight, wanted, 1.0, loss)
    found.backward()
    assert found == 0 and len(guesses) == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))
