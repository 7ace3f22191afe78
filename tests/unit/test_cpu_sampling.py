import pytest
import torch

from vllm_edsd.engine import cpu_sampling

vllm_triton = pytest.importorskip("vllm.utils.cpu_triton_utils")
sampler = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler")


def given(dtype):
    return torch.tensor([0, 5, 7], dtype=dtype), torch.tensor([2, 2, 5], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_repeats_and_replaces(dtype):
    values, cumulative = given(dtype)
    output = torch.full((6,), 99, dtype=dtype)
    cpu_sampling.expand(output, values, cumulative, 0, 1)
    assert output.tolist() == [1, 1, 7, 7, 7, 99]


def test_takes_the_place_of_the_fallback(monkeypatch):
    monkeypatch.setattr(vllm_triton, "_expand_kernel_impl", None)
    cpu_sampling.install()
    assert vllm_triton._expand_kernel_impl is cpu_sampling.expand


def test_top_k_of_no_drafts_is_nothing(monkeypatch):
    """Each request's first step has none."""
    original = sampler.apply_top_k_only
    original = getattr(original, "__wrapped__", original)
    monkeypatch.setattr(sampler, "apply_top_k_only", original)
    none, k = torch.empty(0, 5), torch.empty(0, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"max\(\)"):
        sampler.apply_top_k_top_p_pytorch(none, k, None, allow_cpu_sync=True)
    cpu_sampling.install()
    cpu_sampling.install()
    assert sampler.apply_top_k_only.__wrapped__ is original
    assert sampler.apply_top_k_top_p_pytorch(none, k, None, allow_cpu_sync=True).shape == (0, 5)
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert sampler.apply_top_k_only(logits, torch.tensor([1])).isfinite().tolist() == [[False, True, False]]
