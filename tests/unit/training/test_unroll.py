import pytest
import torch
from transformers import AutoModelForCausalLM

from vllm_edsd.drafters.layers import DraftCache
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.trainer import Trainer
from vllm_edsd.training.unroll import shift, unroll


def quiet(*_):
    pass


@pytest.fixture(params=["edsd", "edsd-normed", "eagle3", "eagle3.1"])
def trainer(request, tiny_recipe, tmp_path):
    layers = [2, 3] if request.param.startswith("edsd") else [1, 2, 3]
    return Trainer(Recipe(**tiny_recipe | {"drafter": request.param, "layers": layers}), tmp_path / "out", quiet, quiet)


@torch.inference_mode()
def test_every_chain_is_what_a_server_would_draft(trainer):
    """The unrolled batch against one chain at a time over the true prefix, with nothing padded or masked."""
    items = trainer.batches[0][:3]
    batch = trainer._load(items)
    states = list(unroll(trainer.drafter, trainer.target.embedding, batch, [3, 3, 3]))
    chains = batch.valid.shape[1]
    for row, item in enumerate(items):
        tokens = item.sample.tokens.long()
        hidden = batch.hidden[row, -(len(tokens) - 1) :]
        for start in range(item.sample.answer - 1, len(tokens) - 4):
            cache, column = DraftCache(), chains - (len(tokens) - 1) + start
            visible = torch.ones(1, 1, start + 1, dtype=torch.bool)
            embed = trainer.target.embedding[tokens][None]
            state = trainer.drafter.first(
                hidden[None, : start + 1], embed[:, 1 : start + 2], torch.arange(start + 1)[None], cache, visible
            )
            for step in range(3):
                if step:
                    following = embed[:, start + 1 + step : start + 2 + step]
                    state = trainer.drafter.next(state, following, torch.tensor([[start + step]]), cache, visible)
                torch.testing.assert_close(states[step][row, column], state[0, 0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_batches_pair_each_chain_with_the_target_two_tokens_on(trainer, tiny_target):
    items = trainer.batches[0][:3]
    batch = trainer._load(items)
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.bfloat16)
    for row, item in enumerate(items):
        tokens = item.sample.tokens.long()
        logits = model(tokens[None]).logits[0]
        count = item.chains
        assert torch.equal(batch.argmax[row, -count:], logits[item.sample.answer :].argmax(-1))
        assert int(batch.valid[row].sum()) == count - 1
        assert torch.equal(shift(batch.following[:, -batch.valid.shape[1] :], 1)[row, -count:-1], tokens[-count + 1 :])


@torch.inference_mode()
def test_samples_that_go_on_are_not_touched_by_those_that_do_not(trainer):
    batch = trainer._load(trainer.train_set[:3])
    whole = list(unroll(trainer.drafter, trainer.target.embedding, batch, [3, 3, 3]))
    part = list(unroll(trainer.drafter, trainer.target.embedding, batch, [3, 2, 2, 0]))
    assert [len(state) for state in part] == [3, 2, 2]
    for state, full in zip(part, whole, strict=True):
        torch.testing.assert_close(state, full[: len(state)])
