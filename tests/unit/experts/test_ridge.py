import pytest
import torch

from vllm_edsd.experts.kept import keep
from vllm_edsd.experts.lost import lost
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.ridge import fit
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.experts.start import start
from vllm_edsd.experts.texts import Text


def texts(count=12, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [Text(torch.randint(2, 96, (1, 60), generator=generator), 45) for _ in range(count)]


@pytest.fixture
def planted(make_moe, monkeypatch):
    """Experts replaced by linear maps that all tokens share, so that what a layer loses is linear in x."""

    def make(matrices):
        model = make_moe("Olmoe")  # its weights are not renormalised: with fewer experts the output is smaller
        for layer, matrix in zip(routed_layers(model), matrices, strict=True):
            torch.nn.init.zeros_(layer.router.weight)  # even routing: each expert weighs 1/8

            def forward(states, ids, weights, matrix=matrix):
                return weights.sum(-1, keepdim=True) * (states @ matrix)

            monkeypatch.setattr(layer.block.experts, "forward", forward)
        return model

    return make


def left(model, hooks, counts):
    """By layer, the share of what is lost that stays lost on other texts; 1 where nothing is repaired."""
    sums = {index: torch.zeros(2) for index in hooks}
    with torch.no_grad():
        for item in keep(model, texts(4, seed=8), counts):
            for index, x, errors in lost(model, item, counts, "prefill"):
                if index in hooks:
                    repair = hooks[index](x)
                    sums[index] += torch.stack([(errors - repair).square().sum(), errors.square().sum()])
    return {index: float((missed / all_of_it).sqrt()) for index, (missed, all_of_it) in sums.items()}


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


ONE = dict.fromkeys(range(3), 1)


def test_a_planted_linear_error_is_repaired(planted):
    model = planted(0.1 * random(3, 64, 64))
    kept = keep(model, texts(), ONE)
    for hooks in (fit(model, kept, ONE, "prefill"), start(model, kept, ONE, "all", 64)):
        assert hooks.keys() == {0, 1, 2}
        assert max(left(model, hooks, ONE).values()) < 0.4  # the ridge keeps some of it


def test_a_planted_error_of_low_rank_is_repaired_by_that_rank(planted):
    model = planted(0.1 * random(3, 64, 3) @ random(3, 3, 64))
    kept = keep(model, texts(), ONE)
    hooks = start(model, kept, ONE, "prefill", 3)
    assert hooks.keys() == {0, 1}, "what the last layer makes of a prompt reaches nothing"
    assert all((hook.down.shape, hook.up.shape) == ((3, 64), (64, 3)) for hook in hooks.values())
    assert max(left(model, hooks, ONE).values()) < 0.3
    assert min(left(model, start(model, kept, ONE, "prefill", 1), ONE).values()) > 0.5  # the control: too low a rank


@pytest.mark.parametrize("mode", ["prefill", "all"])
def test_the_fit_makes_each_layers_error_smaller(family, mode, make_moe):
    model, counts = make_moe(family), {0: 1, 1: 4, 2: 1}
    fits = fit(model, keep(model, texts(), counts), counts, mode)
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
        missing = full - fewer
        assert (missing - fits[0](x)).square().mean() < 0.97 * missing.square().mean()


def test_the_gradients_choose_what_a_low_rank_repairs(planted):
    """Two errors of rank 1, the larger one in a direction that the rest of the model does not read."""
    inputs = torch.linalg.qr(random(64, 2))[0]
    large, small = 3 * torch.outer(inputs[:, 0], torch.eye(64)[0]), torch.outer(inputs[:, 1], torch.eye(64)[1])
    model = planted([large + small, torch.zeros(64, 64), torch.zeros(64, 64)])
    read = torch.ones(64)
    read[0] = 0.0
    for layer in model.model.layers[1:]:
        layer.input_layernorm.weight.mul_(read)
        layer.post_attention_layernorm.weight.mul_(read)
    model.model.norm.weight.mul_(read)
    counts = {0: 1, 1: 4, 2: 4}
    kept = keep(model, texts(), counts)
    (hook,) = start(model, kept, counts, "all", 1).values()
    towards = hook.up[:, 0].abs()
    assert towards[1] > 3 * towards[0]
