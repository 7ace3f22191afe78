import pytest
import torch

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.errors import UserError
from vllm_edsd.training.export import export
from vllm_edsd.training.target import TargetEnds


def config(target, drafter, size):
    return DrafterConfig.of_target(TargetEnds.read(target).config, "tiny-target", drafter, (1, 2, 3), size)


@pytest.mark.parametrize("drafter", factory.KINDS)
@pytest.mark.parametrize("size", [50, 128])
def test_export_and_load_agree(drafter, size, tiny_target, tmp_path):
    shape = config(tiny_target, drafter, size)
    made = factory.build(shape, torch.randperm(128)[:size].sort().values)
    export(shape, made.state_dict(), tmp_path / "drafter", {})
    read = factory.load(tmp_path / "drafter")
    assert read.config == shape
    assert torch.equal(read.draft_ids, made.draft_ids)
    assert torch.equal(read.t2d, made.t2d)
    for name, weight in made.named_parameters():
        torch.testing.assert_close(read.get_parameter(name), weight, rtol=1e-2, atol=1e-2)


def test_unknown_drafter(tiny_target):
    shape = config(tiny_target, "eagle9", 50)
    with pytest.raises(UserError, match=r"unknown drafter 'eagle9'; known: edsd, edsd-normed, eagle3, eagle3\.1"):
        factory.build(shape, torch.arange(50))
