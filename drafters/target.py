"""The shape of a target, as far as a drafter must agree with it."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig


@dataclass(frozen=True)
class TargetShape:
    """What a drafter must agree with; None where the target's configuration does not say."""

    name: str
    hidden_size: int | None
    vocab_size: int | None
    num_hidden_layers: int | None
    architectures: tuple[str, ...] = ()


def read_target(target: str | Path, revision: str | None = None) -> TargetShape | None:
    """The shape of a target given by path or hub id; None when its configuration cannot be read here.

    Code that comes with a checkpoint is never run; such targets are left to vLLM.
    """
    try:
        config = AutoConfig.from_pretrained(str(target), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):
        return None
    text = config.get_text_config()
    return TargetShape(
        name=str(target),
        hidden_size=getattr(text, "hidden_size", None),
        vocab_size=getattr(text, "vocab_size", None),
        num_hidden_layers=getattr(text, "num_hidden_layers", None),
        architectures=tuple(config.architectures or ()),
    )
