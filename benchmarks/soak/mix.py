"""The kinds of requests that a soak sends, each with what must come of it; a MismatchError says that something else did."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import openai
from references import MOST, Reference

MODEL, ANOTHER = "target", "another"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
TOO_LONG = "one two three " * 400
# Changes to a valid request, each of which makes it an invalid one, with the status that tells of it.
INVALID: tuple[tuple[dict[str, Any], int], ...] = (
    ({"messages": [{"role": "user", "content": TOO_LONG}]}, 400),
    ({"max_tokens": -5}, 400),
    ({"max_tokens": 100_000}, 400),
    ({"temperature": "hot"}, 400),
    ({"temperature": -1.0}, 400),
    ({"top_p": 7.0}, 400),
    ({"n": 0}, 400),
    ({"response_format": {"type": "haiku"}}, 400),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}}, 400),
    ({"messages": "not a list"}, 400),
    ({"model": ANOTHER}, 404),
)


class MismatchError(Exception):
    """A server answered otherwise than it must."""


def expect(found: Any, wanted: Any, what: str) -> None:
    if found != wanted:
        raise MismatchError(f"{what}: {found!r} instead of {wanted!r}")


class Mix:
    """Sends requests of every kind to one server. Each method sends one and returns when all is known of it."""

    def __init__(self, client: openai.AsyncOpenAI, references: list[Reference]):
        self.client = client
        self.references = references
        self.create: Any = client.chat.completions.create
        self.structured_text: str | None = None

    async def ask(self, reference: Reference, **options: Any) -> list[Any]:
        """The choices of one answer to the reference's question, each with finish_reason and message."""
        return (await self.create(model=MODEL, messages=reference.messages, **options)).choices

    async def greedy(self, random: Random) -> None:
        reference, most = random.choice(self.references), random.randint(4, MOST)
        (choice,) = await self.ask(reference, max_tokens=most, temperature=0)
        expect(choice.message.content, reference.text(most), f"greedy answer to {reference.question[:60]!r}")
        expect(choice.finish_reason, "stop" if len(reference.tokens) < most else "length", "why a greedy answer ended")

    async def streamed(self, random: Random) -> None:
        reference, most = random.choice(self.references), random.randint(4, MOST)
        text = ""
        async for chunk in await self.create(
            model=MODEL, messages=reference.messages, max_tokens=most, temperature=0, stream=True
        ):
            text += chunk.choices[0].delta.content or ""
        expect(text, reference.text(most), f"streamed answer to {reference.question[:60]!r}")

    async def sampled(self, random: Random) -> None:
        """Its text is open, its length is not."""
        reference, most = random.choice(self.references), random.randint(4, MOST)
        options = {"max_tokens": most, "temperature": random.uniform(0.3, 1.2)}
        answer = await self.create(model=MODEL, messages=reference.messages, extra_body={"ignore_eos": True}, **options)
        expect((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", most), "a sampled answer's end")

    async def likeliest(self, random: Random) -> None:
        """By way of the sampler to a text that is known: the one token of top-k 1."""
        reference, most = random.choice(self.references), random.randint(4, MOST)
        choices = await self.ask(
            reference, max_tokens=most, temperature=1.0, n=random.choice((1, 3)), extra_body={"top_k": 1}
        )
        for choice in choices:
            expect(choice.message.content, reference.text(most), f"top-k 1 answer to {reference.question[:60]!r}")

    async def seeded(self, random: Random) -> None:
        """A seed, and a prompt that no cache has and that is read in chunks."""
        words = " ".join(str(random.randrange(100, 1000)) for _ in range(80))
        answer = await self.create(
            model=MODEL,
            messages=[{"role": "user", "content": words}],
            max_tokens=8,
            temperature=0.8,
            seed=random.randrange(1 << 30),
            extra_body={"ignore_eos": True},
        )
        expect((answer.choices[0].finish_reason, answer.usage.completion_tokens), ("length", 8), "a seeded answer's end")

    async def structured(self, random: Random) -> None:
        (choice,) = await self.ask(self.references[0], max_tokens=MOST, temperature=0, response_format=STRUCTURED)
        place = json.loads(choice.message.content)
        expect({key: type(value) for key, value in place.items()}, {"city": str, "large": bool}, "structured answer")
        self.structured_text = self.structured_text or choice.message.content
        expect(choice.message.content, self.structured_text, "the same structured answer again")

    async def stopped(self, random: Random) -> None:
        reference = random.choice([one for one in self.references if len(one.tokens) == MOST])
        words = reference.text().split(" ")
        begin = random.randrange(5, len(words) - 4)
        stop = " ".join(words[begin : begin + 2])
        (choice,) = await self.ask(reference, max_tokens=MOST, temperature=0, stop=[stop])
        expect(choice.message.content, reference.text().split(stop)[0], f"answer stopped at {stop!r}")
        expect(choice.finish_reason, "stop", "why a stopped answer ended")

    async def cancelled(self, random: Random) -> None:
        """The client goes away in the middle of a stream; what it has got so far must be right."""
        reference, chunks, text = random.choice(self.references), random.randint(1, 12), ""
        stream = await self.create(model=MODEL, messages=reference.messages, max_tokens=MOST, temperature=0, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            chunks -= 1
            if not chunks:
                break
        await stream.close()
        if not reference.text().startswith(text):
            raise MismatchError(f"cancelled stream: {text!r} is no beginning of {reference.text()!r}")

    async def abandoned(self, random: Random) -> None:
        """The client goes away before the first token: while its request is sent, waits, or has its prompt read."""
        request = self.ask(random.choice(self.references), max_tokens=MOST, temperature=random.choice((0, 0.9)))
        try:
            await asyncio.wait_for(request, timeout=random.uniform(0.002, 0.2))
        except TimeoutError:
            return

    async def invalid(self, random: Random) -> None:
        change, status = random.choice(INVALID)
        body = {"model": MODEL, "messages": self.references[0].messages, "max_tokens": 8, "temperature": 0} | change
        try:
            await self.create(**body)
        except openai.APIStatusError as error:
            expect(error.status_code, status, f"status of a request with {str(change)[:80]}")
        else:
            raise MismatchError(f"a request with {str(change)[:80]} was answered")


SHARES: dict[Callable[[Mix, Random], Awaitable[None]], int] = {
    Mix.greedy: 16,
    Mix.streamed: 16,
    Mix.sampled: 10,
    Mix.likeliest: 6,
    Mix.seeded: 6,
    Mix.structured: 6,
    Mix.stopped: 6,
    Mix.cancelled: 12,
    Mix.abandoned: 10,
    Mix.invalid: 12,
}
