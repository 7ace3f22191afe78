"""Fewer experts per token inside vLLM: what is changed of a loaded MoE target.

Each MoE layer's routing is cut to the plan's number of experts just before its kernel runs, and what the kernel gives is
repaired by the hook's part for the layer. Which tokens are cut is a matter of position alone: a request's text does not
depend on what it was batched with, whether its prompt came in chunks, or whether it was preempted.
"""

from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from vllm_edsd.errors import UserError
from vllm_edsd.experts import plan as plans
from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.reduction import largest
from vllm_edsd.experts.usage import Usage


class Rows:
    """Which of a step's tokens are cut; shared by all layers, and set before each step.

    `cut` and `whole` are the places of the rows that are and are not, None where none is; `live` is false in steps that
    serve nobody. Compiled code never reads them: the kernel's operator is opaque to it.
    """

    def __init__(self, device: torch.device, everything: bool):
        self.device = device
        self.everything = everything
        self.live = False
        self.cut: torch.Tensor | None = None
        self.whole: torch.Tensor | None = None

    def set(self, chosen: torch.Tensor | None) -> None:
        """`chosen` bool [tokens] on the CPU: the rows to cut; None after a step, since what follows may be a warm-up."""
        self.live = chosen is not None
        if self.everything:
            return
        self.cut = self.whole = None
        if chosen is not None and bool(chosen.any()):
            self.cut = chosen.nonzero()[:, 0].to(self.device)
            self.whole = (~chosen).nonzero()[:, 0].to(self.device)


def install(model: torch.nn.Module, config: Any, folder: Path, mode: plans.Mode) -> tuple[Rows, Usage]:
    """Cuts the routing of `model` by the plan in `folder`; to be called once it is loaded and before it is compiled.

    Raises UserError for a plan that does not fit, and for a kernel that hides its routing.
    """
    plan = plans.read(folder)
    text = config.model_config.hf_text_config
    plans.check_sizes(plan, folder, "the target", text)
    rows = Rows(next(model.parameters()).device, mode == "all")
    found = {module.layer_id: (name, module) for name, module in model.named_modules() if isinstance(module, MoERunner)}
    if missing := sorted(plan.experts.keys() ^ found.keys()):
        raise UserError(f"plan {folder} and the target differ in which layers have experts: {missing}; plan anew")
    count = next(iter(found.values()))[1].moe_config.num_experts
    usage = Usage(sorted(found), count, rows.device)
    hooks = plans.read_hooks(folder, plan.hook, text.hidden_size) if plan.hook else {}
    for hook in hooks.values():
        hook.to(rows.device, config.model_config.dtype).requires_grad_(False)
    for layer, (name, runner) in sorted(found.items()):
        _check(runner, name)
        _cut(runner, plan.experts[layer], rows, usage, layer, _of_this_rank(hooks.get(layer), runner, name))
    return rows, usage


def _check(runner: MoERunner, name: str) -> None:
    if type(runner) is not MoERunner:
        raise UserError(f"layer {name} runs by {type(runner).__name__}, and only vLLM's own MoERunner can use fewer experts")
    if runner.is_monolithic:
        raise UserError(
            f"the MoE kernel of {name} ({type(runner.routed_experts.quant_method).__name__}) does its routing inside; "
            "choose a modular backend (--moe-backend triton on a GPU), or leave --edsd.experts out"
        )
    parallel, placed = runner.moe_config, runner.routed_experts.expert_map
    if parallel.dp_size > 1 or parallel.is_sequence_parallel or parallel.pcp_size > 1 or placed is not None:
        raise UserError(
            f"layer {name} shares its tokens or experts between ranks in other ways than tensor parallelism; fewer experts "
            "work with that only: leave out --enable-expert-parallel and data parallelism, or --edsd.experts"
        )
    if runner.router.eplb_state is not None:
        raise UserError("--enable-eplb moves experts by how often all of them are used; leave it or --edsd.experts out")


def _of_this_rank(hook: Hook | None, runner: MoERunner, name: str) -> Hook | None:
    """The hook's part for one layer, on the first of the ranks alone, since what their kernels give is summed."""
    if hook is None:
        return None
    if runner.routed_scaling_factor != 1.0 or runner.routed_input_transform is not None:
        raise UserError(
            f"layer {name} scales or transforms what its experts give, where a hook cannot stand; plan without one"
        )
    return hook if runner.moe_config.tp_rank == 0 else None


def _cut(runner: MoERunner, k: int, rows: Rows, usage: Usage, layer: int, hook: Hook | None) -> None:
    """Puts ourselves between the router and the kernel of one layer, and the hook behind it."""
    experts: Any = runner.routed_experts
    original = experts.forward_modular
    renormalises = bool(getattr(runner.router, "renormalize", False))

    def count(before: torch.Tensor, *after: torch.Tensor) -> None:
        if rows.live:
            usage.count(layer, before, after)

    def fewer(weights: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, places = largest(weights, k, renormalises)
        return values, ids.gather(-1, places)

    def repaired(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, **shared: Any) -> torch.Tensor:
        if hook is None:
            return original(x, weights, ids, **shared)
        repair = hook(x)  # first, since the kernel may write into what it is given
        return original(x, weights, ids, **shared) + repair

    def forward_modular(
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any = None,
        shared_experts_input: torch.Tensor | None = None,
    ) -> Any:
        shared = {"shared_experts": shared_experts, "shared_experts_input": shared_experts_input}
        if k == topk_ids.shape[1] or (rows.cut is None and not rows.everything):
            count(topk_ids)
            return original(x, topk_weights, topk_ids, **shared)
        if rows.everything or (rows.cut is not None and len(rows.cut) == len(x)):
            weights, chosen = fewer(topk_weights, topk_ids)
            count(topk_ids, chosen)
            return repaired(x, weights, chosen, **shared)
        weights, chosen = fewer(topk_weights[rows.cut], topk_ids[rows.cut])
        others = topk_ids[rows.whole]
        count(topk_ids, chosen, others)
        output = torch.empty_like(x)
        output[rows.cut] = repaired(x[rows.cut], weights, chosen, **shared)
        output[rows.whole] = original(x[rows.whole], topk_weights[rows.whole], others)
        return output

    experts.forward_modular = forward_modular
    # On a GPU vLLM calls the opaque operator anyway; on the CPU it would trace into the kernel and freeze the branch above.
    shared_op, plain_op = torch.ops.vllm.moe_forward_shared, torch.ops.vllm.moe_forward
    runner._forward_entry = plain_op if runner.shared_experts is None else shared_op
