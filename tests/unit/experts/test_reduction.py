import pytest
import torch
import transformers

from vllm_edsd.errors import UserError
from vllm_edsd.experts.reduction import reduced, strongest
from vllm_edsd.experts.routed import routed_layers

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def hooks_left(model):
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)


@torch.inference_mode()
def logits(model, tokens):
    return model(tokens, use_cache=False).logits


def states(model, tokens, layer):
    """What `layer` hands on, [1, T, d]."""
    with torch.inference_mode():
        return model(tokens, use_cache=False, output_hidden_states=True).hidden_states[layer + 1]


def everywhere(tokens):
    return torch.ones_like(tokens, dtype=torch.bool)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_all_tokens_at_k_are_the_model_of_top_k(family, k, make_moe, tokens):
    model, built = make_moe(family), make_moe(family, top_k=k)
    text = tokens()
    with reduced(routed_layers(model), dict.fromkeys(range(3), k), everywhere(text)):
        found = logits(model, text)
    torch.testing.assert_close(found, logits(built, text), atol=2e-4, rtol=1e-4)
    assert (logits(model, text) - found).abs().max() > 0.05, "it does not matter what is left out"


def test_layers_without_an_entry_and_layers_at_all_are_left_alone(family, make_moe, tokens):
    model, text = make_moe(family), tokens()
    with reduced(routed_layers(model), {1: 4}, everywhere(text)):
        assert torch.equal(logits(model, text), logits(make_moe(family), text))


def test_a_layer_of_its_own(family, make_moe, tokens):
    model, text = make_moe(family), tokens()
    with reduced(routed_layers(model), {1: 2}, everywhere(text)):
        assert torch.equal(states(model, text, 0), states(make_moe(family), text, 0))
        assert not torch.equal(states(model, text, 1), states(make_moe(family), text, 1))


def test_other_rows_are_not_touched(family, make_moe, tokens):
    model, text = make_moe(family), tokens()
    rows = torch.arange(text.shape[1])[None] % 3 == 0
    before = states(model, text, 0)
    with reduced(routed_layers(model), dict.fromkeys(range(3), 1), rows):
        after = states(model, text, 0)
    assert torch.equal(after[~rows], before[~rows])
    assert (after[rows] != before[rows]).any(-1).all()


def test_rows_of_a_batch_are_told_apart(family, make_moe, tokens):
    model, text = make_moe(family), torch.cat([tokens(seed=1), tokens(seed=2)])
    rows = torch.tensor([[True], [False]]).expand_as(text)
    with reduced(routed_layers(model), dict.fromkeys(range(3), 1), rows):
        found = logits(model, text)
    for row, k in ((0, 1), (1, 4)):
        torch.testing.assert_close(
            found[row : row + 1], logits(make_moe(family, k), text[row : row + 1]), atol=2e-4, rtol=1e-4
        )


def test_nothing_is_left_behind(family, make_moe, make_hook, tokens):
    model, text = make_moe(family), tokens()
    before = logits(model, text)
    with (
        pytest.raises(ZeroDivisionError),
        reduced(routed_layers(model), dict.fromkeys(range(3), 1), everywhere(text), {1: make_hook()}),
    ):
        assert hooks_left(model) == 4
        assert not torch.equal(logits(model, text), before)
        raise ZeroDivisionError
    assert hooks_left(model) == 0
    assert torch.equal(logits(model, text), before)


def test_the_hook_is_added_beside_the_block_where_rows_are_chosen(family, make_moe, make_hook, tokens):
    model, text, hook = make_moe(family), tokens(), make_hook()
    rows = torch.arange(text.shape[1])[None] < 9
    layer = routed_layers(model)[1]
    seen = []

    def see():
        return layer.block.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))

    with torch.no_grad():
        handle = see()
        model(text, use_cache=False)
        handle.remove()
        with reduced([layer], {}, rows, {1: hook}):
            handle = see()  # behind the hook
            model(text, use_cache=False)
            handle.remove()
    (x, plain), (_, repaired) = seen
    assert torch.equal(repaired[~rows], plain[~rows])
    torch.testing.assert_close(repaired[rows], (plain + x @ hook.down.T @ hook.up.T)[rows])
    assert (repaired[rows] != plain[rows]).any(-1).all()


@pytest.mark.parametrize("renormalises", [True, False])
def test_strongest_by_hand(renormalises):
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.1], [0.3, 0.1, 0.1, 0.3]])
    kept = torch.tensor([[0.0, 0.4, 0.2, 0.0], [0.3, 0.0, 0.0, 0.3]])
    expected = kept * weights.sum(1, keepdim=True) / kept.sum(1, keepdim=True) if renormalises else kept
    torch.testing.assert_close(strongest(weights, 2, renormalises), expected)


def test_a_dense_model_is_refused(dense):
    with pytest.raises(UserError, match=r"LlamaForCausalLM has no MoE layers .* sparse MoE model is needed"):
        routed_layers(dense)


def test_dense_layers_of_a_sparse_model_are_passed_over():
    config = transformers.Qwen2MoeConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=32, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, mlp_only_layers=[1],
    )  # fmt: skip
    found = routed_layers(transformers.Qwen2MoeForCausalLM(config))
    assert [(layer.index, layer.top_k, layer.experts) for layer in found] == [(0, 2, 4), (2, 2, 4)]
