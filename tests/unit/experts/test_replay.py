import pytest
import torch

from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.replay import go_on, predictions, record
from vllm_edsd.experts.routed import routed_layers


@pytest.fixture
def model(family, make_moe):
    return make_moe(family)


@torch.inference_mode()
def test_predictions_are_the_models_own(model, tokens):
    text = tokens()
    expected = model(text, use_cache=False).logits[0].float().log_softmax(-1)
    passed = record(model, text)
    torch.testing.assert_close(predictions(model, passed.inputs[-1], slice(None)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predictions(model, passed.inputs[-1], slice(3, 7)), expected[3:7], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_what_is_recorded_is_what_the_layers_were_given(model, tokens):
    states = model(tokens(), use_cache=False, output_hidden_states=True).hidden_states
    passed = record(model, tokens())
    assert len(passed.inputs) == len(states) == 4
    for mine, theirs in zip(passed.inputs[:-1], states, strict=False):
        assert torch.equal(mine, theirs)
    assert torch.equal(model.model.norm(passed.inputs[-1]), states[-1])


@torch.inference_mode()
@pytest.mark.parametrize("layer", range(4))
def test_going_on_from_any_layer_ends_as_the_pass_did(layer, model, tokens):
    passed = record(model, tokens())
    assert torch.equal(go_on(model, passed, layer), passed.inputs[-1])
    several = go_on(model, passed, layer, copies=3)
    torch.testing.assert_close(several, passed.inputs[-1].expand(3, -1, -1), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("layer", range(3))
def test_going_on_goes_through_what_the_layers_do_now(layer, model, tokens):
    text = tokens()
    layers, rows = routed_layers(model), torch.ones(1, text.shape[1], dtype=torch.bool)
    passed = record(model, text)
    with reduced(layers, {layer: 1}, rows):
        expected = record(model, text).inputs[-1]
        found = go_on(model, passed, layer)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, passed.inputs[-1])


def test_a_failed_pass_leaves_no_hook(model):
    with pytest.raises(IndexError):
        record(model, torch.tensor([[9999]]))
    assert not any(module._forward_pre_hooks for module in model.modules())
