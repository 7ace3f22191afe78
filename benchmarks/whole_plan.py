"""A plan that cuts nothing, mode all: a target that is served by it has its experts counted."""

from pathlib import Path

from transformers import AutoConfig

from vllm_edsd.experts.plan import Plan, top_k, write
from vllm_edsd.fingerprint import model_fingerprint


def write_whole(target: Path, folder: Path) -> None:
    config = AutoConfig.from_pretrained(target)
    count, k = config.num_hidden_layers, top_k(config)
    experts = dict.fromkeys(range(count), k)
    model = model_fingerprint(target)
    write(Plan(model=model, mode="all", num_hidden_layers=count, top_k=k, experts=experts), None, folder)
