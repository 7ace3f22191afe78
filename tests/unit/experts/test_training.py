import pytest
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.experts.kept import keep
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.experts.start import start
from vllm_edsd.experts.training import HookRecipe, mean_divergence, train

COUNTS = {0: 4, 1: 1, 2: 2}  # the first layer keeps all, so that its part of a pass is not computed again
RECIPE = HookRecipe(rank=2, epochs=40, texts_per_step=3, learning_rate=3e-3)


@pytest.fixture(params=["prefill", "all"])
def mode(request):
    return request.param


def whole_pass(model, item, mode, hooks):
    """KL(full || reduced with the hook) over the answer, summed, by whole passes."""
    text = item.text
    with torch.inference_mode():
        full = model(text.tokens, use_cache=False).logits[0].log_softmax(-1)
        with reduced(routed_layers(model), COUNTS, text.rows(mode), hooks):
            fewer = model(text.tokens, use_cache=False).logits[0].log_softmax(-1)
    return float((full.exp() * (full - fewer)).sum(1)[text.answer - 1 : -1].sum())


def test_the_divergence_is_what_whole_passes_say(family, mode, make_moe, make_hook, texts):
    model = make_moe(family)
    kept = keep(model, texts, COUNTS)
    for used in (None, {1: make_hook()}):
        expected = sum(whole_pass(model, item, mode, used) for item in kept) / sum(len(text.wanted) for text in texts)
        assert mean_divergence(model, kept, COUNTS, mode, used) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_training_repairs_and_leaves_the_model_alone(family, mode, make_moe, texts):
    model = make_moe(family)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = keep(model, texts, COUNTS)
    told: list[int] = []
    hooks = start(model, kept, COUNTS, mode, RECIPE.rank, lambda: told.append(1))
    assert len(told) == len(texts)
    assert hooks.keys() == ({1} if mode == "prefill" else {1, 2})  # what the last makes of a prompt reaches nothing
    without, fitted = (mean_divergence(model, kept, COUNTS, mode, used) for used in (None, hooks))
    losses: list[float] = []
    train(model, kept, COUNTS, mode, hooks, RECIPE, losses.append)
    assert len(losses) == RECIPE.epochs * len(texts)
    assert mean_divergence(model, kept, COUNTS, mode, hooks) < 0.95 * fitted < 0.95 * without
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_trains_the_same(make_moe, texts):
    model = make_moe()
    kept = keep(model, texts, COUNTS)
    found = []
    for seed in (0, 0, 1):
        hooks = start(model, kept, COUNTS, "prefill", 8)
        train(
            model, kept, COUNTS, "prefill", hooks, RECIPE.model_copy(update={"epochs": 2, "texts_per_step": 1, "seed": seed})
        )
        found.append(hooks[1].up)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_plan_that_cuts_nothing_needs_no_repair(make_moe, texts):
    with pytest.raises(UserError, match="leaves every layer all of its experts"):
        keep(make_moe(), texts, dict.fromkeys(range(3), 4))


def test_a_hook_keeps_the_dtype(make_hook):
    assert make_hook(3, hidden=6)(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
