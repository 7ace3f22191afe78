"""Hidden states by the target beside the drafter are those written to disk, and so is the drafter trained on them."""

import pytest
import torch
from safetensors.torch import load_file

from vllm_edsd.training.batches import index
from vllm_edsd.training.features import collect
from vllm_edsd.training.online import CHUNK_TOKENS, Online
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.samples import read_samples
from vllm_edsd.training.trainer import Trainer

CPU = torch.device("cpu")


def apart(one, other):
    """Root mean square of the difference, relative."""
    return float((one.float() - other.float()).square().mean().sqrt() / other.float().square().mean().sqrt())


def test_states_are_those_on_disk(tiny_target, tiny_data, tmp_path):
    offline = collect(tiny_target, tiny_data, tmp_path / "features", (1, 2, 3), CPU, lambda _: None)
    online = Online(tiny_target, (1, 2, 3), CPU)
    items = index(read_samples(tiny_data), [12, 12])
    for some, exactly in ((items[:12], True), (items[:1], False), (items[3:20:4], False), (items[::-1], False)):
        for item, ours, theirs in zip(some, online.read(some, [2, 0]), offline.read(some, [2, 0]), strict=True):
            assert ours["hidden"].shape == (len(item.sample.tokens), 2 * 64)
            assert (ours["argmax"][: item.sample.answer] == -1).all() and (ours["argmax"][item.sample.answer :] >= 0).all()
            # Bit by bit in the same company; in other company to what bfloat16 rounds.
            assert all(torch.equal(ours[name], theirs[name]) for name in ours) or not exactly
            assert apart(ours["hidden"], theirs["hidden"]) < 0.02 and apart(ours["final"], theirs["final"]) < 0.02
            assert apart(ours["hidden"][:, :64], theirs["hidden"][:, 64:]) > 0.2


def test_the_drafter_is_the_same(tiny_recipe, tmp_path):
    found = {}
    for name, own in {"offline": {}, "online": {"features": None}, "another seed": {"seed": 1}}.items():
        said = []
        trainer = Trainer(Recipe(**tiny_recipe | own), tmp_path / name, said.append, lambda *_: None)
        trainer.run(lambda _: None)
        found[name] = load_file(tmp_path / name / "model.safetensors")["midlayer.mlp.down_proj.weight"]
        assert any("beside the drafter" in line for line in said) == (name == "online")
    assert apart(found["online"], found["offline"]) < 0.02 < 0.5 < apart(found["another seed"], found["offline"])


def test_nothing_is_written(tiny_recipe, tmp_path):
    Trainer(Recipe(**tiny_recipe | {"features": None}), tmp_path / "out", print, lambda *_: None)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("count", [1, 40])
def test_long_and_many_samples_are_taken_in_parts(tiny_target, tiny_data, count, monkeypatch):
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", 64)
    samples = (read_samples(tiny_data) * 2)[:count]
    places = [place for place, _ in Online(tiny_target, (1,), CPU).states(samples)]
    assert sorted(places) == list(range(count))
