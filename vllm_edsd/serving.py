"""From our options to vLLM's own speculative configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_edsd.config import NOTHING, ServeConfig, validate
from vllm_edsd.drafters import registry
from vllm_edsd.drafters.checkpoint import check, model_free, resolve
from vllm_edsd.drafters.target import TargetShape, read_target
from vllm_edsd.engine.hooks import lending
from vllm_edsd.errors import UserError
from vllm_edsd.place import Place
from vllm_edsd.targets import check_exists

ADAPTIVE = "evict"
BESIDE = "lookup"  # what stands beside a drafter under that policy
EXPERTS_WORKER = "vllm_edsd.engine.experts_worker.ExpertsCPUWorker"
WORKER = "vllm_edsd.engine.worker.AdaptiveCPUWorker"
GPU_WORKER = "vllm_edsd.engine.v2.worker.AdaptiveGPUWorker"
CUSTOM_CLASS = "vllm_edsd.engine.custom_proposer.CustomProposer"
# A fixed length must do for many requests at a time as well, where longer ones lose (docs/results/scoring.md).
DEFAULT_TOKENS = {False: 2, True: 8}
ADMIN = "vllm_edsd.engine.admin.Admin"
ADMIN_TOKEN = "EDSD_ADMIN_TOKEN"
LEAST_TOKEN = 16  # characters
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


def costs(config: ServeConfig, target: str | None, dtype: str | None) -> list[float] | None:
    """The coefficients of the cost profile that `config` names, None where it names none.

    Raises UserError for a profile that is damaged or was measured with something else; None for what is not known here.
    """
    if config.profile is None or config.drafter is None:
        return None
    if (config.policy or ADAPTIVE) != "evict":
        raise UserError(f"profile {config.profile} is for policy evict, and the policy is {config.policy!r}; leave one out")
    from vllm_edsd.fingerprint import fingerprint
    from vllm_edsd.policy.profile import CostProfile

    return CostProfile.read(config.profile, fingerprint(target, resolve(config.drafter), dtype)).coefficients


def engine_arguments(
    config: ServeConfig, target: TargetShape | None, place: Place, coefficients: list[float] | None = None
) -> dict[str, Any]:
    """vLLM's own arguments: `speculative_config` and, where our worker is needed, `worker_cls` and `additional_config`.

    It is for a policy that adapts and for block verification, where `place` says that it can be used.
    `coefficients` are a cost profile's. Fewer experts (`config.experts`) go with any drafter or none. For a `target` whose
    vLLM class gives no hidden states, `hf_overrides` name ours.
    Raises UserError for a drafter that is absent, damaged or not made for `target`, for a record that has no place, and for
    what cannot be used there.
    """
    _check_record(config.record)
    arguments = _speculation(config, target, place, coefficients)
    if config.experts is not None:
        return _with_experts(arguments, config, target, place)
    if config.experts_mode != ServeConfig.model_fields["experts_mode"].default:
        raise UserError(
            f"experts_mode {config.experts_mode!r} is for fewer experts, and there is no plan; give experts, or leave it out"
        )
    return arguments


def default_policy(place: Place) -> str:
    """The policy of a drafter with weights where none is asked for."""
    return "fixed" if place.worker else ADAPTIVE


def _speculation(
    config: ServeConfig, target: TargetShape | None, place: Place, coefficients: list[float] | None
) -> dict[str, Any]:
    if config.drafter is None:
        _check_alone(config)
        return {}
    if model_free(config.drafter):
        return _model_free(config)
    folder = resolve(config.drafter)
    architectures = check(folder, target).get("architectures") or []
    policy = config.policy or default_policy(place)
    on_gpu = place.worker is not None and place.v2 is None
    if on_gpu:
        _check_gpu(config, policy)
    elif place.worker and policy != "fixed":
        raise UserError(f"policy {policy!r} cannot be used: {_why_not(place, policy)}; give policy fixed, or leave it out")
    elif place.worker and config.verification != "standard":
        raise UserError(
            f"verification {config.verification!r} cannot be used: {_why_not(place)}; give verification standard, or leave "
            "it out"
        )
    speculative: dict[str, Any] = {
        "method": "eagle3",
        "model": str(folder),
        "num_speculative_tokens": config.num_tokens or DEFAULT_TOKENS[policy != "fixed"],
        "draft_sample_method": config.draft_sample_method,
        "use_local_argmax_reduction": config.draft_sample_method == "greedy" and set(architectures) <= LOCAL_ARGMAX,
    }
    named = list(target.architectures) if target is not None else []
    lent = [lending(name) for name in named]
    overrides = {"hf_overrides": {"architectures": lent}} if lent != named else {}
    if on_gpu:
        return {**overrides, **_on_gpu(config, policy, speculative)}
    if policy == "fixed" and config.verification == "standard" and config.beside in (None, NOTHING):
        return {"speculative_config": speculative, **overrides}
    return {
        **overrides,
        # Drafts of any length, and the drafter is spared the rejected tokens.
        "speculative_config": {**speculative, "disable_padded_drafter_batch": True},
        "worker_cls": WORKER,
        "additional_config": {
            "edsd": {
                "policy": policy,
                "beside": _beside(config, policy),
                "verification": config.verification,
                "coefficients": coefficients,
                "record": None if config.record is None else str(config.record.absolute()),
            }
        },
    }


def _why_not(place: Place, policy: str | None = None) -> str:
    """Why a policy, or block verification, cannot be used; for evict, what is in the way on a GPU says more."""
    return (place.v2 if policy == ADAPTIVE else None) or str(place.worker)


def _check_gpu(config: ServeConfig, policy: str) -> None:
    """Raises UserError for what is there on the CPU backend only."""
    only = "is for vLLM's CPU backend"
    if policy not in ("fixed", ADAPTIVE):
        raise UserError(f"policy {policy!r} {only}; give policy fixed or {ADAPTIVE}, or leave it out")
    for field in ("beside", "profile", "record"):
        value = getattr(config, field)
        if value not in (None, NOTHING):
            raise UserError(f"{field} {str(value)!r} {only}; leave it out")


def _on_gpu(config: ServeConfig, policy: str, speculative: dict[str, Any]) -> dict[str, Any]:
    """For model runner V2: vLLM verifies blocks by itself, and adaptively with our worker beside it."""
    if config.verification == "block":
        speculative |= {"rejection_sample_method": "block"}
    if policy == "fixed":
        return {"speculative_config": speculative}
    return {
        # Acceptance is estimated from the logits, which a local argmax would not make.
        "speculative_config": {**speculative, "enable_adaptive_verification": True, "use_local_argmax_reduction": False},
        "worker_cls": GPU_WORKER,
        "additional_config": {"edsd": {"policy": policy, "verification": config.verification}},
    }


def _check_record(record: Path | None) -> None:
    """Raises UserError where the engine's process could not open it."""
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise UserError(
            f"record {record} is no file in an existing directory; make {record.absolute().parent}, or give a file"
        )


