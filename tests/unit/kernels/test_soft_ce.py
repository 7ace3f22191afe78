import pytest
import torch

from vllm_edsd.kernels.soft_ce import LOSSES, naive, soft_ce

# Rows, vocabulary, losses: the interpreter takes seconds for each large one.
CASES = [
    (1, 151936, "hybrid"),
    (1, 49152, "tv"),
    (2, 32003, "kl"),
    *((1000, 63, loss) for loss in LOSSES),
    (7, 63, "hybrid"),
]


def sides(rows, vocabulary, dtype):
    """Logits of drafter and target, some -inf in both and some in the drafter's only where the target has none either."""
    generator = torch.Generator().manual_seed(rows + vocabulary)
    draft, target = (torch.randn(2, rows, vocabulary, generator=generator) * 3).to(dtype)
    target[:, ::5] = -torch.inf
    draft[:, ::10] = -torch.inf
    return draft.requires_grad_(), target


def reference(draft, target, mask, loss, upstream):
    losses = naive(draft, target, mask, loss)
    return losses.detach(), torch.autograd.grad(losses, draft, upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "vocabulary", "loss"), CASES)
def test_equals_naive_and_its_autograd(interpreted, rows, vocabulary, loss, dtype):
    draft, target = sides(rows, vocabulary, dtype)
    upstream = torch.rand(rows)
    found = interpreted("soft_ce", draft, target, None, loss, upstream=upstream)
    wanted = reference(draft, target, None, loss, upstream)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_masked_rows_are_zero_whatever_they_hold(interpreted, loss):
    draft, target = sides(9, 63, torch.float32)
    mask = torch.tensor([True, False, False] * 3)
    with torch.no_grad():
        draft[1], target[1], target[2] = torch.nan, -torch.inf, torch.nan
    upstream = torch.ones(9)
    found = interpreted("soft_ce", draft, target, mask, loss, upstream=upstream)
    wanted = reference(draft, target, mask, loss, upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for losses, gradients in (found, wanted):
        assert not losses[~mask].any() and not gradients[0][~mask].any()
        assert losses[mask].all() and gradients[0][mask].any(-1).all()
    nothing = interpreted("soft_ce", draft, target, torch.zeros(9, dtype=torch.bool), loss, upstream=upstream)
    assert not nothing[0].any() and not nothing[1][0].any()


def test_a_draft_that_excludes_what_the_target_says_costs_infinity(interpreted):
    draft, target = torch.zeros(1, 5000), torch.zeros(1, 5000)
    draft[0, 3], target[0, 4999] = -torch.inf, 20.0
    draft.requires_grad_()
    (losses, (gradient,)) = interpreted("soft_ce", draft, target, None, "kl", upstream=torch.ones(1))
    assert losses.isposinf().all() and naive(draft, target, None, "kl").isposinf().all()
    torch.testing.assert_close(gradient, reference(draft, target, None, "kl", torch.ones(1))[1][0])


def test_no_rows_is_no_loss(interpreted):
    draft, target = sides(0, 63, torch.float32)
    losses, (gradient,) = interpreted("soft_ce", draft, target, None, "kl", upstream=torch.empty(0))
    assert losses.shape == (0,) and gradient.shape == (0, 63)


def test_naive_is_the_definition():
    """Against torch's own losses, and lambda's gradient is not followed."""
    draft, target = sides(7, 63, torch.float64)
    draft, target = torch.randn(7, 63, requires_grad=True), torch.randn(7, 63)
    p, log_q = target.softmax(-1), draft.log_softmax(-1)
    kl = torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    tv = 1 - torch.minimum(p, log_q.exp()).sum(-1)
    weight = torch.exp(-3 * (1 - tv)).detach()
    for loss, wanted in (("kl", kl), ("tv", tv), ("hybrid", weight * kl + (1 - weight) * tv)):
        found = soft_ce(draft, target, None, loss)
        torch.testing.assert_close(found, wanted)
        gradients = [torch.autograd.grad(x.sum(), draft, retain_graph=True)[0] for x in (found, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    cross_entropy = torch.autograd.grad(-(p * log_q).sum(), draft)[0]
    torch.testing.assert_close(torch.autograd.grad(soft_ce(draft, target).sum(), draft)[0], cross_entropy)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 3), None, "reverse"), "reverse.*kl, tv, hybrid"),
        ((torch.zeros(2, 3), torch.zeros(2, 4)), "equal shapes"),
        ((torch.zeros(2, 0), torch.zeros(2, 0)), "draft"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).half()), "target.*float16"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2)), "mask"),
    ],
)
def test_errors_name_the_argument(arguments, named):
    with pytest.raises(ValueError, match=named):
        soft_ce(*arguments)
