import pytest
import torch
from torch import nn

from vllm_edsd.errors import UserError
from vllm_edsd.experts.profile import measure
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.routed import routed_layers


@torch.inference_mode()
def by_force(model, texts, mode, layer, k):
    """D_l(k) by its definition: two whole passes over every text."""
    layers, total, count = routed_layers(model), 0.0, 0
    for text in texts:
        full = model(text.tokens, use_cache=False).logits[0].log_softmax(-1)
        with reduced(layers, {layer: k}, text.rows(mode)):
            fewer = model(text.tokens, use_cache=False).logits[0].log_softmax(-1)
        where = slice(text.answer - 1, -1)
        total += float((full[where].exp() * (full[where] - fewer[where])).sum())
        count += text.tokens.shape[1] - text.answer
    return total / count


@pytest.mark.parametrize("mode", ["prefill", "all"])
def test_divergence_is_what_two_whole_passes_say(family, mode, make_moe, texts):
    model = make_moe(family)
    found = measure(model, texts, mode)
    assert [layer.layer for layer in found] == [0, 1, 2]
    for layer in found:
        assert len(layer.divergence) == 4 and layer.divergence[-1] == 0
        for k in (1, 3):
            expected = by_force(model, texts, mode, layer.layer, k)
            assert layer.divergence[k - 1] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found[0].divergence[0] > 1e-3
    assert not any(module._forward_hooks for module in model.modules())


def test_the_prompts_tokens_are_fewer_than_all(make_moe, texts):
    prefill, everything = (measure(make_moe(), texts, mode) for mode in ("prefill", "all"))
    assert prefill[0].divergence[0] != everything[0].divergence[0]
    # What the last layer makes of the prompt reaches nothing: its last token, which begins the answer, is left whole.
    # Not always to the last bit: a product with other rows beside these may round them differently.
    assert prefill[2].divergence[0] < 1e-8 < 1e-4 < everything[2].divergence[0]


def test_routing_is_counted_over_all_tokens(family, make_moe, texts):
    model = make_moe(family)
    chosen: dict[int, list] = {0: [], 1: [], 2: []}
    handles = [
        layer.on_routing(lambda weights, ids, place=layer.index: (chosen[place].append((weights, ids)), weights)[1])
        for layer in routed_layers(model)
    ]
    for text in texts:
        model(text.tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer in measure(model, texts, "prefill"):
        weights, ids = (torch.cat(parts) for parts in zip(*chosen[layer.layer], strict=True))
        assert len(ids) == 70
        counts = torch.tensor([(ids == expert).sum() for expert in range(8)])
        torch.testing.assert_close(torch.tensor(layer.load), counts / 280)
        assert sum(layer.load) == pytest.approx(1)
        shares = weights.sort(descending=True).values.cumsum(1) / weights.sum(1, keepdim=True)
        torch.testing.assert_close(torch.tensor(layer.weight_share), shares.mean(0))
        assert layer.weight_share == sorted(layer.weight_share) and layer.weight_share[-1] == pytest.approx(1)


def test_progress_is_told_by_layer_and_text(make_moe, texts):
    told = []
    measure(make_moe(), texts, "prefill", lambda: told.append(1))
    assert len(told) == 3 * len(texts)


def test_one_expert_per_token_leaves_nothing_to_measure(make_moe, texts):
    with pytest.raises(UserError, match="Qwen2MoeForCausalLM sends a token to one expert per layer; there are none"):
        measure(make_moe(top_k=1), texts, "prefill")


def test_layers_that_do_nothing_cost_nothing(make_moe, texts):
    model = make_moe()
    nn.init.zeros_(model.model.layers[1].mlp.experts.down_proj)
    found = measure(model, texts, "all")
    assert max(found[1].divergence) < 1e-6 < min(found[0].divergence[:3])
