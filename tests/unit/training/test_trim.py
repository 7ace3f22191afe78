import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.drafters import checkpoint, factory
from vllm_edsd.drafters.layers import DraftCache
from vllm_edsd.drafters.target import read_target
from vllm_edsd.errors import UserError
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.samples import Sample, read_samples, split, write_shard
from vllm_edsd.training.trainer import Trainer
from vllm_edsd.training.trim import compare, trim
from vllm_edsd.training.vocabulary import most_frequent, token_counts


def quiet(*_):
    pass


def train(recipe, folder):
    trainer = Trainer(Recipe(**recipe), folder, quiet, quiet)
    trainer.run(quiet)
    return folder, trainer


@pytest.fixture
def trained(tiny_recipe, tmp_path):
    """(a drafter's directory, its trainer)."""
    return train(tiny_recipe, tmp_path / "whole")


def run(*arguments):
    return CliRunner().invoke(app, ["trim", *map(str, arguments)], catch_exceptions=False)


@torch.inference_mode()
def test_a_trimmed_drafter_says_the_same_of_the_rows_it_keeps(trained, tiny_target, tiny_data, tmp_path):
    folder, trainer = trained
    assert "wrote" in run(
        *(tiny_target, "--data", tiny_data, "--drafter", folder, "--sizes", "48", "--size", 20, "--out", tmp_path / "small"),
        *("--held-out", 4, "--depth", 3, "--json", tmp_path / "trim.json"),
    ).stdout.replace("\n", " ")
    config = checkpoint.check(tmp_path / "small", read_target(tiny_target))
    assert config["draft_vocab_size"] == 20
    assert load_file(tmp_path / "small" / "model.safetensors")["d2t"].shape == (20,)
    whole, small = factory.load(folder), factory.load(tmp_path / "small")
    counts = token_counts([item.sample for item in trainer.train_set], 128)
    assert set(small.draft_ids.tolist()) < set(whole.draft_ids.tolist())
    dropped = whole.draft_ids[~torch.isin(whole.draft_ids, small.draft_ids)]
    assert counts[small.draft_ids].min() >= counts[dropped].max()
    features, tokens = torch.randn(1, 6, 2 * 64), torch.randn(1, 6, 64)
    visible = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    said = [
        drafter.logits(drafter.first(features, tokens, torch.arange(6)[None], DraftCache(), visible))
        for drafter in (whole, small)
    ]
    torch.testing.assert_close(said[1], said[0][..., torch.isin(whole.draft_ids, small.draft_ids)], rtol=0, atol=0)
    provenance = json.loads((tmp_path / "small" / "provenance.json").read_text())
    assert provenance["trimmed_from"]["version"] == checkpoint.version(folder)
    assert provenance["trimmed_from"]["provenance"]["seed"] == 0
    rows = json.loads((tmp_path / "trim.json").read_text())["sizes"]
    assert [row["size"] for row in rows] == [64, 48, 20]
    assert rows[0]["change"]["mean"] == 0 and rows[0]["coverage"] >= rows[1]["coverage"] >= rows[2]["coverage"]
    assert provenance["held_out"] == rows[2]


def test_a_drafter_over_the_whole_vocabulary_gets_a_map(tiny_recipe, tiny_target, tiny_data, tmp_path):
    folder, _ = train(tiny_recipe | {"draft_vocab_size": 128}, tmp_path / "whole")
    (folder / "provenance.json").unlink()
    run(
        *(tiny_target, "--data", tiny_data, "--drafter", folder, "--sizes", "128", "--size", 40, "--held-out", 4),
        *("--out", tmp_path / "small"),
    )
    whole, small = factory.load(folder), factory.load(tmp_path / "small")
    assert torch.equal(small.lm_head.weight, whole.lm_head.weight[small.draft_ids])
    assert int(small.t2d.sum()) == 40


def test_measures_what_the_trainer_measures(tiny_recipe, tiny_target, tiny_data, tmp_path):
    """On the answers trained on, since nothing can be learnt of a random target's others."""
    recipe = tiny_recipe | {"epochs": 40, "batch_tokens": 256, "learning_rate": 5e-3}
    folder, trainer = train(recipe, tmp_path / "whole")
    trainer.held_out = trainer.train_set
    whole = factory.load(folder)
    samples = [item.sample for item in trainer.train_set]
    counts = token_counts(samples, 128)
    first, second = compare([whole, trim(whole, counts, 16)], samples, tiny_target, tiny_data, 3, quiet)
    assert first.acceptance_length["mean"] == pytest.approx(trainer.evaluate().acceptance_length, rel=0.02)
    assert first.acceptance_length["low"] < first.acceptance_length["mean"] < first.acceptance_length["high"]
    assert second.change["high"] < 0 and second.parameters == first.parameters - 48 * 64


def test_a_recipe_takes_the_tokens_that_the_report_counts(trained, tiny_target, tiny_data):
    _, trainer = trained
    samples = read_samples(tiny_data)
    counted, kept = split(samples, 4, 0, tiny_data)
    assert all(samples[place].temperature == 0 for place in kept) and not set(kept) & set(counted)
    counts = token_counts([samples[place] for place in counted], 128)
    assert torch.equal(most_frequent(counts, 64), trainer.drafter.draft_ids)
    shown = run(tiny_target, "--data", tiny_data, "--held-out", 4, "--sizes", "64,128").stdout
    assert f"{trainer.coverage:.2%}" in shown and "100.00%" in shown and "draft_vocab_size" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "129"), "size 129 is larger than the present vocabulary of 128"),
        (("--sizes", "many"), "not positive whole numbers"),
        (("--size", "8"), "needs --drafter, --size and --out"),
        (("--drafter", "nothing"), "neither a bundled drafter"),
        (("--drafter", "smollm2-edsd"), "was made for a target with hidden_size 576"),
        (("--held-out", "24"), "held_out 24 needs more"),
        (("--drafter", "x", "--size", "8", "--out", "."), r"files that are not ours \(there is no provenance\.json\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tiny_target, tiny_data):
    with pytest.raises(UserError, match=message):
        run(tiny_target, "--data", tiny_data, *arguments)


def test_refuses_what_does_not_fit_together(trained, tiny_target, tiny_data, tmp_path):
    folder, _ = trained
    with pytest.raises(UserError, match="size 65 is larger than the present vocabulary of 64"):
        run(tiny_target, "--data", tiny_data, "--drafter", folder, "--size", 65, "--out", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    del config["edsd"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="was not written by `vllm-edsd train`"):
        run(tiny_target, "--data", tiny_data, "--drafter", folder)


def test_refuses_data_of_another_target_or_tokenizer(trained, tiny_target, tmp_path):
    folder, _ = trained
    torch.manual_seed(0)
    foreign = [Sample(torch.randint(0, 128, (30,), dtype=torch.int32), 10, 0.0) for _ in range(6)]
    write_shard(tmp_path / "foreign" / "samples-00000.safetensors", foreign, {})
    with pytest.raises(UserError, match=r"would have written only \d+% of the greedy answers"):
        run(tiny_target, "--data", tmp_path / "foreign", "--drafter", folder, "--held-out", 3)
    larger = [Sample(torch.full((30,), 128, dtype=torch.int32), 10, 0.0) for _ in range(6)]
    write_shard(tmp_path / "larger" / "samples-00000.safetensors", larger, {})
    with pytest.raises(UserError, match="has token 128, but"):
        run(tiny_target, "--data", tmp_path / "larger", "--held-out", 3)
