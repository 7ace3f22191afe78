import pytest
import torch

from vllm_edsd.experts.reduction import add_output, reduced
from vllm_edsd.experts.ridge import fit
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.experts.texts import Text


def texts():
    generator = torch.Generator().manual_seed(7)
    return [Text(torch.randint(2, 96, (1, 60), generator=generator), 45) for _ in range(12)]


def test_a_planted_linear_error_is_recovered(make_moe, monkeypatch):
    """Experts replaced by linear maps that all tokens share, so that what is lost is linear in x, and known."""
    model = make_moe("Olmoe")  # its weights are not renormalised: with fewer experts the output is smaller
    lost = {}
    torch.manual_seed(3)
    for layer in routed_layers(model):
        torch.nn.init.zeros_(layer.router.weight)  # even routing: each expert weighs 1/8
        matrix = torch.randn(64, 64) * 0.1
        lost[layer.index] = 3 / 8 * matrix

        def forward(states, ids, weights, matrix=matrix):
            return weights.sum(-1, keepdim=True) * (states @ matrix)

        monkeypatch.setattr(layer.block.experts, "forward", forward)
    fits = fit(model, texts(), dict.fromkeys(range(3), 1), "prefill")
    assert fits.keys() == lost.keys()
    for index, matrix in fits.items():
        assert (matrix - lost[index]).norm() < 0.25 * lost[index].norm()  # the ridge shrinks it a little


@pytest.mark.parametrize("mode", ["prefill", "all"])
def test_the_fit_makes_each_layers_error_smaller(family, mode, make_moe):
    model, counts = make_moe(family), {0: 1, 1: 4, 2: 1}
    fits = fit(model, texts(), counts, mode)
    assert fits.keys() == {0, 2}, "a layer with all of its experts needs none"
    layers = routed_layers(model)
    assert not any(module._forward_hooks for module in model.modules())
    given = []
    handle = layers[0].block.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.inference_mode():
        for text in texts():
            model(text.tokens[:, : text.answer], use_cache=False)
        handle.remove()
        x = torch.cat(given, dim=1)
        full = layers[0].block(x)
        with reduced(layers, counts, torch.ones(1, x.shape[1], dtype=torch.bool)):
            fewer = layers[0].block(x)
        assert (full - fewer - x @ fits[0]).square().mean() < 0.97 * (full - fewer).square().mean()


def test_what_is_added_is_added_where_it_is_asked_for(make_moe, tokens):
    model = make_moe()
    layers, text = routed_layers(model), tokens(length=10)
    rows = torch.arange(10)[None] < 4
    fits = {1: torch.randn(64, 64)}
    given = []
    handle = layers[1].block.register_forward_hook(lambda _, args, output: given.append((args[0], output)))
    with torch.inference_mode():
        model(text, use_cache=False)
        handles = add_output(layers, fits, rows)
        layers[1].block.register_forward_hook(lambda _, args, output: given.append((args[0], output)))
        model(text, use_cache=False)
    handle.remove()
    assert len(handles) == 1
    x, plain = given[0]
    _, changed = given[2]
    torch.testing.assert_close(changed[0, :4], (plain + x @ fits[1])[0, :4])
    assert torch.equal(changed[0, 4:], plain[0, 4:])
