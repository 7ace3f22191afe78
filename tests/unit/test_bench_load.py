"""The client, against a server of a few lines that streams as vLLM does."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from vllm_edsd.bench.load import Load
from vllm_edsd.prompts import Prompt

# (text, tokens so far); the role comes first, as vLLM sends it.
CHUNKS = [("", 0), ("The", 1), (" sky is", 3), (" blue.", 5)]


class Streaming(BaseHTTPRequestHandler):
    seen: ClassVar[list[dict]] = []
    open_now = 0
    open_most = 0
    lock = threading.Lock()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.seen.append(asked)
            Streaming.open_now += 1
            Streaming.open_most = max(self.open_most, self.open_now)
        try:
            self.answer(asked)
        finally:
            with self.lock:
                Streaming.open_now -= 1

    def answer(self, asked):
        if "bad" in asked["messages"][-1]["content"]:
            self.send_error(400, "too long")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text, tokens in CHUNKS:
            self.event([{"index": 0, "delta": {"content": text}, "finish_reason": None}], tokens)
        self.event([], CHUNKS[-1][1])
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, choices, tokens):
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        chunk = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "target",
            "choices": choices,
            "usage": usage,
        }
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def load():
    Streaming.seen, Streaming.open_most = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Streaming)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    with asyncio.Runner() as runner, Load(runner, url, max_tokens=32, temperature=0.5) as client:
        yield client
    server.shutdown()
    server.server_close()


def ask(*texts):
    return [Prompt(id=str(n), turns=[text, "and a second turn"]) for n, text in enumerate(texts)]


def test_text_tokens_and_arrivals(load):
    (reply,) = load.send(ask("Why?"), 1)
    assert (reply.text, reply.tokens, reply.error) == ("The sky is blue.", 5, None)
    assert [tokens for _, tokens in reply.arrivals] == [1, 3, 5]
    times = [reply.begun, *(when for when, _ in reply.arrivals), reply.ended]
    assert times == sorted(times)


def test_only_the_first_turn_is_sent_and_no_seed(load):
    load.send(ask("Why?"), 1)
    (asked,) = Streaming.seen
    assert asked["messages"] == [{"role": "user", "content": "Why?"}]
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 32)
    assert "seed" not in asked


def test_a_refused_request_is_a_reply_with_its_reason(load):
    good, bad = load.send(ask("good", "bad"), 2)
    assert good.error is None
    assert bad.tokens == 0
    assert "400" in bad.error


def test_replies_keep_the_order_and_the_concurrency(load):
    replies = load.send(ask(*"abcdefg"), 3)
    assert [reply.prompt.id for reply in replies] == [str(n) for n in range(7)]
    assert Streaming.open_most <= 3


def test_a_server_that_is_gone_is_a_reply_too():
    with asyncio.Runner() as runner, Load(runner, "http://127.0.0.1:9", max_tokens=8, temperature=0) as client:
        (reply,) = client.send(ask("Why?"), 1)
    assert "Connection" in reply.error