def _beside(config: ServeConfig, policy: str) -> str | None:
    """The model-free proposer beside a drafter with weights. Raises UserError where the policy cannot weigh the two."""
    if config.beside is None:
        return BESIDE if policy == ADAPTIVE else None
    if config.beside == NOTHING:
        return None
    if policy == "fixed":
        raise UserError(f"beside {config.beside!r} is for a policy that adapts, and the policy is fixed; leave one out")
    registry.load(config.beside)  # what is wrong with it is told here, not in the engine's process
    return config.beside


def _worker_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `engine_arguments` tells our worker; empty where vLLM's own serves."""
    return arguments.get("additional_config", {}).get("edsd", {})


def administration(token: str, arguments: Mapping[str, Any]) -> str:
    """The middleware that loads another drafter's weights while serving with `arguments` (of `engine_arguments`).

    Raises UserError for a token that can be guessed, and where our worker, which does it, is not in use.
    """
    if len(token) < LEAST_TOKEN:
        raise UserError(
            f"{ADMIN_TOKEN} has {len(token)} characters and needs {LEAST_TOKEN}; make one with `openssl rand -hex 32`, or "
            "unset it"
        )
    if arguments.get("worker_cls") != WORKER:
        raise UserError(
            f"{ADMIN_TOKEN} is set, but drafters change while serving only under a policy that adapts, on vLLM's CPU "
            "backend; choose one there (--edsd.policy evict), or unset it"
        )
    return ADMIN


