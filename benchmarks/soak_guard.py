"""Drafting becomes slow: the guard turns it off, and the server stays healthy and right."""

import asyncio

from soak_checks import Check
from soak_mix import Mix
from soak_policy import fault
from soak_references import MOST
from soak_watch import by_label, metrics

from vllm_edsd.engine.server import Server

ROUNDS = 8  # answers until the guard must have noticed
WRITTEN = 2.0  # seconds until what happened is on /metrics


async def warm_up(mix: Mix, concurrency: int) -> Check:
    """So many answers of uneven length at a time: the guard meets every number of requests before drafting is slow."""
    asked = [(mix.references[n % len(mix.references)], 8 + 4 * n) for n in range(concurrency)]
    answers = await asyncio.gather(*(mix.ask(one, max_tokens=most, temperature=0) for one, most in asked))
    pairs = zip(answers, asked, strict=True)
    right = [choice.message.content == one.text(min(most, MOST)) for (choice,), (one, most) in pairs if most <= MOST]
    return Check("first answers are right", all(right), f"{sum(right)} of {len(right)}")


async def guarded(server: Server, mix: Mix) -> Check:
    """One request at a time, while each draft takes longer than it can save."""
    reference = next(one for one in mix.references if len(one.tokens) == MOST)
    fault().touch()
    try:
        for _ in range(ROUNDS):
            await mix.ask(reference, max_tokens=MOST, temperature=0)
            await asyncio.sleep(WRITTEN)
            off = not by_label(metrics(server)["edsd:guard_drafts"], "requests")["1"]
            if off:
                break
        before = by_label(metrics(server)["edsd:fallbacks_total"], "reason")["guard"]
        answer, healthy = asyncio.ensure_future(mix.ask(reference, max_tokens=MOST, temperature=0)), 0
        while not answer.done():
            await asyncio.to_thread(server.get, "/health", 10.0)
            healthy += 1
            await asyncio.sleep(0.2)
        (choice,) = await answer
        await asyncio.sleep(WRITTEN)
        plain = by_label(metrics(server)["edsd:fallbacks_total"], "reason")["guard"] - before
    finally:
        fault().unlink()
    right = choice.message.content == reference.text()
    seen = f"off: {off}, {plain:.0f} steps decoded plainly, text right: {right}, /health answered 200 {healthy} times"
    holds = off and right and plain > MOST / 2 and healthy > 0
    return Check("while the guard has drafting off, the server is healthy and its text right", holds, seen)
