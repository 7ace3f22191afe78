"""SIGTERM in the middle of an answer: the answer is finished, new requests are refused, and nothing is left behind."""

import asyncio
import signal

import openai
import psutil
from checks import Check
from mix import MODEL, Mix
from references import MOST
from watch import family

from vllm_edsd.engine.server import Server

TOKENS = 160  # of the answer: seconds, on any machine


async def drain(server: Server, mix: Mix, seconds: float) -> list[Check]:
    """Ends the server, which has `seconds` to finish what it is at."""
    processes = family(server)
    reference = next(one for one in mix.references if len(one.tokens) == MOST)
    stream = await mix.create(
        model=MODEL,
        messages=reference.messages,
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text, chunks, finish, late = "", 0, None, None
    try:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
            chunks += 1
            if chunks == 3:
                server.process.send_signal(signal.SIGTERM)
                late = asyncio.create_task(refused(mix))
    except openai.OpenAIError as error:
        finish = f"{type(error).__name__}: {error}"
    finished = finish == "length" and text.startswith(reference.text())
    code = await asyncio.to_thread(server.process.wait, seconds)
    left = await asyncio.to_thread(psutil.wait_procs, processes, 10)
    how = await late if late else "the stream ended too soon"
    return [
        Check("an answer under way at SIGTERM is finished", finished, f"{len(text)} characters, ended by {finish}"),
        Check("a request after SIGTERM is refused", how.startswith("refused"), how),
        Check("the server exits with 0", code == 0, f"exit code {code}"),
        Check("no process is left behind", not left[1], f"{len(left[1])} of {len(processes)}"),
    ]


async def refused(mix: Mix) -> str:
    """What becomes of a request half a second after SIGTERM."""
    await asyncio.sleep(0.5)
    try:
        (choice,) = await mix.ask(mix.references[0], max_tokens=4, temperature=0)
    except openai.OpenAIError as error:
        return f"refused ({type(error).__name__}: {error})"
    return f"answered {choice.message.content!r}, ended by {choice.finish_reason}"
