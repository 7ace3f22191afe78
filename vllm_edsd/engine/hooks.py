"""Where we touch vLLM, whether those places look as we expect, and the touching itself."""

import functools
import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any

from vllm_edsd import compat
from vllm_edsd.observability.snapshots import DIRECTORY

INTERFACES = "vllm.model_executor.models.interfaces"
REGISTRY = "vllm.model_executor.models.registry"
EAGLE3 = "vllm.model_executor.models.llama_eagle3"
PROPOSER = "vllm.v1.spec_decode.llm_base_proposer"
PROPOSE = (
    *("self", "num_speculative_tokens", "target_token_ids", "target_positions", "target_hidden_states", "next_token_ids"),
    *("token_indices_to_sample", "common_attn_metadata", "sampling_metadata", "mm_embed_inputs"),
    *("num_rejected_tokens_gpu", "slot_mappings"),
)
RUNNER = "vllm.v1.worker.gpu_model_runner"
SAMPLER = "vllm.v1.sample.rejection_sampler"
REJECT = (
    *("draft_token_ids", "num_draft_tokens", "max_spec_len", "cu_num_draft_tokens", "draft_probs", "target_logits"),
    *("bonus_token_ids", "sampling_metadata", "synthetic_mode", "synthetic_conditional_rates", "use_fp64_gumbel"),
)
# Tells `install()` in the engine's processes, which inherit it, that --edsd is in use.
ACTIVE = "VLLM_EDSD_ACTIVE"
DRAFT_MODELS = {"Eagle3EdsdModel": "vllm_edsd.drafters.edsd.vllm_model:Eagle3EdsdModel"}
# Targets whose vLLM class gives a drafter no hidden states, with the module of that class.
TARGET_MODELS = {
    "MixtralForCausalLM": "vllm.model_executor.models.mixtral",
    "OlmoeForCausalLM": "vllm.model_executor.models.olmoe",
    "Qwen2MoeForCausalLM": "vllm.model_executor.models.qwen2_moe",
    "GraniteMoeForCausalLM": "vllm.model_executor.models.granitemoe",
}
# Of our classes, which do: EdsdMixtralForCausalLM for MixtralForCausalLM, and so on.
OURS, OUR_TARGETS = "Edsd", "vllm_edsd.engine.moe_targets"


@dataclass(frozen=True)
class Hook:
    """A function of vLLM's with the parameters, or a configuration class with the fields, that we rely on."""

    module: str
    name: str
    expected: tuple[str, ...]

    def problem(self) -> str | None:
        """What is different from our expectation; None when nothing is."""
        try:
            place = attrgetter(self.name)(importlib.import_module(self.module))
        except (ImportError, AttributeError) as error:
            return f"not found ({error})"
        if is_dataclass(place):
            missing = set(self.expected) - {field.name for field in fields(place)}
            return f"has no field {', '.join(sorted(missing))}" if missing else None
        return compat.signature_problem(place, self.expected)


