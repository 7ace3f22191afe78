import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vllm_edsd.drafters import checkpoint
from vllm_edsd.drafters.checkpoint import check, read_shapes, resolve
from vllm_edsd.drafters.stated import Stated
from vllm_edsd.drafters.target import TargetShape, read_target
from vllm_edsd.errors import UserError


def test_resolves_bundled_name_before_path(make_drafter, monkeypatch, tmp_path):
    folder = make_drafter("tiny-edsd")
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path)
    assert resolve("tiny-edsd") == folder
    assert checkpoint.bundled() == ["tiny-edsd"]


def test_resolves_path(make_drafter):
    folder = make_drafter()
    assert resolve(str(folder)) == folder


def test_unknown_drafter_lists_bundled_names(make_drafter, monkeypatch, tmp_path):
    make_drafter("tiny-edsd")
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path)
    with pytest.raises(UserError, match=r"'smolm2'.*tiny-edsd"):
        resolve("smolm2")


def test_accepts_a_fitting_drafter_and_returns_its_config(make_drafter, make_target):
    config = check(make_drafter(), read_target(make_target()))
    assert config["edsd"]["drafter"] == "eagle3"


def test_third_party_drafter_is_judged_by_what_it_states(make_drafter, make_target):
    target = read_target(make_target())
    ids = "eagle_aux_hidden_state_layer_ids"
    bare = make_drafter("bare", **{"edsd": None, "target_hidden_size": None, ids: None, "eagle_config": {ids: [1, 2, 3]}})
    assert Stated.model_validate(check(bare, target)).layer_ids == [1, 2, 3]
    with pytest.raises(UserError, match="vocab_size 999"):
        check(make_drafter("other", edsd=None, vocab_size=999), target)


BIG = {"format": 1, "drafter": "eagle3", "target": "big", "target_num_hidden_layers": 9}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"target_hidden_size": 128}, r"hidden_size 128, but .*target has 64"),
        ({"vocab_size": 300}, r"vocab_size 300, but .*target has 256"),
        ({"edsd": BIG}, r"num_hidden_layers 9, but .* has 4 \(.* for big\)"),
        ({"edsd": None, "eagle_aux_hidden_state_layer_ids": [1, 5]}, r"reads target layer 5, but .* num_hidden_layers 4"),
    ],
    ids=["hidden-size", "vocabulary", "layer-count", "layer-id"],
)
def test_refuses_a_drafter_made_for_something_else(changes, told, make_drafter, make_target):
    with pytest.raises(UserError, match=told):
        check(make_drafter(**changes), read_target(make_target()))


