import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.errors import UserError
from vllm_edsd.training.lens import PER_SAMPLE, choose, collapse, measure, pair, spread, summarise
from vllm_edsd.training.samples import Sample, read_samples, write_shard

CPU = torch.device("cpu")


def quiet(*_):
    pass


def test_entropy_is_that_of_the_head_on_the_normed_state(tiny_target, tiny_data):
    samples = read_samples(tiny_data)[:3]
    curve = measure(tiny_target, samples, tiny_data, CPU, quiet)
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    inputs = {layer: [] for layer in range(5)}
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda _, args, number=number: inputs[number].append(args[0]))
    model.model.norm.register_forward_pre_hook(lambda _, args: inputs[4].append(args[0]))
    with torch.inference_mode():
        for sample in samples:
            model.model(sample.tokens.long()[None])
        for layer, states in [(layer, list(states)) for layer, states in inputs.items()]:
            found = [
                torch.distributions.Categorical(logits=model.lm_head(model.model.norm(state[0, place]))).entropy()
                for sample, state in zip(samples, states, strict=True)
                for place in spread(sample)
            ]
            assert curve.entropy[layer] == pytest.approx(float(torch.stack(found).mean()), rel=1e-3, abs=1e-5)
    assert curve.positions == len(found)


@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize(
    ("curve", "start"),
    [
        ([10.0] * 20 + [10 - number for number in range(1, 9)], 19),
        ([0.1, *[8.0] * 15, 7, 6, 5, 4, 3, 2, 4, 8, 9], 15),
        ([6 - 0.05 * number for number in range(20)] + [5.05 - 0.6 * number for number in range(1, 7)], 19),
    ],
    ids=["plateau", "tied head, rises at the end", "slow fall, then fast"],
)
def test_finds_where_the_fall_begins(curve, start, noise):
    noisy = np.array(curve) + noise * np.random.default_rng(1).standard_normal(len(curve))
    assert abs(collapse(noisy) - start) <= (1 if noise else 0)


def test_a_steady_fall_begins_at_once_and_a_flat_curve_does_not_fall():
    assert collapse(np.linspace(9, 1, 12)) == 0
    assert collapse(np.array([5.0, 5.2, 4.9, 5.1, 5.0])) is None
    assert collapse(np.linspace(1, 9, 12)) is None


def test_the_pair_is_the_start_and_the_last_but_one():
    assert pair(19, 31) == (19, 28)
    assert pair(28, 31) is None and pair(None, 31) is None


def test_samples_weigh_by_their_positions_and_give_intervals():
    means = np.array([[4.0, 3, 2, 1], [8, 6, 4, 2], [4, 3, 2, 1]])
    curve = summarise(means, np.array([30, 10, 20]))
    assert curve.entropy == pytest.approx([28 / 6, 21 / 6, 14 / 6, 7 / 6])
    assert all(low < mean < high for low, mean, high in zip(curve.low, curve.entropy, curve.high, strict=True))


def test_positions_are_spread_over_the_answer_and_many_samples():
    sample = Sample(torch.zeros(400, dtype=torch.int32), 100, 0.0)
    places = spread(sample)
    assert len(places) == PER_SAMPLE and places[0] == 99 and places[-1] == 398
    assert spread(Sample(torch.zeros(5, dtype=torch.int32), 4, 0.0)) == [3]
    many = [Sample(torch.zeros(10 + number, dtype=torch.int32), 5, 0.0) for number in range(20)]
    assert len(choose(many, 20, 0)) < 5 and choose(many, 20, 0) == choose(many, 20, 0)
    assert len(choose(many, 10**6, 0)) == 20


def test_data_of_another_target_or_tokenizer_is_refused(tiny_target, tmp_path):
    torch.manual_seed(0)
    foreign = [Sample(torch.randint(0, 128, (60,), dtype=torch.int32), 10, 0.0)]
    with pytest.raises(UserError, match=r"would have written only \d+% of the greedy answers"):
        measure(tiny_target, foreign, tmp_path, CPU, quiet)
    larger = [Sample(torch.tensor([5, 700, 3], dtype=torch.int32), 1, 0.0)]
    with pytest.raises(UserError, match=r"token 700, but .* vocabulary of 128"):
        measure(tiny_target, larger, tmp_path, CPU, quiet)


def test_a_target_without_a_final_norm_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="GPT2LMHeadModel without model"):
        measure(tmp_path, [], tmp_path, CPU, quiet)


def test_command_writes_json_and_a_picture(tiny_target, tiny_data, tmp_path):
    out, picture = tmp_path / "layers.json", tmp_path / "layers.png"
    arguments = ["layers", str(tiny_target), "--data", str(tiny_data), "--json", str(out), "--plot", str(picture)]
    result = CliRunner().invoke(app, [*arguments, "--positions", "40"], catch_exceptions=False)
    assert result.exit_code == 0 and "output" in result.stdout
    assert len(json.loads(out.read_text())["entropy"]) == 5
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_command_refuses_a_folder_without_samples(tiny_target, tmp_path):
    with pytest.raises(UserError, match=r"no samples-\*\.safetensors"):
        CliRunner().invoke(app, ["layers", str(tiny_target), "--data", str(tmp_path)], catch_exceptions=False)
    write_shard(tmp_path / "samples-00000.safetensors", [Sample(torch.zeros(3, dtype=torch.int32), 3, 0.0)], {})
    with pytest.raises(UserError, match="no answers"):
        CliRunner().invoke(app, ["layers", str(tiny_target), "--data", str(tmp_path)], catch_exceptions=False)
