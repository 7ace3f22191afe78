import pytest
import torch
from transformers import LlamaConfig

from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.edsd.core import EdsdLayer
from vllm_edsd.kernels.edfuse import edfuse, naive
from vllm_edsd.kernels.edfuse_triton import PROGRAMS


def inputs(rows, hidden, width, dtype=torch.float32):
    """State, embedding, norm, gate, up, down; products of about unit size."""
    torch.manual_seed(hidden)
    shapes = ((*rows, hidden), (*rows, hidden), (hidden,), (width, hidden), (width, hidden), (hidden, width))
    tensors = [torch.randn(shape) / (shape[-1] ** 0.5 if place > 2 else 1) for place, shape in enumerate(shapes)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def distance(found, wanted):
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-9))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize(
    ("rows", "hidden", "width"), [((1,), 63, 129), ((2, 7), 576, 1536), ((1000,), 16, 9), ((5,), 3000, 8)]
)
def test_equals_naive_and_its_autograd(interpreted, rows, hidden, width, dtype, bound):
    x = inputs(rows, hidden, width, dtype)
    upstream = torch.randn(*rows, hidden).to(dtype)
    found, gradients = interpreted("edfuse", *x, upstream=upstream)
    exact = [tensor.detach().float().requires_grad_() for tensor in x]
    wanted = naive(*exact, 1e-6)
    assert found.dtype == dtype and distance(found, wanted) < bound
    for name, gradient, want in zip(
        ("state", "embedding", "norm", "gate", "up", "down"),
        gradients,
        torch.autograd.grad(wanted, exact, upstream.float()),
        strict=True,
    ):
        assert gradient.dtype == dtype and distance(gradient, want) < bound, name


def test_rows_that_share_a_program(interpreted):
    """The norm weight's gradient is summed by at most PROGRAMS programs, each over every PROGRAMS-th row."""
    x = inputs((PROGRAMS + 2,), 1025, 1)
    _, gradients = interpreted("edfuse", *x, upstream=torch.ones(PROGRAMS + 2, 1025))
    wanted = torch.autograd.grad(naive(*x, 1e-6).sum(), x)
    assert all(distance(gradient, want) < 1e-5 for gradient, want in zip(gradients, wanted, strict=True))


def test_the_bound_can_fail(interpreted):
    x = inputs((7,), 63, 129)
    found = interpreted("edfuse", *x[:2], x[2] * 1.001, *x[3:], upstream=torch.ones(7, 63))[0]
    assert distance(found, naive(*x, 1e-6)) > 1e-5


def test_a_frozen_embedding_gets_no_gradient(interpreted):
    x = inputs((7,), 63, 129)
    wanted = torch.autograd.grad(naive(*x, 1e-6).sum(), x)
    x[1] = x[1].detach()
    _, gradients = interpreted("edfuse", *x, upstream=torch.ones(7, 63))
    torch.testing.assert_close(gradients, wanted[:1] + wanted[2:], rtol=1e-4, atol=1e-4)


def test_is_the_drafters_fusion():
    target = LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    config = DrafterConfig.of_target(target, "tiny", "edsd", (1, 2), 64)
    layer = EdsdLayer(config)
    state, embedding = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    fusion = layer.fusion
    weights = (layer.input_layernorm.weight, fusion.state_proj.weight, fusion.token_proj.weight, fusion.down_proj.weight)
    found = edfuse(state, embedding, *weights, layer.input_layernorm.eps)
    torch.testing.assert_close(found, layer.fuse(state, embedding)[0])


def test_no_rows_give_no_rows(interpreted):
    found, gradients = interpreted("edfuse", *inputs((0,), 8, 8), upstream=torch.empty(0, 8))
    assert found.shape == (0, 8) and not any(gradient.any() for gradient in gradients)


def test_errors_name_the_argument():
    x = inputs((2,), 8, 16)
    for place, name in enumerate(("embedding", "norm", "gate", "up", "down"), 1):
        wrong = [tensor.bfloat16() if spot == place else tensor for spot, tensor in enumerate(x)]
        with pytest.raises(ValueError, match=f"^{name} is torch.bfloat16"):
            edfuse(*wrong)
    with pytest.raises(ValueError, match="up"):
        edfuse(*x[:4], x[5], x[5])
