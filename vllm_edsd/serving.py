"""From our options to vLLM's own speculative configuration."""

from collections.abc import Mapping
from typing import Any

from vllm_edsd.config import ServeConfig, validate
from vllm_edsd.drafters.checkpoint import check, resolve
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.errors import UserError

ADAPTIVE = "evict"
WORKER = "vllm_edsd.engine.worker.AdaptiveCPUWorker"
# The bundled drafters gain at 2 and not at 5 where the length is fixed (docs/results/first-light.md).
DEFAULT_TOKENS = {False: 2, True: 8}
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


def engine_arguments(config: ServeConfig, target: TargetShape | None, obstacle: str | None) -> dict[str, Any]:
    """vLLM's own arguments: `speculative_config` and, for a policy that adapts, `worker_cls` and `additional_config`.

    `obstacle` says why no policy but `fixed` works here, None where all do. Raises UserError for a drafter that is absent,
    damaged or not made for `target`, and for a policy that the obstacle forbids.
    """
    folder = resolve(config.drafter)
    architectures = check(folder, target).get("architectures") or []
    policy = config.policy or ("fixed" if obstacle else ADAPTIVE)
    if policy != "fixed" and obstacle:
        raise UserError(f"policy {policy!r} cannot be used: {obstacle}; give policy fixed, or none")
    speculative = {
        "method": "eagle3",
        "model": str(folder),
        "num_speculative_tokens": config.num_tokens or DEFAULT_TOKENS[policy != "fixed"],
        "draft_sample_method": config.draft_sample_method,
        "use_local_argmax_reduction": config.draft_sample_method == "greedy" and set(architectures) <= LOCAL_ARGMAX,
    }
    if policy == "fixed":
        return {"speculative_config": speculative}
    return {
        # Drafts of any length, and the drafter is spared the rejected tokens.
        "speculative_config": {**speculative, "disable_padded_drafter_batch": True},
        "worker_cls": WORKER,
        "additional_config": {"edsd": {"policy": policy}},
    }


def options(drafter: str, **options: Any) -> dict[str, Any]:
    """Arguments for vLLM's own constructor: `LLM("target", **vllm_edsd.options("smollm2-edsd", num_tokens=5))`.

    On vLLM's CPU backend it also readies allocator and OpenMP for the engine that is started next. Raises UserError for an
    unknown option, a value out of range, an unusable drafter or an unsupported vLLM.
    """
    from vllm_edsd.engine import serve

    config = validate(ServeConfig, {"drafter": drafter, **options}, "vllm_edsd.options")
    obstacle = serve.policy_obstacle({})
    arguments = engine_arguments(config, None, obstacle)
    serve.prepare(None)
    return arguments
