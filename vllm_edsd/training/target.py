"""The parts of the target that a drafter is trained against: embedding, head and final norm, frozen."""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from vllm_edsd.errors import UserError
from vllm_edsd.targets import require_target
from vllm_edsd.tensor_files import opened


@dataclasses.dataclass(frozen=True)
class TargetEnds:
    """`embedding` and `head` [V, H] (one tensor where the target ties and does not scale them), `norm` [H], all float32."""

    config: PretrainedConfig
    embedding: torch.Tensor
    head: torch.Tensor
    norm: torch.Tensor

    @classmethod
    def read(cls, path: Path) -> "TargetEnds":
        """Reads a checkpoint directory. Raises UserError when it is damaged or not a Llama-like safetensors checkpoint."""
        path = Path(path)
        require_target(path)
        wanted = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "norm": "model.norm.weight"}
        found: dict[str, torch.Tensor] = {}
        for file in sorted(path.glob("*.safetensors")):
            with opened(file, "target file", "make or fetch the target again") as weights:
                names = set(weights.keys())
                found |= {key: weights.get_tensor(name).float() for key, name in wanted.items() if name in names}
        found.setdefault("head", found.get("embedding", torch.empty(0)))
        if missing := [wanted[key] for key in wanted if key not in found]:
            raise UserError(f"target {path} has no {missing[0]} in its safetensors; a Llama-like target is needed")
        config = AutoConfig.from_pretrained(path)
        # Granite's: with it in the head, logits are the head's product in every family.
        scaling = getattr(config, "logits_scaling", 1)
        if scaling != 1:
            found["head"] = found["head"] / scaling
        return cls(config=config, **found)

    def to(self, device: torch.device) -> "TargetEnds":
        embedding = self.embedding.to(device)
        head = embedding if self.head is self.embedding else self.head.to(device)
        return TargetEnds(self.config, embedding, head, self.norm.to(device))
