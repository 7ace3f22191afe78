import pytest
import torch
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.tensor_files import notes, opened


def read(path):
    with opened(path, "shard", "make it again") as file:
        return notes(file), file.get_tensor("a")


@pytest.fixture
def path(tmp_path):
    save_file({"a": torch.zeros(9)}, tmp_path / "file", metadata={"edsd": '{"of": "ours"}'})
    return tmp_path / "file"


def test_reads_tensors_and_notes(path):
    made, tensor = read(path)
    assert made == {"of": "ours"} and tensor.shape == (9,)


@pytest.mark.parametrize("left", [0, 5, -1])
def test_a_truncated_file_is_named_with_the_remedy(left, path):
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"^shard .*/file is damaged or of another kind \(.*\); make it again$"):
        read(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"edsd": "{"}])
def test_anothers_file_is_named_with_the_remedy(metadata, path):
    save_file({"a": torch.zeros(9)}, path, metadata=metadata)
    with pytest.raises(UserError, match=r"^shard .*/file is damaged or of another kind \(.*\); make it again$"):
        read(path)


def test_a_file_that_lacks_what_is_read_or_is_absent(path, tmp_path):
    save_file({"b": torch.zeros(9)}, path, metadata={"edsd": "{}"})
    with pytest.raises(UserError, match=r"does not contain tensor a.*; make it again"):
        read(path)
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "absent")
