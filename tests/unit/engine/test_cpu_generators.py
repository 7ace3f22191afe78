from types import SimpleNamespace

import numpy as np
import torch

from vllm_edsd.engine import cpu_generators


class Runner:
    """What vLLM's runner does with generators: draws by those it has, then takes back the draws of unfinished prompts."""

    def __init__(self, unfinished):
        self.input_batch = SimpleNamespace(
            num_reqs=len(unfinished), generators={row: torch.Generator().manual_seed(row) for row in range(len(unfinished))}
        )
        self.discard_request_mask = SimpleNamespace(np=np.array([*unfinished, True]))

    def _sample(self, logits):
        return {row: torch.rand(1, generator=own).item() for row, own in self.input_batch.generators.items()}

    def _bookkeeping_sync(self, logits):
        for row in self.discard_request_mask.np[: self.input_batch.num_reqs].nonzero()[0]:
            if int(row) in self.input_batch.generators:
                self.input_batch.generators[int(row)].set_offset(0)


def test_an_unfinished_prompt_draws_nothing_from_its_generator():
    runner = Runner([False, True, False])
    before = {row: own.get_state() for row, own in runner.input_batch.generators.items()}
    cpu_generators.mend(runner)
    assert runner._sample("logits").keys() == {0, 2}
    runner._bookkeeping_sync("logits")
    assert {row: torch.equal(own.get_state(), before[row]) for row, own in runner.input_batch.generators.items()} == {
        0: False,
        1: True,
        2: False,
    }
    runner.discard_request_mask.np[:] = False
    assert runner._sample("logits").keys() == {0, 1, 2}


def test_without_it_the_generator_is_asked_for_what_it_has_not():
    runner = Runner([True])
    runner._sample("logits")
    try:
        runner._bookkeeping_sync("logits")
    except RuntimeError as error:
        assert "offset" in str(error)
    else:
        raise AssertionError("CPU generators have offsets now: nothing is left to mend")
