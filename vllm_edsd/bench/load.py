"""Load on one server: streamed chat completions through the openai client, at most so many at a time."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import cast

import openai
from openai.types.chat import ChatCompletionMessageParam

from vllm_edsd.prompts import Prompt

MODEL = "target"
REQUEST_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer. Times are seconds on the load's clock; `arrivals` are (time, tokens so far), one for each chunk.

    `tokens` is the server's own count. `error` says why there is no answer, None where there is one.
    """

    prompt: Prompt
    text: str
    tokens: int
    begun: float
    ended: float
    arrivals: tuple[tuple[float, int], ...]
    error: str | None = None


class Load:
    """Sends prompts to a server, in `runner`'s event loop; a context manager, since it holds connections."""

    def __init__(
        self,
        runner: asyncio.Runner,
        url: str,
        max_tokens: int,
        temperature: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.runner = runner
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.clock = clock
        self.client = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="unused",
            max_retries=0,
            timeout=REQUEST_SECONDS,
            http_client=openai.DefaultAsyncHttpxClient(
                # A proxy is not meant for this machine; a kept connection may be closed by a server that was paused.
                trust_env=False,
                headers={"Connection": "close"},
            ),
        )

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.runner.run(self.client.close())

    def send(self, prompts: Sequence[Prompt], concurrency: int, max_tokens: int | None = None) -> list[Reply]:
        """What `ask` gives, waited for."""
        return self.runner.run(self.ask(prompts, concurrency, max_tokens))

    async def ask(
        self,
        prompts: Sequence[Prompt],
        concurrency: int,
        max_tokens: int | None = None,
        answered: Callable[[], None] = lambda: None,
    ) -> list[Reply]:
        """The replies to the first turns of `prompts`, in their order, with at most `concurrency` requests open.

        `answered` is called after each.
        """
        replies: list[Reply | None] = [None] * len(prompts)
        waiting = iter(enumerate(prompts))

        async def work() -> None:
            for index, prompt in waiting:
                replies[index] = await self._ask(prompt, max_tokens or self.max_tokens)
                answered()

        await asyncio.gather(*(work() for _ in range(min(concurrency, len(prompts)))))
        return [reply for reply in replies if reply is not None]

    async def _ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        text, tokens = "", 0
        arrivals: list[tuple[float, int]] = []
        begun = self.clock()
        error = None
        try:
            # No seed: one request with a seed ends vLLM 0.32's CPU engine; the server's own seed is set instead.
            stream = await self.client.chat.completions.create(
                model=MODEL,
                messages=cast(list[ChatCompletionMessageParam], prompt.messages()),
                max_tokens=max_tokens,
                temperature=self.temperature,
                stream=True,
                # vLLM counts tokens in every chunk if asked to; in a field that the client does not know.
                extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            )
            async for chunk in stream:
                if chunk.choices:
                    text += chunk.choices[0].delta.content or ""
                if chunk.usage is not None and chunk.usage.completion_tokens > tokens:
                    tokens = chunk.usage.completion_tokens
                    arrivals.append((self.clock(), tokens))
            if not tokens:
                error = "the server sent no token"
        except openai.OpenAIError as problem:
            error = f"{type(problem).__name__}: {problem}"
        return Reply(prompt, text, tokens, begun, self.clock(), tuple(arrivals), error)
