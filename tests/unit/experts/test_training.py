import pytest
import torch

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.experts.training import HookRecipe, divergence, keep, train

COUNTS = {0: 1, 1: 1, 2: 2}
RECIPE = HookRecipe(rank=16, epochs=24, texts_per_step=3, learning_rate=1e-2)


def quiet(*_):
    pass


@pytest.fixture(params=["prefill", "all"])
def mode(request):
    return request.param


def whole_pass(model, item, mode, hook, layer):
    """KL(full || reduced with the hook) over the answer, summed, by whole passes."""
    text = item.text
    with torch.inference_mode():
        full = model(text.tokens, use_cache=False).logits[0].log_softmax(-1)
        with reduced(routed_layers(model), COUNTS, text.rows(mode), {layer: hook} if hook else None):
            fewer = model(text.tokens, use_cache=False).logits[0].log_softmax(-1)
    return float((full.exp() * (full - fewer)).sum(1)[text.answer - 1 : -1].sum())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_untrained_hook_changes_nothing(layer, mode, make_moe, texts):
    model = make_moe()
    kept = keep(model, texts, COUNTS, mode, quiet)
    without = divergence(model, kept, COUNTS, mode, layer, None)
    assert without > 0.01
    assert divergence(model, kept, COUNTS, mode, layer, Hook(64, 16)) == without


def test_the_divergence_is_what_whole_passes_say(family, mode, make_moe, texts):
    model = make_moe(family)
    kept = keep(model, texts, COUNTS, mode, quiet)
    hook = Hook(64, 16)
    torch.nn.init.normal_(hook.up, std=0.3)
    for used in (None, hook):
        expected = sum(whole_pass(model, item, mode, used, 1) for item in kept) / sum(len(text.wanted) for text in texts)
        assert divergence(model, kept, COUNTS, mode, 1, used) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_training_repairs_and_leaves_the_model_alone(family, make_moe, texts):
    model, mode = make_moe(family), "all"
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = keep(model, texts, COUNTS, mode, quiet)
    losses: list[float] = []
    hook = train(model, kept, COUNTS, mode, 0, RECIPE, losses.append)
    assert len(losses) == RECIPE.epochs * len(texts)
    assert divergence(model, kept, COUNTS, mode, 0, hook) < 0.9 * divergence(model, kept, COUNTS, mode, 0, None)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_repaired_prompt_repairs_the_answer(make_moe, texts):
    model = make_moe()
    kept = keep(model, texts, COUNTS, "prefill", quiet)
    hook = train(model, kept, COUNTS, "prefill", 0, RECIPE)
    before, after = (divergence(model, kept, COUNTS, "prefill", 0, used) for used in (None, hook))
    assert after < 0.8 * before


def test_the_same_seed_trains_the_same(make_moe, texts):
    model = make_moe()
    kept = keep(model, texts, COUNTS, "prefill", quiet)
    recipe = RECIPE.model_copy(update={"epochs": 2})
    hooks = [train(model, kept, COUNTS, "prefill", 1, recipe.model_copy(update={"seed": seed})) for seed in (0, 0, 1)]
    assert torch.equal(hooks[0].up, hooks[1].up) and not torch.equal(hooks[0].up, hooks[2].up)


def test_a_hook_is_for_its_rows_alone():
    hook = Hook(6, 3)
    torch.nn.init.normal_(hook.up)
    x = torch.randn(2, 4, 6)
    rows = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]])
    expected = x + torch.nn.functional.silu(x @ hook.down.T) @ hook.up.T
    found = hook(x, rows)
    assert torch.equal(found[rows == 0], x[rows == 0])
    torch.testing.assert_close(found[rows == 1], expected[rows == 1])


def test_a_hook_keeps_the_dtype():
    hook = Hook(6, 3)
    assert hook(torch.randn(2, 6, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
