"""What must hold, and be set, before an engine with one of our drafters starts."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from vllm_edsd import compat
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.engine import cache_salt, cpu, cpu_sampling, hooks, observer
from vllm_edsd.errors import UserError
from vllm_edsd.place import Place

RAY_EXECUTOR = "vllm_edsd.engine.ray_executor.RayCPUExecutor"


def prepare(
    target: TargetShape | None, model_free: bool = False, experts: Mapping[str, Any] | None = None, v2: bool = False
) -> None:
    """Refuses a vLLM or a target that cannot do it (UserError); on the CPU backend, readies the engine.

    `target` is None where it cannot be read or need not fit; `model_free` says that a proposer drafts, not a draft model;
    `experts` is what `engine_arguments` says of fewer experts; `v2` says that our GPU worker is used.
    """
    wanted = ((hooks.CUSTOM, model_free), (hooks.EXPERTS, experts), (hooks.V2, v2))
    places = (*hooks.SERVE, *(hook for found, used in wanted if used for hook in found))
    problem = compat.version_problem(compat.vllm_version()) or hooks.problem(places)
    if problem is not None:
        raise UserError(problem)
    if model_free:
        check_runner()
    if target is not None:
        check_aux_hidden_states(target)
    os.environ[hooks.ACTIVE] = "1"
    os.environ.pop(cache_salt.SALT, None)
    if experts:
        os.environ[cache_salt.SALT] = f"{experts['mode']} {experts['fingerprint']}"
        cache_salt.install()
    if is_cpu():
        os.environ.update(cpu.cpu_environment(os.environ))
        cpu_sampling.install()


def prepare_server(target: TargetShape | None, **used: Any) -> None:
    """As `prepare`, for a process that answers /metrics too: there ours are exported beside vLLM's."""
    prepare(target, **used)
    changed = hooks.problem(hooks.OBSERVE)
    if changed is not None:
        logging.getLogger("vllm.edsd").warning("no edsd: metrics are exported: %s", changed)
        return
    observer.open_directory()
    observer.install()


def place(arguments: Mapping[str, Any]) -> Place:
    """What can be used where vLLM runs with these `arguments` of its own.

    Raises UserError where they ask for our Ray executor and it cannot run.
    """
    if arguments.get("distributed_executor_backend") == RAY_EXECUTOR:
        check_ray()
    name, reason = runner()
    shared = _shared(arguments)
    if not is_cpu():
        here = f"vLLM's backend here is {backend()}"
        v2 = None if name == "V2" else f"vLLM's model runner here is {name} ({reason}), and it needs V2"
        return Place(f"{here}, and it is built for the CPU backend only", v2 or shared)
    v1 = None if name == "V1" else f"vLLM's model runner here is {name} ({reason}), and V1 is needed"
    return Place(v1 or shared or hooks.problem(hooks.ADAPT), "vLLM's backend here is cpu")


def _shared(arguments: Mapping[str, Any]) -> str | None:
    """Why none of our workers can be used with these arguments; None where they can."""
    for size in ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size"):
        if (arguments.get(size) or 1) > 1:
            return f"{size} is {arguments[size]}, and tensor parallelism is the only kind that works here"
    if arguments.get("worker_cls", "auto") != "auto":
        return f"--worker-cls is {arguments['worker_cls']}, and our own is needed"
    return None


def check_ray() -> None:
    """Raises UserError where our Ray executor cannot run: without Ray, on a GPU, or with a vLLM changed in its places."""
    from vllm_edsd.engine import ray_cluster  # noqa: F401 - Ray must be there for the checks below

    if not is_cpu():
        raise UserError(
            f"{RAY_EXECUTOR} is for vLLM's CPU backend, and the backend here is {backend()}; give "
            "--distributed-executor-backend ray"
        )
    problem = hooks.problem(hooks.RAY)
    if problem is not None:
        raise UserError(problem)


def is_cpu() -> bool:
    """Whether vLLM runs on its CPU backend here."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def backend() -> str:
    """The platform vLLM runs on here: cpu, cuda, rocm, ... or unspecified."""
    from vllm.platforms import current_platform

    return "unspecified" if current_platform.is_unspecified() else current_platform._enum.name.lower()


def runner() -> tuple[str, str]:
    """The model runner, V1 or V2, that vLLM chooses by default here, and why."""
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    forced = envs.VLLM_USE_V2_MODEL_RUNNER
    if forced is not None:
        return ("V2" if forced else "V1"), f"VLLM_USE_V2_MODEL_RUNNER={int(forced)}"
    return ("V2", "vLLM's default") if HAS_TRITON else ("V1", "V2 needs Triton")


def check_runner() -> None:
    """Raises UserError where vLLM is told to use model runner V2; for a proposer it chooses V1 by itself."""
    from vllm import envs

    if envs.VLLM_USE_V2_MODEL_RUNNER:
        raise UserError(
            "a model-free proposer runs on vLLM's model runner V1 only, and VLLM_USE_V2_MODEL_RUNNER is 1; unset it, or "
            "give a drafter with weights"
        )


def check_aux_hidden_states(target: TargetShape) -> None:
    """Raises UserError for a target whose class, vLLM's or ours, hands no hidden states of inner layers to a drafter."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_eagle3

    for architecture in target.architectures:
        if architecture in hooks.TARGET_MODELS:
            problem = hooks.problem(hooks.target_hooks(architecture))
            if problem is not None:
                raise UserError(problem)
            continue
        model = ModelRegistry.models.get(architecture)
        # An architecture without a class of its own runs on the Transformers backend, which supports it.
        if model is not None and not supports_eagle3(model.load_model_cls()):
            raise UserError(
                f"target {target.name} is a {architecture}, and the class of vLLM {compat.vllm_version()} for it "
                "gives no auxiliary hidden states for a drafter to read; try `--model-impl transformers`, or serve it "
                "without --edsd"
            )
