"""A real server with `--edsd`, over HTTP."""

import asyncio
import json

import openai
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
        with asyncio.Runner() as runner, Load(runner, server.url, max_tokens=64, temperature=0) as greedy:
            (reply,) = greedy.send([FRANCE], 1)
            assert (reply.error, reply.text) == (None, "The capital of France is Paris.")
            before = server.counters()
            stories = greedy.send([STORY, FRANCE, STORY], 3)
        assert [reply.error for reply in stories] == [None] * 3
        gained = server.counters() - before
        assert gained.accepted > 0
        assert len(gained.per_position) == 3
        with asyncio.Runner() as runner, Load(runner, server.url, max_tokens=32, temperature=1) as sampled:
            (reply,) = sampled.send([STORY], 1)
        assert (reply.error, reply.tokens) == (None, 32)
    assert not psutil.wait_procs(family, timeout=10)[1]


# Short whatever is drawn: vLLM's grammars allow white space without end, and a letter outside ASCII is up to four tokens.
WORDS = {"type": "string", "pattern": "^[A-Za-z ]{1,20}$"}
COMPACT = ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
SCHEMA = {
    "type": "object",
    "properties": {
        "city": WORDS,
        "country": WORDS,
        "large": {"type": "boolean"},
    },
    "required": ["city", "country", "large"],
    "additionalProperties": False,
}
KINDS = {"city": str, "country": str, "large": bool}


def test_a_policy_leaves_structured_output_and_stop_strings_alone(target, tmp_path):
    """Sampled drafts, block verification and lengths that change from step to step."""
    arguments = [*SMALL, "--dtype", "float32", "--edsd", "smollm2-eagle3", "--edsd.policy", "evict"]
    arguments += ["--edsd.draft-sample-method", "probabilistic", "--edsd.verification", "block", *COMPACT]
    with serve(str(target), arguments, tmp_path / "log") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)

        def ask(prompt, temperature, **options):
            asked = {"model": MODEL, "messages": prompt.messages(), "max_tokens": 96, "temperature": temperature}
            return client.chat.completions.create(**asked, **options).choices

        schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
        for choice in (*ask(FRANCE, 0, response_format=schema), *ask(FRANCE, 0.7, response_format=schema, n=4)):
            assert choice.finish_reason == "stop"
            assert {key: type(value) for key, value in json.loads(choice.message.content).items()} == KINDS

        (whole,) = ask(STORY, 0)
        words = whole.message.content.split(" ")
        # In the middle of the text, and across the boundary of two tokens at least.
        stop = " ".join(words[20:22])
        (cut,) = ask(STORY, 0, stop=[stop])
        assert (cut.message.content, cut.finish_reason) == (whole.message.content.split(stop)[0], "stop")

        before = server.counters()
        several = ask(STORY, 1, n=8)
        assert len({choice.message.content for choice in several}) == 8
        assert (server.counters() - before).accepted > 0


def test_an_unknown_drafter_ends_the_start_and_is_named(target, tmp_path):
    with (
        pytest.raises(UserError, match="no-such-drafter"),
        serve(str(target), [*SMALL, "--edsd", "no-such-drafter"], tmp_path / "log"),
    ):
        pass
