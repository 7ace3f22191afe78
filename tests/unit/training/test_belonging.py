import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_edsd.errors import UserError
from vllm_edsd.training.belonging import check_data, fingerprint
from vllm_edsd.training.features import collect
from vllm_edsd.training.samples import read_samples, write_shard


def check(data, target, vocab_size=128):
    check_data(data, read_samples(data), target, vocab_size, torch.device("cpu"))


@pytest.fixture
def other(tiny_target, tmp_path):
    """A target of the same shape and name that says other things, with a tokenizer."""
    folder = shutil.copytree(tiny_target, tmp_path / "other" / tiny_target.name)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * torch.randn(64, generator=torch.Generator().manual_seed(3))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def marked(tiny_data, tiny_target, tmp_path):
    """The data, with its target's fingerprint in every shard."""
    for path in sorted(tiny_data.glob("*.safetensors")):
        samples = read_samples(tiny_data)
        write_shard(tmp_path / "marked" / path.name, samples, {"fingerprint": fingerprint(tiny_target)})
    return tmp_path / "marked"


def test_data_of_the_target_passes_with_and_without_a_fingerprint(marked, tiny_data, tiny_target):
    check(marked, tiny_target)
    check(tiny_data, tiny_target)


def test_another_targets_shard_is_refused_by_fingerprint(marked, tiny_target, other):
    mine, its = (fingerprint(place)["target"] for place in (tiny_target, other))
    with pytest.raises(UserError, match=f"samples-00000.safetensors was made with target {mine}, but that of .* is {its}"):
        check(marked, other)
    # One foreign shard among its own is enough.
    write_shard(marked / "samples-00001.safetensors", read_samples(marked)[:5], {"fingerprint": fingerprint(other)})
    with pytest.raises(UserError, match=f"samples-00001.safetensors was made with target {its}"):
        check(marked, tiny_target)


def test_another_tokenizer_is_refused_by_fingerprint(marked, tiny_target, tmp_path):
    folder = shutil.copytree(tiny_target, tmp_path / "same-weights")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="was made with tokenizer -, but that of"):
        check(marked, folder)


def test_unmarked_data_is_refused_by_its_vocabulary_or_its_answers(tiny_data, tiny_target, other):
    with pytest.raises(UserError, match="vocabulary of 100: the data is of another tokenizer"):
        check(tiny_data, tiny_target, vocab_size=100)
    with pytest.raises(UserError, match=r"would have written only \d+% of the greedy answers"):
        check(tiny_data, other)


def test_features_of_other_data_under_the_same_name_are_refused(tiny_data, tiny_target, tmp_path):
    def features(data):
        return collect(tiny_target, data, tmp_path / "features", (1,), torch.device("cpu"), lambda _: None)

    data = shutil.copytree(tiny_data, tmp_path / "data")
    features(data)
    features(data)
    write_shard(data / "samples-00001.safetensors", read_samples(data)[:12], {})
    with pytest.raises(UserError, match=r"has features of shard .* give another `features` folder"):
        features(data)


def test_damaged_features_are_named(tiny_data, tiny_target, tmp_path):
    def features():
        return collect(tiny_target, tiny_data, tmp_path, (1,), torch.device("cpu"), lambda _: None)

    features()
    path = tmp_path / "features-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"features-00001\.safetensors is damaged .*; delete it and train again"):
        features()
