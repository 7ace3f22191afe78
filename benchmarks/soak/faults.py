"""The drafter's figures become no numbers, then drafting becomes slow: the text stays right, and an operator can tell."""

import asyncio
import json

from checks import Check
from mix import Mix
from policy import NONFINITE, SLOW, fault
from references import MOST
from watch import by_label, metrics

from vllm_edsd.engine.server import Server

ROUNDS = 8  # answers until the guard must have noticed
WRITTEN = 2.0  # seconds until what happened is on /metrics


async def warm_up(mix: Mix, concurrency: int) -> Check:
    """Answers of uneven length: the guard meets every number of requests up to `concurrency` before anything is wrong."""
    asked = [(mix.references[n % len(mix.references)], 4 + (MOST - 4) * n // concurrency) for n in range(concurrency)]
    answers = await asyncio.gather(*(mix.ask(one, max_tokens=most, temperature=0) for one, most in asked))
    pairs = zip(answers, asked, strict=True)
    right = [choice.message.content == one.text(most) for (choice,), (one, most) in pairs]
    return Check("first answers are right", all(right), f"{sum(right)} of {len(right)}")


async def named(server: Server, mix: Mix) -> Check:
    """A request whose drafter goes wrong is in the log once, by the id that its client gave it."""
    reference = next(one for one in mix.references if len(one.tokens) == MOST)
    with fault(NONFINITE):
        options = {"max_tokens": MOST, "temperature": 0, "extra_headers": {"X-Request-Id": "soak-nonfinite"}}
        (choice,) = await mix.ask(reference, **options)
    await asyncio.sleep(WRITTEN)
    steps = by_label(metrics(server)["edsd:fallbacks_total"], "reason")[NONFINITE]
    records = [json.loads(line) for line in server.log.read_text().splitlines() if "soak-nonfinite" in line]
    told = [record["message"] for record in records if record["logger"] == "vllm.edsd" and record["level"] == "WARNING"]
    right = choice.message.content == reference.text()
    seen = f"text right: {right}, {steps:.0f} drafts spoilt, {len(told)} lines: {' '.join(told)[:80]}"
    return Check("a drafter gone wrong is logged once, with the request's id", right and steps > 1 and len(told) == 1, seen)


async def guarded(server: Server, mix: Mix) -> Check:
    """One request at a time, while each draft takes longer than it can save."""
    reference = next(one for one in mix.references if len(one.tokens) == MOST)
    with fault(SLOW):
        for _ in range(ROUNDS):
            await mix.ask(reference, max_tokens=MOST, temperature=0)
            await asyncio.sleep(WRITTEN)
            off = not by_label(metrics(server)["edsd:guard_drafts"], "requests")["1"]
            if off:
                break
        before = by_label(metrics(server)["edsd:steps_total"], "drafted")
        answer, healthy = asyncio.ensure_future(mix.ask(reference, max_tokens=MOST, temperature=0)), 0
        while not answer.done():
            await asyncio.to_thread(server.get, "/health", 10.0)
            healthy += 1
            await asyncio.sleep(0.2)
        (choice,) = await answer
        await asyncio.sleep(WRITTEN)
        after = by_label(metrics(server)["edsd:steps_total"], "drafted")
        plain, drafted = (after[way] - before[way] for way in ("false", "true"))
    right = choice.message.content == reference.text()
    steps = f"{plain:.0f} of {plain + drafted:.0f} steps without the drafter"
    seen = f"off: {off}, {steps}, text right: {right}, /health answered 200 {healthy} times"
    holds = off and right and plain > drafted and healthy > 0
    return Check("while the guard has drafting off, the server is healthy and its text right", holds, seen)
