"""The shape of a drafter, as it stands in its `config.json`: what vLLM reads, and what ties it to its target."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vllm_edsd.config import validate
from vllm_edsd.errors import UserError

FORMAT = 1
ARCHITECTURES = {
    "edsd": "Eagle3EdsdModel",
    "edsd-normed": "Eagle3EdsdModel",
    "eagle3": "LlamaForCausalLMEagle3",
    "eagle3.1": "LlamaForCausalLMEagle3",
}
# What tells vLLM's class of a kind from the same class of another.
NORMED = {"fc_norm": True, "norm_output": True}
SWITCHES: dict[str, dict[str, Any]] = {"edsd-normed": NORMED, "eagle3.1": NORMED}
# Where config.json has what does not stand at its top under its own name.
PLACES = {
    "drafter": ("edsd", "drafter"),
    "target": ("edsd", "target"),
    "target_num_hidden_layers": ("edsd", "target_num_hidden_layers"),
    "rope_theta": ("rope_parameters", "rope_theta"),
    "layers": ("eagle_aux_hidden_state_layer_ids",),
}


class DrafterConfig(BaseModel):
    """Everything a drafter's modules need to be built, torch or vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    drafter: str = Field(description="kind of drafter, one of ARCHITECTURES")
    target: str = Field(description="name of the target it was trained for")
    hidden_size: int = Field(ge=1, description="H, of the target and of the drafter")
    intermediate_size: int = Field(ge=1, description="width of the MLP and of EDFuse")
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    max_position_embeddings: int = Field(ge=1)
    vocab_size: int = Field(ge=1, description="of the target")
    draft_vocab_size: int = Field(ge=1, description="rows of the drafter's head")
    target_num_hidden_layers: int = Field(ge=1)
    layers: tuple[int, ...] = Field(min_length=1, description="captured target layers: i is the input of layer i")
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    @classmethod
    def of_target(
        cls, target: Any, name: str, drafter: str, layers: tuple[int, ...], draft_vocab_size: int
    ) -> "DrafterConfig":
        """A drafter as wide as one layer of `target` (a Hugging Face Llama-like config)."""
        return cls(
            drafter=drafter,
            target=name,
            hidden_size=target.hidden_size,
            intermediate_size=target.intermediate_size,
            num_attention_heads=target.num_attention_heads,
            num_key_value_heads=target.num_key_value_heads,
            head_dim=getattr(target, "head_dim", None) or target.hidden_size // target.num_attention_heads,
            rms_norm_eps=target.rms_norm_eps,
            rope_theta=target.rope_parameters["rope_theta"],
            max_position_embeddings=target.max_position_embeddings,
            vocab_size=target.vocab_size,
            draft_vocab_size=draft_vocab_size,
            target_num_hidden_layers=target.num_hidden_layers,
            layers=layers,
            bos_token_id=target.bos_token_id,
            eos_token_id=target.eos_token_id,
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that vLLM loads with `method: eagle3`."""
        return {
            "architectures": [ARCHITECTURES[self.drafter]],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": 1,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "max_position_embeddings": self.max_position_embeddings,
            "vocab_size": self.vocab_size,
            "draft_vocab_size": self.draft_vocab_size,
            "tie_word_embeddings": False,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "dtype": "bfloat16",
            "target_hidden_size": self.hidden_size,
            "num_aux_hidden_states": len(self.layers),
            "eagle_aux_hidden_state_layer_ids": list(self.layers),
            **SWITCHES.get(self.drafter, {}),
            "edsd": {
                "format": FORMAT,
                "drafter": self.drafter,
                "target": self.target,
                "target_num_hidden_layers": self.target_num_hidden_layers,
            },
        }

    @classmethod
    def from_hf(cls, config: dict[str, Any], place: str = "config.json") -> "DrafterConfig":
        """Reads back what `to_hf` wrote to `place`. Raises UserError for another format, and for a missing or wrong key."""
        _check_format(config, place)
        stated = {name: _at(config, PLACES.get(name, (name,))) for name in cls.model_fields}
        found = {name: value for name, value in stated.items() if value is not None}
        if isinstance(found.get("layers"), list):
            found["layers"] = tuple(found["layers"])
        return validate(cls, found, place, _spell)


def _check_format(config: dict[str, Any], place: str) -> None:
    written = _at(config, ("edsd", "format"))
    if written != FORMAT:
        raise UserError(
            f"{place} was written by another version of vllm_edsd, or edited (edsd.format is {written!r}, and "
            f"{FORMAT} can be read); train it again"
        )


def _at(found: Any, path: Iterable[str]) -> Any:
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _spell(key: str) -> str:
    name, *rest = key.split(".")
    return repr(".".join([*PLACES.get(name, (name,)), *rest]))
