"""From our options to vLLM's own speculative configuration."""

from collections.abc import Mapping
from typing import Any

from vllm_edsd.config import ServeConfig, validate
from vllm_edsd.drafters.checkpoint import check, resolve
from vllm_edsd.drafters.target import TargetShape

ENVIRONMENT_PREFIX = "EDSD_"
# Drafter classes whose greedy token needs no logits over the target's whole vocabulary.
LOCAL_ARGMAX = {"Eagle3EdsdModel", "LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM"}


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The options that EDSD_DRAFTER, EDSD_NUM_TOKENS, ... set; empty values and other EDSD_* variables do not count."""
    named = {field: environ.get(variable(field), "") for field in ServeConfig.model_fields}
    return {field: value for field, value in named.items() if value}


def variable(field: str) -> str:
    """The environment variable of an option."""
    return f"{ENVIRONMENT_PREFIX}{field.upper()}"


def speculative_config(config: ServeConfig, target: TargetShape | None = None) -> dict[str, Any]:
    """vLLM's own `speculative_config`. Raises UserError for a drafter that is absent, damaged or not made for `target`."""
    folder = resolve(config.drafter)
    architectures = check(folder, target).get("architectures") or []
    return {
        "method": "eagle3",
        "model": str(folder),
        "num_speculative_tokens": config.num_tokens,
        "draft_sample_method": config.draft_sample_method,
        "use_local_argmax_reduction": config.draft_sample_method == "greedy" and set(architectures) <= LOCAL_ARGMAX,
    }


def options(drafter: str, **options: Any) -> dict[str, Any]:
    """Arguments for vLLM's own constructor: `LLM("target", **vllm_edsd.options("smollm2-edsd", num_tokens=5))`.

    On vLLM's CPU backend it also preloads OpenMP and tcmalloc into the engine that is started next. Raises UserError for an
    unknown option, a value out of range, an unusable drafter or an unsupported vLLM.
    """
    from vllm_edsd.engine import serve

    config = validate(ServeConfig, {"drafter": drafter, **options}, "vllm_edsd.options")
    arguments = {"speculative_config": speculative_config(config)}
    serve.prepare(None)
    return arguments
