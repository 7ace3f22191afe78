import copy

import pytest
import torch
from torch import nn

from vllm_edsd.experts.carve import STRONG, carve
from vllm_edsd.experts.student import CarvedMlp, student

EXPERTS, SHARED = 4, 16  # of 80 neurons
ROWS = torch.randint(2, 96, (6, 32), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def carving(dense):
    return carve(dense, ROWS, EXPERTS, SHARED, seed=0)


def energies(model, place):
    """[tokens, I]: how strongly each neuron of a layer speaks, by definition."""
    mlp, seen = model.model.layers[place].mlp, []
    handle = mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(ROWS, use_cache=False)
    handle.remove()
    return torch.cat(seen).abs() * mlp.down_proj.weight.norm(dim=0)


def test_each_layer_keeps_all_its_neurons(carving):
    assert carving.order.shape == (3, 80) and carving.routers.shape == (3, EXPERTS, 64)
    for order in carving.order:
        assert order.sort().values.tolist() == list(range(80))


@pytest.mark.parametrize("place", range(3))
def test_shared_are_the_most_often_strong(place, dense, carving):
    energy = energies(dense, place)
    strong = torch.zeros_like(energy).scatter_(1, energy.topk(round(STRONG * 80), dim=1).indices, 1.0).mean(0)
    shared, rest = carving.order[place][:SHARED], carving.order[place][SHARED:]
    assert strong[shared].min() >= strong[rest].max()
    assert strong[shared].min() > 0


def test_the_same_seed_carves_the_same_and_leaves_the_model_alone(dense, carving):
    again = carve(dense, ROWS, EXPERTS, SHARED, seed=0)
    assert torch.equal(again.order, carving.order) and torch.equal(again.routers, carving.routers)
    assert not any(module._forward_pre_hooks for module in dense.modules())


def test_neurons_that_do_not_divide_are_refused(dense):
    with pytest.raises(ValueError, match="80 - 17 shared neurons do not divide into 4 experts"):
        carve(dense, ROWS, EXPERTS, 17, seed=0)


def planted(dense):
    """A model whose every MLP has four groups of 16 neurons, each strong for a quarter of the tokens, and 16 for all.

    Returns it with the groups of each neuron, 4 for the last, shuffled.
    """
    model = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(4)
    group = torch.arange(80).div(16, rounding_mode="floor")[torch.randperm(80, generator=generator)]
    layer = model.model.layers[0]
    with torch.no_grad():
        # The MLP sees the token's own embedding: one of four directions, by the token.
        model.model.embed_tokens.weight.zero_()
        for token in range(96):
            model.model.embed_tokens.weight[token, token % 4] = 1
        layer.post_attention_layernorm.weight.fill_(1)
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.gate_proj.weight.zero_()
        layer.mlp.up_proj.weight.zero_()
        for neuron, of in enumerate(group.tolist()):
            # Uneven strength, so that a token's strongest tenth are some of its group's and some of those for all.
            strength = 1 + torch.rand(4, generator=generator)
            layer.mlp.gate_proj.weight[neuron, :4] = strength if of == 4 else strength * (torch.arange(4) == of)
            layer.mlp.up_proj.weight[neuron] = layer.mlp.gate_proj.weight[neuron]
        layer.mlp.down_proj.weight.fill_(0.1)
    model.model.layers = nn.ModuleList([layer])
    return model, group


def test_neurons_that_are_strong_together_become_an_expert(dense, monkeypatch):
    monkeypatch.setattr("vllm_edsd.experts.carve.STRONG", 0.4)  # the group's 16 and the 16 for all
    model, group = planted(dense)
    found = carve(model, ROWS, EXPERTS, SHARED, seed=0)
    kinds = group[found.order[0]]
    assert set(kinds[:SHARED].tolist()) == {4}
    experts = [set(part.tolist()) for part in kinds[SHARED:].split(16)]
    assert sorted(map(tuple, experts)) == [(0,), (1,), (2,), (3,)]
    # And each token's router names the expert that is strong for it.
    states = torch.eye(64)[:4]
    assert (states @ found.routers[0].T).argmax(1).tolist() == [experts.index({of}) for of in range(4)]


@torch.inference_mode()
def test_all_experts_with_even_routing_are_the_dense_mlp(dense, carving):
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))
    for place, layer in enumerate(dense.model.layers):
        even = torch.zeros_like(carving.routers[place])
        carved = CarvedMlp(layer.mlp, carving.order[place], even, SHARED, EXPERTS, rank=4, seed=0)
        torch.testing.assert_close(carved(x), layer.mlp(x), atol=1e-4, rtol=1e-5)
        fewer = CarvedMlp(layer.mlp, carving.order[place], even, SHARED, EXPERTS - 1, rank=4, seed=0)
        assert (fewer(x) - layer.mlp(x)).abs().max() > 0.01


@torch.inference_mode()
def test_the_routers_that_are_fitted_start_nearly_even(dense, carving):
    moe = student(copy.deepcopy(dense), carving, SHARED, EXPERTS, rank=4, seed=0)
    error = moe(ROWS).logits.log_softmax(-1) - dense(ROWS).logits.log_softmax(-1)
    assert 0 < error.abs().mean() < 0.1


@torch.inference_mode()
def test_a_low_rank_change_starts_at_nothing_and_is_what_is_trained(dense, carving):
    moe = student(copy.deepcopy(dense), carving, SHARED, EXPERTS, rank=4, seed=0)
    matrix, order = moe.model.layers[1].mlp.up_proj, carving.order[1]
    x = torch.randn(5, 64)
    weight = dense.model.layers[1].mlp.up_proj.weight[order]
    assert torch.equal(matrix(x), x @ weight.T)
    matrix.up.normal_()
    torch.testing.assert_close(matrix(x), x @ (weight + matrix.up @ matrix.down).T, atol=1e-4, rtol=1e-4)
    trained = {name.split(".mlp.")[1] for name, parameter in moe.named_parameters() if parameter.requires_grad}
    changes = {f"{name}_proj.{part}" for name in ("gate", "up", "down") for part in ("down", "up")}
    assert trained == {"router", *changes}
