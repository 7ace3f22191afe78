"""The delta on disk, and the checkpoint that it and the dense weights make."""

import copy

import pytest
import torch
import transformers

from vllm_edsd.errors import UserError
from vllm_edsd.experts import delta as deltas
from vllm_edsd.experts.carve import carve
from vllm_edsd.experts.checkpoint import assemble
from vllm_edsd.experts.student import MATRICES, student

EXPERTS, SHARED, TOP_K = 4, 16, 3
ROWS = torch.randint(2, 96, (4, 32), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def made(dense):
    """A student whose changes and routers are no longer what they started as, in numbers that bf16 has; and its delta."""
    carving = carve(dense, ROWS, EXPERTS, SHARED, seed=0)
    moe = student(copy.deepcopy(dense), carving, SHARED, TOP_K, rank=4, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in moe.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
                parameter.copy_(parameter.bfloat16())
    return moe, deltas.of(moe, carving, SHARED, TOP_K)


def test_a_delta_is_read_as_it_was_written(made, tmp_path):
    _, delta = made
    deltas.write(delta, tmp_path / "carving.safetensors")
    found = deltas.read(tmp_path / "carving.safetensors")
    assert (found.shared, found.top_k) == (SHARED, TOP_K)
    assert torch.equal(found.order, delta.order) and torch.equal(found.routers, delta.routers)
    for name in MATRICES:
        assert all(torch.equal(*pair) for pair in zip(found.changes[name], delta.changes[name], strict=True))


def test_the_checkpoint_says_what_the_student_says(dense, made, tmp_path):
    moe, delta = made
    deltas.write(delta, tmp_path / "carving.safetensors")
    whole = assemble(dense, deltas.read(tmp_path / "carving.safetensors"))
    assert type(whole) is transformers.Qwen2MoeForCausalLM
    whole.save_pretrained(tmp_path / "moe")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected, found, plain = (model(ROWS).logits.log_softmax(-1) for model in (moe, loaded, dense))
    # The checkpoint is bf16: the student's merged float32 matrices are rounded to 8 bits.
    off = (found - expected).abs().mean()
    assert off < 0.1
    assert (plain - expected).abs().mean() > 10 * off


def test_but_for_rounding_it_is_exact(dense, made, monkeypatch):
    moe, delta = made
    monkeypatch.setattr(transformers.Qwen2MoeForCausalLM, "to", lambda self, _: self)  # stays float32
    whole = assemble(dense, delta).eval()
    with torch.inference_mode():
        torch.testing.assert_close(whole(ROWS).logits, moe(ROWS).logits, atol=2e-3, rtol=1e-3)


def test_the_dense_model_is_not_changed(dense, made):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    assemble(dense, made[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


def spoil_end(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_header(path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path)


def spoil_tensors(path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file({"order": load_file(path)["order"]}, path, metadata=header)


@pytest.mark.parametrize("spoil", [spoil_end, spoil_header, spoil_tensors, lambda path: path.unlink()])
def test_a_damaged_or_missing_delta_is_refused(spoil, made, tmp_path):
    path = tmp_path / "carving.safetensors"
    deltas.write(made[1], path)
    spoil(path)
    with pytest.raises(UserError, match=r"carving .*carving\.safetensors is missing or damaged .*experts carve"):
        deltas.read(path)
