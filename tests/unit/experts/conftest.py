"""Tiny random MoE models of every family, sharp enough that it matters which experts a token is sent to."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.texts import Text
from vllm_edsd.training.samples import Sample

HIDDEN, LAYERS, VOCABULARY = 64, 3, 96
COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "num_experts_per_tok": 4,
}
ROUTED = {"num_experts": 8, "intermediate_size": 48, "moe_intermediate_size": 32}
FAMILIES = {
    "Qwen2Moe": {**ROUTED, "shared_expert_intermediate_size": 48, "norm_topk_prob": False},
    "Qwen2Moe-normed": {**ROUTED, "shared_expert_intermediate_size": 48, "norm_topk_prob": True},
    "Qwen3Moe": {**ROUTED, "head_dim": 32, "norm_topk_prob": False},
    "Qwen3Moe-normed": {**ROUTED, "head_dim": 32, "norm_topk_prob": True},
    "Olmoe": {"num_experts": 8, "intermediate_size": 32, "norm_topk_prob": False},
    "Olmoe-normed": {"num_experts": 8, "intermediate_size": 32, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 8, "intermediate_size": 32},
    "GraniteMoe": {
        "num_local_experts": 8,
        "intermediate_size": 32,
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def _built(name: str, top_k: int) -> Any:
    family = name.partition("-")[0]
    config = getattr(transformers, f"{family}Config")(**COMMON | FAMILIES[name] | {"num_experts_per_tok": top_k})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases that are all alike hide a mistake
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_moe() -> Callable[..., Any]:
    """A float32 transformers model of a family, 8 experts a layer; the same weights for any `top_k`. Yours to change."""
    return lambda name="Qwen2Moe", top_k=4: copy.deepcopy(_built(name, top_k))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each family, with and without renormalised routing weights where it has the choice."""
    return request.param


@pytest.fixture(scope="session")
def dense() -> Any:
    """A float32 Llama of the same size, 80 neurons a layer."""
    config = {key: value for key, value in COMMON.items() if key != "num_experts_per_tok"}
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, intermediate_size=80, tie_word_embeddings=True))
    return llama.eval().requires_grad_(False)


def _tokens(length: int, seed: int) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def tokens() -> Callable[..., torch.Tensor]:
    """Random tokens int64 [1, length] that are the same for the same seed."""
    return lambda length=24, seed=0: _tokens(length, seed)


@pytest.fixture(scope="session")
def make_hook() -> Callable[..., Hook]:
    """A hook's part for one layer with random matrices; one that adds nothing with `scale` 0."""

    def make(rank: int = 4, scale: float = 0.1, hidden: int = HIDDEN, seed: int = 0) -> Hook:
        generator = torch.Generator().manual_seed(seed)
        down, up = torch.randn(rank, hidden, generator=generator), torch.randn(hidden, rank, generator=generator)
        return Hook(down, scale * up)

    return make


@pytest.fixture(scope="session")
def texts() -> list[Text]:
    """Random texts of uneven length."""
    return [Text(_tokens(length, length), answer) for length, answer in ((17, 9), (30, 12), (23, 4))]


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., list[Sample]]:
    """Samples whose tokens all name the sample, of `prompt` tokens and uneven answers."""

    def make(count: int, prompt: int = 10, answer: int = 12, first: int = 0) -> list[Sample]:
        return [Sample(torch.full((prompt + answer + n % 3,), first + n).int(), prompt, 0.0) for n in range(count)]

    return make
