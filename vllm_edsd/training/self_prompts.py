"""Prompts that the target writes itself: an instruct model left at the start of a user's turn completes it (Magpie, arXiv
2406.08464). Its own prompts cover what it was tuned on, which no public prompt set does."""

from collections.abc import Iterable
from typing import Any

from vllm_edsd.prompts import Prompt, normalised

SHORTEST, LONGEST = 3, 300  # words
READABLE = 0.9  # of the characters are ASCII letters, digits, spaces or common punctuation
REPEATED = 0.5  # of the words at least are different ones
MARK = "%user%"  # any text that no template contains
PUNCTUATION = frozenset(".,;:!?'\"()[]{}-+*/=<>#%&$@_\n\t ")


def user_turn(tokenizer: Any) -> list[int]:
    """The tokens of a chat, by the tokenizer's template, up to where the user's first turn begins."""
    marked = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    assert isinstance(marked, str)
    return tokenizer.encode(marked[: marked.index(MARK)], add_special_tokens=False)


def worth_asking(text: str) -> bool:
    """Whether a completed user turn reads as one: neither a fragment nor noise nor a loop."""
    words = text.split()
    if not SHORTEST <= len(words) <= LONGEST or "<|" in text:
        return False
    readable = sum(character.isascii() and (character.isalnum() or character in PUNCTUATION) for character in text)
    return readable >= READABLE * len(text) and len(set(words)) >= REPEATED * min(len(words), 50)


def self_prompts(texts: Iterable[str], label: str) -> list[Prompt]:
    """The distinct user turns worth asking, in order, with ids `label-0`, `label-1`, ..."""
    kept: dict[str, str] = {}
    for text in texts:
        if worth_asking(text):
            kept.setdefault(normalised(text), text.strip())
    return [Prompt(id=f"{label}-{number}", turns=[text], category="self") for number, text in enumerate(kept.values())]
