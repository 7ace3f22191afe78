"""The order of a run: every block to every arm, one server awake at a time."""

import contextlib
from pathlib import Path

import pytest

from vllm_edsd.bench import run
from vllm_edsd.bench.arms import Arm
from vllm_edsd.bench.load import Reply
from vllm_edsd.bench.progress import Progress
from vllm_edsd.engine.counters import SpecCounters
from vllm_edsd.prompts import Prompt

MANY = tuple(Prompt(id=str(n), turns=[f"question {n}"]) for n in range(21))
PROMPTS = MANY[:8]


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
            self.awake = True
            notes.append(("awake", self.name))

        def check(self):
            pass

        def counters(self):
            return SpecCounters()

    class Load:
        def __init__(self, url, *_):
            self.url = url

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def send(self, prompts, concurrency, max_tokens=None):
            assert [server.name for server in up if server.awake] == [self.url]
            notes.append(("send", self.url, [prompt.id for prompt in prompts]))
            return [Reply(prompt, "yes", 1, 0, 1, ((1, 1),)) for prompt in prompts]

    up = []

    @contextlib.contextmanager
    def serve(model, arguments, log, progress):
        server = Server(log.stem)
        notes.append(("start", server.name))
        up.append(server)
        yield server
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


def test_blocks_rotate_over_the_arms(events):
    found = measure([Arm("none"), Arm("edsd")], (1,))
    asked = [(note[1], note[2][0]) for note in events if note[0] == "send" and not note[2][0].startswith("warm-up")]
    first, second = "0123", "4567"
    assert asked == [
        (arm, one) for arm, ids in (("none", first), ("edsd", first), ("edsd", second), ("none", second)) for one in ids
    ]
    assert [[reply.prompt.id for reply in one.replies] for one in found] == [list("01234567")] * 2


def test_an_arm_with_two_policies_is_two_servers(events):
    short, long = Arm("edsd", policy="fixed:3"), Arm("edsd", policy="evict:8")
    found = measure([short, long], (1,))
    assert [note[1] for note in events if note[0] == "start"] == ["edsd-fixed-3", "edsd-evict-8"]
    assert [(one.arm, len(one.replies)) for one in found] == [(short, len(PROMPTS)), (long, len(PROMPTS))]


def test_servers_last_but_those_that_remember_start_anew(events):
    measure([Arm("none"), Arm("suffix", remembers=True)], (1, 2))
    assert [note[1] for note in events if note[0] == "start"] == ["none", "suffix", "suffix"]
    assert events[-1] == ("stop", "none")


def test_above_concurrency_one_a_block_goes_out_at_once(events):
    found = measure([Arm("none")], (2,), MANY)
    sent = [note[2] for note in events if note[0] == "send"]
    assert [len(ids) for ids in sent] == [2, 11, 10]
    assert found[0].categories() == {}
