"""System prompts by class, for the robustness protocol."""

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vllm_edsd.json_lines import read_lines
from vllm_edsd.prompts import Prompt

REFERENCE = "training"
ROLE = "role"

# An absent system prompt is the one that drafters were trained under: templates put their own default there.
OURS: dict[str, tuple[str | None, ...]] = {
    REFERENCE: (None,),
    "none": ("",),
    "paraphrase": (
        "You are a helpful assistant.",
        "You're an AI model that answers questions in a friendly and useful way.",
        "As an assistant, do your best to help the user with whatever they ask.",
        "Act as a knowledgeable, polite chatbot and give the user clear answers.",
    ),
    ROLE: (),
    "irrelevant": (
        "The ferry leaves the north pier at 7:40 and at 16:15. On Sundays only the later one runs. Bicycles cost extra.",
        "Rinse the lentils, soften an onion in oil, add cumin and stock, and simmer for half an hour. Salt at the end.",
        "Minutes: the roof was inspected in March. Two tiles are loose. The treasurer asks for three quotes by Friday.",
        "Basalt forms when lava cools fast at the surface; granite cools slowly at depth, so that its crystals are large.",
    ),
    "language": (
        "Du bist ein hilfsbereiter Assistent. Beantworte die Fragen sorgfältig und freundlich.",
        "Tu es un assistant serviable. Réponds aux questions avec soin et amabilité.",
        "Eres un asistente servicial. Responde a las preguntas con cuidado y amabilidad.",
        "你是一个乐于助人的助手。请认真、友好地回答问题。",
    ),
}


class SystemPrompt(BaseModel):
    """A line of a file of system prompts. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    system: str = Field(min_length=1)
    kind: str = Field(default=ROLE, alias="class", min_length=1)


@dataclasses.dataclass(frozen=True)
class Systems:
    """System prompts by class; None leaves the place to the template, an empty one keeps it empty."""

    classes: dict[str, tuple[str | None, ...]]

    @classmethod
    def read(cls, path: Path) -> "Systems":
        """JSON lines (gzipped or not) with `system` and, where it is no role prompt, `class`.

        A class of the file replaces ours of that name. Raises UserError for a missing, empty or malformed file.
        """
        example = '{"system": "You are a pirate.", "class": "role"}'
        given: dict[str, list[str]] = {}
        for found in read_lines(path, SystemPrompt, "system prompt file", "`system`", example):
            given.setdefault(found.kind, []).append(found.system)
        merged = OURS | {kind: tuple(texts) for kind, texts in given.items()}
        return cls({kind: texts for kind, texts in merged.items() if texts})

    def chats(self, kind: str, prompts: Sequence[Prompt], seed: int) -> list[list[dict[str, str]]]:
        """The prompts' first turns under system prompts of a class, one each, drawn by the seed and the prompt's id."""
        chats = []
        for prompt in prompts:
            system = random.Random(f"{seed}/{kind}/{prompt.id}").choice(self.classes[kind])
            before = [] if system is None else [{"role": "system", "content": system}]
            chats.append([*before, {"role": "user", "content": prompt.turns[0]}])
        return chats

    def describe(self, path: Path) -> dict[str, Any]:
        """The file and the number of system prompts of each class."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"file": path.name, "sha256": digest, "classes": {kind: len(texts) for kind, texts in self.classes.items()}}
