"""The order of a run: all arms under load, one server awake at a time."""

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from vllm_edsd.bench import run, turns
from vllm_edsd.bench.arms import Arm
from vllm_edsd.bench.load import Reply
from vllm_edsd.bench.progress import Progress
from vllm_edsd.engine.counters import SpecCounters
from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt

PROMPTS = tuple(Prompt(id=str(n), turns=[f"question {n}"]) for n in range(8))
STEPS = 80  # of a millisecond, for an answer


@pytest.fixture
def events(monkeypatch):
    """Replaces servers and load by something that only takes notes."""
    notes = []

    class Server:
        def __init__(self, name):
            self.url = self.name = name
            self.awake = False

        def pause(self):
            self.awake = False

        def resume(self):
            assert not any(server.awake for server in up)
            self.awake = True
            notes.append(("awake", self.name))

        def check(self):
            if self.name == "died":
                raise UserError("vllm serve ended")

        def counters(self):
            return SpecCounters()

    class Load:
        def __init__(self, runner, url, max_tokens, temperature, clock):
            self.runner = runner
            self.url = url
            self.clock = clock

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def send(self, prompts, concurrency, max_tokens=None):
            return self.runner.run(self.ask(prompts, concurrency))

        async def ask(self, prompts, concurrency, max_tokens=None, answered=lambda: None):
            notes.append(("send", self.url, [prompt.id for prompt in prompts]))
            begun = self.clock()
            for _ in range(STEPS):
                await asyncio.sleep(0.001)
                while [server.name for server in up if server.awake] != [self.url]:
                    await asyncio.sleep(0.001)
            for _ in prompts:
                answered()
            return [Reply(prompt, "yes", 1, begun, self.clock(), ((1, 1),)) for prompt in prompts]

    up = []

    @contextlib.contextmanager
    def serve(model, arguments, log, progress):
        server = Server(log.stem)
        notes.append(("start", server.name))
        up.append(server)
        try:
            yield server
        finally:
            up.remove(server)
            notes.append(("stop", server.name))

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(run, "Load", Load)
    return notes


def measure(arms, concurrency, prompts=PROMPTS):
    options = run.BenchOptions(Path("target"), tuple(arm.name for arm in arms), prompts, concurrency=concurrency)
    with Progress() as progress:
        found = list(run._measure(arms, [], Path("logs"), options, progress))
        assert progress.done == len(arms) * len(concurrency) * len(prompts)
    return found


def test_alone_each_prompt_is_sent_for_itself(events):
    found = measure([Arm("none"), Arm("edsd")], (1,))
    sent = [(note[1], note[2]) for note in events if note[0] == "send" and not note[2][0].startswith("warm-up")]
    assert sorted(sent) == sorted((arm, [name]) for arm in ("none", "edsd") for name in "01234567")
    assert [[reply.prompt.id for reply in one.replies] for one in found] == [list("01234567")] * 2


def test_arms_take_turns_and_each_has_the_time_of_its_own(events, monkeypatch):
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.02)
    begun = time.perf_counter()
    found = measure([Arm("none"), Arm("edsd")], (2,), PROMPTS[:2])
    wall = time.perf_counter() - begun
    awake = [note[1] for note in events[events.index(("send", "edsd", ["0", "1"])) :] if note[0] == "awake"]
    assert awake[0] != awake[1] and awake[:2] == awake[2:4]
    own = [reply.ended - reply.begun for measured in found for reply in measured.replies[:1]]
    assert min(own) > STEPS * 0.0005 and sum(own) < wall


def test_an_arm_alone_is_not_stopped(events, monkeypatch):
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.02)
    measure([Arm("none")], (2,), PROMPTS[:2])
    assert [note[0] for note in events] == ["start", "awake", "send", "awake", "send", "stop"]


def test_what_one_arm_raises_ends_the_run(events):
    with pytest.raises(UserError, match="ended"):
        measure([Arm("none"), Arm("died")], (1,))
    assert [note for note in events if note[0] == "stop"] == [("stop", "died"), ("stop", "none")]


def test_an_arm_with_two_policies_is_two_servers(events):
    short, long = Arm("edsd", policy="fixed:3"), Arm("edsd", policy="evict:8")
    found = measure([short, long], (1,))
    assert [note[1] for note in events if note[0] == "start"] == ["edsd-fixed-3", "edsd-evict-8"]
    assert [(one.arm, len(one.replies)) for one in found] == [(short, len(PROMPTS)), (long, len(PROMPTS))]


def test_servers_last_but_those_that_remember_start_anew(events):
    measure([Arm("none"), Arm("suffix", remembers=True)], (1, 2))
    assert [note[1] for note in events if note[0] == "start"] == ["none", "suffix", "suffix"]
    assert events[-1] == ("stop", "none")


def test_above_concurrency_one_all_prompts_are_sent_at_once(events):
    found = measure([Arm("none")], (2,))
    sent = [note[2] for note in events if note[0] == "send"]
    assert [len(ids) for ids in sent] == [2, len(PROMPTS)]
    assert found[0].categories() == {}
