import pytest
import torch

from vllm_edsd.engine import cpu_sampling

vllm_triton = pytest.importorskip("vllm.utils.cpu_triton_utils")


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
