"""What plain greedy decoding answers, by transformers in float32: what a server must answer, drafter or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST = 64  # tokens of an answer
FACTS = "The river rises in the mountains, passes three towns and an old mill, and reaches the sea after forty days. "
QUESTIONS = (
    "What is the capital of France?",
    "Name the four seasons and one thing that is typical of each.",
    "Write a Python function that tells whether a number is prime.",
    "Anna has 12 apples, gives away 5 and buys 8 more. How many does she have? Explain each step.",
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
    "Write a long story about a fox and a crow.",
    "How does a bicycle stay upright?",
    "List ten animals that live in a forest.",
    "Explain to a child why the sky is blue.",
    # Longer than a step reads, so that its prompt comes in chunks.
    FACTS * 12 + "Write a poem about this river.",
)


@dataclass(frozen=True)
class Reference:
    """A question and its whole answer: `tokens`, cut at MOST, and the tokenizer that turns them into text."""

    question: str
    tokens: tuple[int, ...]
    tokenizer: Any

    @property
    def messages(self) -> list[Any]:
        return [{"role": "user", "content": self.question}]

    def text(self, most: int = MOST) -> str:
        """The answer if it may have so many tokens."""
        return self.tokenizer.decode(self.tokens[:most], skip_special_tokens=True)


def references(target: Path) -> list[Reference]:
    """Answers to QUESTIONS."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    answers = model.generate(**prompts, max_new_tokens=MOST, do_sample=False, eos_token_id=end, pad_token_id=end)
    found = []
    for question, answer in zip(QUESTIONS, answers[:, prompts["input_ids"].shape[1] :].tolist(), strict=True):
        found.append(Reference(question, tuple(answer[: answer.index(end)] if end in answer else answer), tokenizer))
    return found
