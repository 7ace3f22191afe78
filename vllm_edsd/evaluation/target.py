"""The target in transformers: it answers prompts, and shows the states that a drafter reads. No server, no vLLM."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as progress

from vllm_edsd.attention import without_plans
from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.answers import Answer, Question
from vllm_edsd.prompts import Prompt
from vllm_edsd.scoring.distributions import probabilities, race
from vllm_edsd.training.target import TargetEnds

TOGETHER = {"cpu": 8, "cuda": 128}  # prompts answered at a time


class Target:
    """A Llama-like checkpoint directory. `embedding` [V, H] is float32. Raises UserError for another checkpoint."""

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device):
        self.path, self.device = Path(path), device
        without_plans()
        self.embedding = TargetEnds.read(path).embedding.to(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        if not self.tokenizer.chat_template:
            raise UserError(f"target {path} has no chat template; prompts are asked as chats: give an instruct model")
        progress.disable_progress_bar()  # ours is shown
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=device).eval()
        ends = self.model.generation_config.eos_token_id
        found = ends if isinstance(ends, list) else [ends]
        self.ends = frozenset({*found, self.tokenizer.eos_token_id} - {None})

    def question(self, prompt: Prompt, chat: list[dict[str, str]]) -> Question:
        """A prompt's chat by the target's own template, generation prompt included. UserError if the template refuses it."""
        try:
            tokens = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in chat)
            raise UserError(
                f"the template of target {self.path} refuses prompt {prompt.id} with roles {roles} ({error}); leave the "
                "system prompt out, or give another target"
            ) from None
        return Question(prompt.id, prompt.category, tuple(tokens))

    @torch.inference_mode()
    def answer(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        beyond: int,
        temperature: float,
        seed: int,
        report: Callable[[int], None],
    ) -> list[Answer]:
        """Answers of at most `max_tokens`, each with the `beyond` tokens that the target would have gone on with.

        A sampled answer depends on the seed and the prompt's id, not on the other prompts. `report` gets the answers made.
        Raises UserError where a question leaves no room in the target's context.
        """
        most = self.model.config.max_position_embeddings
        for question in questions:
            if len(question.tokens) + max_tokens + beyond > most:
                raise UserError(
                    f"prompt {question.id} has {len(question.tokens)} tokens, which with {max_tokens} of an answer and "
                    f"{beyond} beyond it exceed the target's context of {most}; shorten it or lower --max-tokens"
                )
        order = sorted(range(len(questions)), key=lambda place: len(questions[place].tokens))
        found: dict[int, Answer] = {}
        size = TOGETHER[self.device.type]
        for begin in range(0, len(order), size):
            places = order[begin : begin + size]
            batch = [questions[place] for place in places]
            streams = [_stream(seed, question, self.device) for question in batch]
            written: list[list[int]] = [[] for _ in batch]
            lengths: list[int | None] = [None] * len(batch)
            for tokens in self._decode(batch, temperature, streams):
                for row, token in enumerate(tokens):
                    written[row].append(token)
                    if lengths[row] is None and (token in self.ends or len(written[row]) == max_tokens):
                        lengths[row] = len(written[row])
                if all(
                    length is not None and len(text) >= length + beyond
                    for text, length in zip(written, lengths, strict=True)
                ):
                    break
            for place, question, text, length in zip(places, batch, written, lengths, strict=True):
                assert length is not None
                found[place] = Answer(question, torch.tensor([*question.tokens, *text[: length + beyond]]), length)
            report(len(batch))
        return [found[place] for place in range(len(questions))]

    def _decode(
        self, batch: Sequence[Question], temperature: float, streams: Sequence[torch.Generator]
    ) -> Iterator[list[int]]:
        """One more token of every row at a time, without end."""
        longest = max(len(question.tokens) for question in batch)
        rows = [[0] * (longest - len(question.tokens)) + list(question.tokens) for question in batch]
        tokens = torch.tensor(rows, device=self.device)
        lengths = torch.tensor([len(question.tokens) for question in batch], device=self.device)
        mask = torch.arange(longest, device=self.device) >= longest - lengths[:, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache()
        while True:
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if temperature == 0:
                chosen = logits.argmax(-1)
            else:
                chances = probabilities(logits, temperature)
                chosen = torch.stack([race(row, stream).argmax() for row, stream in zip(chances, streams, strict=True)])
            yield chosen.tolist()
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)

    @torch.inference_mode()
    def states(self, tokens: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """For a text int64 [N]: the inputs of every layer, [N, H] each, and the normed last state [N, H]."""
        result = self.model.model(tokens[None].to(self.device), output_hidden_states=True, use_cache=False)
        return tuple(state[0] for state in result.hidden_states), result.last_hidden_state[0]

    @torch.inference_mode()
    def log_chances(self, final: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
        """ln p of `tokens` int64 [N] after the states `final` [N, H] at a temperature above 0, float32 [N]."""
        logs = (self.model.lm_head(final).float() / temperature).log_softmax(-1)
        return logs.gather(1, tokens[:, None])[:, 0]


def _stream(seed: int, question: Question, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{question.id}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:6], "big"))