def _check_alone(config: ServeConfig) -> None:
    """Raises UserError for an option that says how to draft where nothing drafts."""
    alone = ServeConfig(experts=config.experts, experts_mode=config.experts_mode)
    for field, value in config:
        if value != getattr(alone, field):
            raise UserError(f"{field} {str(value)!r} is for a drafter, and there is none; give one, or leave it out")


def _with_experts(
    arguments: dict[str, Any], config: ServeConfig, target: TargetShape | None, place: Place
) -> dict[str, Any]:
    from vllm_edsd.experts import plan as plans

    folder = config.experts.absolute()  # type: ignore[union-attr]
    plan = plans.read(folder)
    if place.worker:
        raise UserError(f"experts {config.experts} cannot be used: {place.worker}; leave it out")
    if target is not None and Path(target.name).is_dir():
        plans.check(plan, folder, Path(target.name))
    settings = {
        "plan": str(folder),
        "mode": config.experts_mode,
        "measured_for": plan.mode,
        "fingerprint": plans.fingerprint(folder),
        "share": plan.share,
    }
    edsd = {**_worker_options(arguments), "experts": settings}
    return {"worker_cls": EXPERTS_WORKER, **arguments, "additional_config": {"edsd": edsd}}


def _model_free(config: ServeConfig) -> dict[str, Any]:
    served = ServeConfig(
        drafter=config.drafter, num_tokens=config.num_tokens, experts=config.experts, experts_mode=config.experts_mode
    )
    for field, value in config:
        if value != getattr(served, field) and (field, value) != ("policy", "fixed"):
            raise UserError(
                f"{field} {str(value)!r} cannot be used: it is for drafters with weights, and {config.drafter!r} is a "
                "model-free proposer; leave it out"
            )
    registry.load(str(config.drafter))  # what is wrong with it is told here, not in the engine's process
    return {
        "speculative_config": {
            "method": "custom_class",
            "model": CUSTOM_CLASS,
            "num_speculative_tokens": config.num_tokens or DEFAULT_TOKENS[False],
        },
        "additional_config": {"edsd": {"proposer": config.drafter}},
    }


def prepare(
    ready: Callable[..., None], config: ServeConfig, target: TargetShape | None, arguments: Mapping[str, Any]
) -> None:
    """Calls `ready`, of engine.serve, as what `engine_arguments` made of `config` needs it."""
    free = config.drafter is not None and model_free(config.drafter)
    reads_states = config.drafter is not None and not free
    fewer = _worker_options(arguments).get("experts")
    v2 = arguments.get("worker_cls") == GPU_WORKER
    ready(target if reads_states else None, model_free=free, experts=fewer, v2=v2)


def options(drafter: str | None = None, target: str | None = None, **options: Any) -> dict[str, Any]:
    """Arguments for vLLM's own constructor: `LLM("target", **vllm_edsd.options("smollm2-edsd", num_tokens=5))`.

    With `target`, its path or hub id, the drafter is checked against it; Mixtral, OLMoE, Qwen2-MoE and GraniteMoE need it.
    On vLLM's CPU backend it also readies allocator and OpenMP for the engine that is started next. Raises UserError for an
    unknown option, a value out of range, an unusable drafter or target, or an unsupported vLLM.
    """
    from vllm_edsd.engine import serve

    config = validate(ServeConfig, {"drafter": drafter, **options}, "vllm_edsd.options")
    if drafter is None and config.experts is None:
        raise UserError("vllm_edsd.options() does nothing; give a drafter, or experts=PLAN, or both")
    place = serve.place({})
    if target is not None:
        check_exists(target)
    shape = None if target is None else read_target(target)
    arguments = engine_arguments(config, shape, place, costs(config, target, None))
    prepare(serve.prepare, config, shape, arguments)
    return arguments