def edit(folder, **changes):
    """Changes keys of a drafter's config.json (None removes one) and nothing else."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 32}, r"has shape \[64, 192\], but config\.json describes \[32, 96\]"),
        ({"intermediate_size": 64}, r"mlp\.down_proj\.weight has shape \[64, 128\], but config\.json describes \[64, 64\]"),
        ({"num_attention_heads": 2}, r"o_proj\.weight has shape \[64, 64\], but config\.json describes \[64, 32\]"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, r"fc\.weight has shape \[64, 192\], but .* \[64, 128\]"),
        ({"draft_vocab_size": 97}, r"d2t has shape \[96\], but config\.json describes \[97\]"),
        ({"vocab_size": 300}, r"t2d has shape \[256\], but config\.json describes \[300\]"),
        ({"vocab_size": 96}, r"d2t has shape \[96\], but config\.json describes None"),
        (
            {"architectures": ["LlamaForCausalLM"]},
            r"architectures is \['LlamaForCausalLM'\], but a drafter of kind eagle3 has",
        ),
        ({"architectures": None}, r"architectures is None, but a drafter of kind eagle3 has \['LlamaForCausalLMEagle3'\]"),
        (
            {"edsd": BIG | {"drafter": "edsd"}},
            r"architectures is \['LlamaForCausalLMEagle3'\], but .* edsd has",
        ),
        ({"edsd": BIG | {"drafter": "eagle3.1"}}, r"fc_norm is None, but a drafter of kind eagle3\.1 has True"),
        ({"edsd": BIG | {"drafter": "eagle9"}}, r"unknown drafter 'eagle9'; known: edsd"),
    ],
    ids=str,
)
def test_refuses_an_export_whose_configuration_was_edited(changes, told, make_drafter):
    with pytest.raises(UserError, match=told):
        check(edit(make_drafter(), **changes))


def test_an_export_over_the_whole_vocabulary_has_no_maps(make_drafter):
    folder = make_drafter(draft_vocab_size=256)
    assert not {"d2t", "t2d"} & read_shapes(folder).keys()
    check(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 32}, r"lm_head\.weight has shape \[96, 64\], but config\.json says hidden_size 32"),
        ({"draft_vocab_size": 97}, r"lm_head\.weight has shape \[96, 64\], but config\.json says draft_vocab_size 97"),
    ],
    ids=str,
)
def test_refuses_a_head_whose_configuration_was_edited(changes, told, make_drafter):
    with pytest.raises(UserError, match=told):
        check(edit(make_drafter(edsd=None), **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"edsd": "x"}, r"edsd\.format is None"),
        ({"edsd": BIG | {"target": 5}}, r"config\.json: 'edsd\.target' \(.*\) cannot be 5"),
        ({"edsd": BIG | {"target": None}}, r"config\.json: 'edsd\.target' is missing"),
        ({"hidden_size": "64"}, r"config\.json: 'hidden_size' cannot be '64'; give a whole number"),
        ({"head_dim": None}, r"config\.json: 'head_dim' is missing"),
        ({"head_dim": 16.5}, r"config\.json: 'head_dim' cannot be 16\.5; give a whole number, at least 2"),
        ({"rope_parameters": None}, r"config\.json: 'rope_parameters\.rope_theta' is missing"),
        ({"rope_parameters": [1]}, r"config\.json: 'rope_parameters\.rope_theta' is missing"),
        ({"eagle_aux_hidden_state_layer_ids": 5}, r"'eagle_aux_hidden_state_layer_ids' cannot be 5"),
        ({"edsd": None, "eagle_aux_hidden_state_layer_ids": ["a"]}, r"'eagle_aux_hidden_state_layer_ids\.0' cannot be 'a'"),
        ({"edsd": None, "eagle_config": "x"}, r"'eagle_config' cannot be 'x'"),
        ({"edsd": None, "architectures": "x"}, r"'architectures' cannot be 'x'"),
    ],
    ids=str,
)
def test_refuses_a_malformed_configuration(changes, told, make_drafter):
    with pytest.raises(UserError, match=told):
        check(edit(make_drafter(), **changes))


@pytest.mark.parametrize("written", [0, 2, "1", None])
def test_refuses_another_format(written, make_drafter):
    folder = edit(make_drafter(), edsd=BIG | {"format": written})
    with pytest.raises(
        UserError, match=rf"another version .*\(edsd\.format is {written!r}, and 1 can be read\); train it again"
    ):
        check(folder)


def test_last_layer_output_may_be_read(make_drafter, make_target):
    check(make_drafter(eagle_aux_hidden_state_layer_ids=[1, 4]), read_target(make_target()))


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_refuses_truncated_weights(left, make_drafter):
    folder = make_drafter()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(UserError, match=rf"model\.safetensors \({weights.stat().st_size} bytes\) is truncated or damaged"):
        check(folder)


def test_refuses_damaged_header(make_drafter):
    folder = make_drafter()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:8] + b"not json" + weights.read_bytes()[16:])
    with pytest.raises(UserError, match="truncated or damaged"):
        check(folder)


def test_refuses_pickled_weights_without_opening_them(make_drafter):
    folder = make_drafter()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model\.bin\).*convert"):
        check(folder)


def test_refuses_missing_weights_and_missing_or_broken_config(make_drafter):
    folder = make_drafter()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        check(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="list, not a JSON object"):
        check(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        check(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        check(folder)


def test_shapes_come_from_every_shard(make_drafter):
    folder = make_drafter()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert read_shapes(folder)["fc.weight"] == [64, 192]


def test_target_shape_of_a_nested_text_config(tmp_path: Path):
    text = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["L"], "text_config": text}))
    assert read_target(tmp_path) == TargetShape(str(tmp_path), 32, 50, 3, ("L",))


def test_unreadable_target_is_left_to_vllm(tmp_path: Path):
    assert read_target(tmp_path / "absent") is None