# Checked whenever vLLM starts, so nothing here may import more than vLLM does at that point anyway.
REGISTER = (Hook(REGISTRY, "_ModelRegistry.register_model", ("self", "model_arch", "model_cls")),)
# Checked once --edsd is used.
SERVE = (
    *REGISTER,
    Hook("vllm.engine.arg_utils", "EngineArgs.add_cli_args", ("parser",)),
    Hook("vllm.engine.arg_utils", "EngineArgs", ("speculative_config",)),
    Hook(
        "vllm.config.speculative",
        "SpeculativeConfig",
        ("method", "model", "num_speculative_tokens", "draft_sample_method", "use_local_argmax_reduction"),
    ),
    Hook(INTERFACES, "supports_eagle3", ("model",)),
    Hook(EAGLE3, "Eagle3LlamaForCausalLM.__init__", ("self", "vllm_config", "prefix")),
    Hook(EAGLE3, "Eagle3LlamaForCausalLM.combine_hidden_states", ("self", "hidden_states")),
    Hook(EAGLE3, "Eagle3LlamaForCausalLM.compute_logits", ("self", "hidden_states")),
    Hook(EAGLE3, "Eagle3LlamaForCausalLM.get_top_tokens", ("self", "hidden_states")),
    Hook(EAGLE3, "Eagle3LlamaForCausalLM.load_weights", ("self", "weights")),
)
# Checked once --edsd is used, for the metrics; without them it serves all the same.
SCHEDULER = "vllm.v1.core.sched.scheduler"
OBSERVE = (
    Hook(
        SCHEDULER,
        "Scheduler.make_spec_decoding_stats",
        (
            *("self", "spec_decoding_stats", "num_draft_tokens", "num_accepted_tokens", "num_invalid_spec_tokens"),
            "request_id",
        ),
    ),
    Hook(SCHEDULER, "Scheduler._free_request", ("self", "request")),
    Hook("prometheus_client.multiprocess", "MultiProcessCollector.collect", ("self",)),
)
# Checked once a model-free proposer is asked for.
CUSTOM = (
    Hook("vllm.engine.arg_utils", "EngineArgs", ("additional_config",)),
    Hook("vllm.v1.spec_decode.custom_class_proposer", "create_custom_proposer", ("vllm_config",)),
)
# Checked once a policy that adapts, or block verification, is asked for.
ADAPT = (
    Hook(PROPOSER, "SpecDecodeBaseProposer.propose", PROPOSE),
    Hook(PROPOSER, "SpecDecodeBaseProposer._sample_draft_tokens", ("self", "hidden_states", "sampling_metadata")),
    Hook(PROPOSER, "SpecDecodeBaseProposer._sample_from_logits", ("self", "logits", "sampling_metadata")),
    Hook(
        PROPOSER,
        "SpecDecodeBaseProposer.prepare_next_token_ids_cpu",
        ("self", "sampled_token_ids", "requests", "gpu_input_batch", "num_scheduled_tokens"),
    ),
    Hook("vllm.distributed.parallel_state", "GroupCoordinator.broadcast_object", ("self", "obj")),
    Hook("vllm.v1.worker.cpu_worker", "CPUWorker.init_device", ("self",)),
    Hook("vllm.v1.worker.cpu_worker", "CPUWorker.execute_model", ("self", "scheduler_output")),
    Hook(RUNNER, "GPUModelRunner._prepare_inputs", ("self", "scheduler_output", "num_scheduled_tokens")),
    Hook(RUNNER, "GPUModelRunner._sample", ("self", "logits", "spec_decode_metadata")),
    Hook(
        RUNNER,
        "GPUModelRunner._bookkeeping_sync",
        ("self", "scheduler_output", "sampler_output", "logits", "hidden_states", "num_scheduled_tokens"),
    ),
    Hook(SAMPLER, "RejectionSampler.forward", ("self", "metadata", "draft_probs", "logits", "sampling_metadata")),
    Hook(SAMPLER, "rejection_sample", REJECT),
    Hook("vllm.v1.sample.metadata", "SamplingMetadata", ("temperature", "all_greedy", "all_random", "generators")),
    Hook(
        "vllm.v1.attention.backend",
        "CommonAttentionMetadata",
        (
            *("query_start_loc", "query_start_loc_cpu", "num_actual_tokens", "max_query_len"),
            *("slot_mapping", "block_table_tensor", "seq_lens"),
        ),
    ),
)
V2_RUNNER = "vllm.v1.worker.gpu.model_runner"
V2_VERIFICATION = "vllm.v1.worker.gpu.spec_decode.adaptive_verification"
# Checked once policy evict is asked for on a GPU.
V2 = (
    Hook("vllm.config.speculative", "SpeculativeConfig", ("enable_adaptive_verification", "rejection_sample_method")),
    Hook("vllm.v1.worker.gpu_worker", "Worker.initialize_from_config", ("self", "kv_cache_config")),
    Hook("vllm.v1.worker.gpu_worker", "Worker.execute_model", ("self", "scheduler_output")),
    Hook(V2_VERIFICATION, "AdaptiveVerificationManager.batches_to_profile", ("self", "capture_sizes")),
    Hook(V2_VERIFICATION, "AdaptiveVerificationManager.set_cost_curves", ("self", "draft_curve", "verify_curve")),
    Hook(V2_VERIFICATION, "AdaptiveVerificationManager.get_num_tokens", ("self", "num_tokens_per_req", "draft_tokens")),
    Hook("vllm.v1.worker.gpu.async_utils", "StepTimingCollector.record_batch", ("self", "input_batch", "full_cudagraph")),
    Hook("vllm.v1.worker.gpu.async_utils", "StepTimingCollector.forward_start", ("self",)),
    Hook(V2_RUNNER, "GPUModelRunner.prepare_dummy_attn", ("self", "input_batch")),
    Hook(
        V2_RUNNER,
        "GPUModelRunner._dummy_run",
        (
            *("self", "num_tokens", "args", "skip_attn", "uniform_decode", "context_len", "skip_eplb", "is_profile"),
            *("valid_dummy_state_slots", "randomize_inputs"),
        ),
    ),
    Hook(
        "vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator",
        "TargetDependentARSpeculator.propose",
        (
            *("self", "input_batch", "attn_metadata", "slot_mappings", "last_hidden_states", "aux_hidden_states"),
            *("num_sampled", "num_rejected", "last_sampled", "next_prefill_tokens", "temperature", "seeds", "dp_sync_state"),
            *("dummy_run", "skip_attn_for_dummy_run", "mm_inputs", "is_profile", "num_speculative_tokens"),
        ),
    ),
)
MOE = "vllm.model_executor.layers.fused_moe"
# Checked once fewer experts are asked for.
EXPERTS = (
    Hook(
        f"{MOE}.routed_experts",
        "RoutedExperts.forward_modular",
        ("self", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input"),
    ),
    Hook(
        f"{MOE}.runner.moe_runner",
        "MoERunner.forward",
        ("self", "hidden_states", "router_logits", "input_ids", "shared_experts_input"),
    ),
    Hook(f"{MOE}.runner.moe_runner", "MoERunner._select_forward", ("self",)),
    Hook(
        RUNNER,
        "GPUModelRunner._model_forward",
        ("self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    Hook(
        "vllm.v1.core.kv_cache_utils",
        "_gen_prompt_embeds_extra_hash_keys",
        ("request", "start_token_idx", "end_token_idx"),
    ),
)
RAY_EXECUTOR = "vllm.v1.executor.ray_executor_v2"
MULTIPROC_EXECUTOR = "vllm.v1.executor.multiproc_executor"
QUEUE = "vllm.distributed.device_communicators.shm_broadcast"
# Checked once our Ray executor is asked for.
RAY = (
    Hook(RAY_EXECUTOR, "RayExecutorV2._build_runtime_env", ("self",)),
    Hook(RAY_EXECUTOR, "RayExecutorV2.start_worker_monitor", ("self",)),
    Hook(RAY_EXECUTOR, "RayExecutorV2._join_monitor_thread", ("self",)),
    Hook(RAY_EXECUTOR, "RayWorkerHandle", ("actor", "rank", "local_rank", "node_id", "bundle_id_idx", "run_ref")),
    Hook(
        RAY_EXECUTOR,
        "RayWorkerProc.__init__",
        ("self", "vllm_config", "rank", "input_shm_handle", "is_driver_worker", "is_driver_node"),
    ),
    Hook(RAY_EXECUTOR, "RayWorkerProc.create_dist_init_method", ("self",)),
    Hook(
        RAY_EXECUTOR,
        "RayWorkerProc.initialize_worker",
        ("self", "local_rank", "env_vars", "distributed_init_method", "driver_env_vars"),
    ),
    Hook(RAY_EXECUTOR, "RayWorkerProc.wait_for_init", ("self",)),
    Hook(RAY_EXECUTOR, "RayWorkerProc.run", ("self",)),
    Hook(RAY_EXECUTOR, "RayWorkerProc.worker_busy_loop", ("self",)),
    Hook("vllm.v1.executor.ray_utils", "build_actor_name", ("instance_id", "rank", "tp_size", "pp_size", "pcp_size")),
    Hook("vllm.v1.executor.ray_env_utils", "get_driver_env_vars", ("worker_specific_vars",)),
    Hook(MULTIPROC_EXECUTOR, "MultiprocExecutor._get_parallel_sizes", ("self",)),
    Hook(MULTIPROC_EXECUTOR, "MultiprocExecutor._get_output_rank", ("self",)),
    Hook(MULTIPROC_EXECUTOR, "MultiprocExecutor._is_driver_worker", ("self", "rank")),
    Hook(QUEUE, "MessageQueue.__init__", ("self", "n_reader", "n_local_reader")),
    Hook(QUEUE, "MessageQueue.create_from_handle", ("handle", "rank")),
)


def target_hooks(architecture: str) -> tuple[Hook, ...]:
    """What our class for one of `TARGET_MODELS` relies on."""
    module, family = TARGET_MODELS[architecture], architecture.removesuffix("ForCausalLM")
    layer = ("self", "positions", "hidden_states")
    return (
        Hook(module, f"{architecture}.__init__", ("self", "vllm_config", "prefix")),
        Hook(module, f"{family}Model.forward", ("self", "input_ids", "positions", "intermediate_tensors", "inputs_embeds")),
        Hook(module, f"{family}DecoderLayer.forward", layer if family == "GraniteMoe" else (*layer, "residual")),
        Hook(INTERFACES, "EagleModelMixin.collect_remote_aux_hidden_states", ("self", "intermediate_tensors")),
        Hook(INTERFACES, "EagleModelMixin.pack_local_aux_hidden_states", ("self", "aux_hidden_states")),
        Hook(
            INTERFACES,
            "EagleModelMixin._maybe_add_hidden_state",
            ("self", "aux_hidden_states", "layer_idx", "hidden_states", "residual"),
        ),
    )


def lending(architecture: str) -> str:
    """The class to build for a target, so that it gives a drafter its hidden states: ours where vLLM's does not."""
    return f"{OURS}{architecture}" if architecture in TARGET_MODELS else architecture


def problem(hooks: Iterable[Hook]) -> str | None:
    """The first changed hook of `hooks`, with the remedy; None when all look as expected."""
    for hook in hooks:
        found = hook.problem()
        if found is not None:
            return (
                f"vLLM {compat.vllm_version()} has changed {hook.module}.{hook.name}: {found}; "
                f"install a vLLM {compat.SUPPORTED} as released, or leave --edsd off"
            )
    return None


def install() -> None:
    """Registers our models and, where vLLM's command line is built, the flag; calling it again changes nothing.

    In an engine that serves with --edsd on the CPU backend it also mends sampled speculation.
    """
    from vllm.model_executor.models import ModelRegistry

    if os.environ.get(ACTIVE):
        from vllm_edsd.engine import cache_salt, cpu_sampling, observer, serve

        if serve.is_cpu():
            cpu_sampling.install()
        if os.environ.get(cache_salt.SALT):
            cache_salt.install()
        if os.environ.get(DIRECTORY) and problem(OBSERVE) is None:
            observer.install()
    targets = {f"{OURS}{name}": f"{OUR_TARGETS}:{OURS}{name}" for name in TARGET_MODELS}
    for architecture, place in (DRAFT_MODELS | targets).items():
        ModelRegistry.register_model(architecture, place)
    # Workers and engine cores never build a command line: importing its module there would only slow them.
    arguments = sys.modules.get("vllm.engine.arg_utils")
    if arguments is not None:
        _add_flag(arguments.EngineArgs)


def _add_flag(engine_args: Any) -> None:
    original = engine_args.add_cli_args
    if hasattr(original, "edsd"):
        return

    @functools.wraps(original)
    def add_cli_args(parser: Any) -> Any:
        from vllm_edsd import flags
        from vllm_edsd.engine import serve

        parser = original(parser)
        flags.extend(parser, serve.prepare_server, serve.place)
        return parser

    add_cli_args.edsd = True  # type: ignore[attr-defined]
    engine_args.add_cli_args = staticmethod(add_cli_args)
