import pytest
import torch

from vllm_edsd.kernels import soft_ce
from vllm_edsd.training.losses import LOSSES, head_loss
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.step import positions, prepare, training_loss
from vllm_edsd.training.trainer import Trainer
from vllm_edsd.training.unroll import unroll


def quiet(*_):
    pass


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_compares_a_chain_with_what_the_target_says_there(loss, tiny_recipe, tmp_path):
    """Position by position, without the rows' bookkeeping."""
    trainer = Trainer(Recipe(**tiny_recipe), tmp_path / "out", quiet, quiet)
    drafter, items = trainer.drafter, trainer.batches[0][:3]
    batch = trainer._load(items)
    prepared, rows = prepare(drafter, trainer.head, batch, loss), [3, 3]
    everything = torch.ones(len(prepared.entropy), dtype=torch.bool)
    args = (drafter, trainer.target.embedding, prepared, everything, rows, positions(items, rows), 0.8, torch.float32, loss)
    found = training_loss(*args).loss
    states = list(unroll(drafter, trainer.target.embedding, batch, rows))
    chains, count, expected = batch.valid.shape[1], int(batch.valid.sum()), 0.0
    for row, item in enumerate(items):
        tokens = item.sample.tokens.long()
        first = chains - item.chains
        for step in range(2):
            # Every chain that reaches the answer at this step counts, one that starts before it as well.
            for here in range(max(first, step), chains - 1):
                text = tokens[item.sample.answer + 1 + here - first]
                token = text if LOSSES[loss].wanted == "text" else batch.argmax[row, here]
                if not drafter.t2d[token]:
                    continue
                wanted = (trainer.head @ batch.final[row, here]).softmax(-1)[None]
                if LOSSES[loss].wanted != "distribution":
                    wanted = (drafter.draft_ids == token).nonzero()[0]
                hidden = drafter.norm(states[step][row, here - step])[None]
                expected += 0.8**step / count * head_loss(hidden, drafter.lm_head.weight, wanted, 1.0, loss)[0].detach()
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", soft_ce.LOSSES)
def test_the_kernels_path_is_the_same_step(loss, tiny_recipe, tmp_path, monkeypatch):
    """Their naive references here: that these are what Triton computes is tests/unit/kernels' to show."""
    trainer = Trainer(Recipe(**tiny_recipe), tmp_path / "out", quiet, quiet)
    drafter, items = trainer.drafter, trainer.batches[0][:3]
    batch, rows, found = trainer._load(items), [3, 2], []
    for fused in (False, True):
        monkeypatch.setattr("vllm_edsd.training.step.use_triton", lambda *_, fused=fused: fused)
        prepared = prepare(drafter, trainer.head, batch, loss)
        assert prepared.fused == fused
        kept = prepared.entropy < prepared.entropy.median()
        args = (prepared, kept, rows, positions(items, rows), 0.8, torch.float32, loss)
        result = training_loss(drafter, trainer.target.embedding, *args)
        drafter.zero_grad()
        result.loss.backward()
        gradients = [parameter.grad.clone() for parameter in drafter.parameters() if parameter.grad is not None]
        found.append([result.loss.detach(), result.right, result.compared, prepared.entropy, *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
