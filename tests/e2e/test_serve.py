"""A real server with `--edsd`, over HTTP."""

import psutil
import pytest

from vllm_edsd.bench.load import MODEL, Load
from vllm_edsd.engine.server import serve
from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt

pytestmark = pytest.mark.e2e

SMALL = ["--served-model-name", MODEL, "--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 28)]
FRANCE = Prompt(id="france", turns=["What is the capital of France?"])
STORY = Prompt(id="story", turns=["Write a long story about a fox and a crow."])


def test_serve_with_a_drafter_answers_counts_and_leaves_nothing_behind(target, tmp_path):
    arguments = [*SMALL, "--edsd", "smollm2-edsd", "--edsd.num-tokens", "3"]
    with serve(str(target), arguments, tmp_path / "log") as server:
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        with Load(server.url, max_tokens=64, temperature=0) as greedy:
            (reply,) = greedy.send([FRANCE], 1)
            assert (reply.error, reply.text) == (None, "The capital of France is Paris.")
            before = server.counters()
            stories = greedy.send([STORY, FRANCE, STORY], 3)
        assert [reply.error for reply in stories] == [None] * 3
        gained = server.counters() - before
        assert gained.accepted > 0
        assert len(gained.per_position) == 3
        with Load(server.url, max_tokens=32, temperature=1) as sampled:
            (reply,) = sampled.send([STORY], 1)
        assert (reply.error, reply.tokens) == (None, 32)
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_an_unknown_drafter_ends_the_start_and_is_named(target, tmp_path):
    with (
        pytest.raises(UserError, match="no-such-drafter"),
        serve(str(target), [*SMALL, "--edsd", "no-such-drafter"], tmp_path / "log"),
    ):
        pass
