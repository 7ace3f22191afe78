"""What is changed of a loaded MoE target, around kernels that only write down what they were given."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from vllm_edsd.engine import experts
from vllm_edsd.engine.experts_worker import before_answer
from vllm_edsd.errors import UserError
from vllm_edsd.experts import plan as plans
from vllm_edsd.experts.hook import Hook

HIDDEN, TOP_K = 6, 4
PLAN = {"model": "m", "mode": "prefill", "num_hidden_layers": 2, "top_k": TOP_K, "experts": {0: 2, 1: 4}}
IDS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6], [1, 3, 5, 7], [7, 6, 5, 4]])
WEIGHTS = torch.tensor([[1, 4, 3, 2], [4, 3, 2, 1], [1, 2, 3, 4], [2, 1, 1, 2], [3, 1, 2, 4]]) / 10
STATES = torch.arange(5.0)[:, None].expand(5, HIDDEN)


def make_runner(layer, renormalize=False):
    """vLLM's own class around a kernel that gives each token its own state times the sum of its weights."""
    runner = MoERunner.__new__(MoERunner)
    nn.Module.__init__(runner)
    given = []

    def kernel(x, weights, ids, shared_experts=None, shared_experts_input=None):
        given.append((x, weights, ids))
        output = x * weights.sum(1, keepdim=True)
        if x is not STATES:
            x.fill_(float("nan"))
        return output

    method = SimpleNamespace(is_monolithic=False)
    facts = {
        "layer_name": f"model.layers.{layer}.mlp.experts",
        "routed_experts": SimpleNamespace(quant_method=method, expert_map=None, forward_modular=kernel),
        "moe_config": SimpleNamespace(dp_size=1, pcp_size=1, is_sequence_parallel=False, num_experts=8, tp_rank=0),
        "routed_scaling_factor": 1.0,
        "routed_input_transform": None,
        "router": SimpleNamespace(eplb_state=None, renormalize=renormalize),
        "_shared_experts": None,
    }
    runner.__dict__.update(facts)
    return runner, given


class Block(nn.Module):
    def __init__(self, runner):
        super().__init__()
        self.gate = nn.Linear(HIDDEN, 8, bias=False)
        self.experts = runner


@pytest.fixture
def built(tmp_path):
    """Installs a plan in a model of two layers; gives the model, what its kernels saw, and what `install` returned."""

    def build(
        mode="prefill", renormalize=False, change=lambda runner: None, hooked=lambda runner: None, config=None, **changes
    ):
        runners, seen = zip(*(make_runner(layer, renormalize) for layer in range(2)), strict=True)
        change(runners[0])
        hooked(runners[1])
        model = nn.Module()
        model.layers = nn.ModuleList(Block(runner) for runner in runners)
        hook = Hook(torch.randn(3, HIDDEN), torch.ones(HIDDEN, 3))
        plan = plans.Plan(**PLAN | changes, hook=plans.HookPlace(layers=(1,), rank=3))
        plans.write(plan, {1: hook}, tmp_path / "plan")
        text = {"num_hidden_layers": 2, "num_experts_per_tok": TOP_K, "hidden_size": HIDDEN} | (config or {})
        given = SimpleNamespace(
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace(**text), dtype=torch.float32),
        )
        rows, usage = experts.install(model, given, tmp_path / "plan", mode)
        return SimpleNamespace(blocks=model.layers, seen=seen, rows=rows, usage=usage, hook=hook)

    return build


def route(block, states=STATES):
    return block.experts.routed_experts.forward_modular(states, WEIGHTS, IDS)


def test_prompts_are_cut_and_the_rest_is_not(built):
    found = built()
    found.rows.set(torch.tensor([True, False, True, False, False]))
    output = route(found.blocks[0])
    torch.testing.assert_close(output[:, 0], torch.tensor([0, 1, 2 * 0.7, 3 * 0.6, 4]))
    (_, weights, cut), (_, _, whole) = found.seen[0]
    assert cut.tolist() == [[1, 2], [6, 4]] and whole.tolist() == IDS[[1, 3, 4]].tolist()
    torch.testing.assert_close(weights, torch.tensor([[0.4, 0.3], [0.4, 0.3]]))
    assert found.usage.read()[0] == [5, 20, 16, 8, 7, 1]  # nobody is left with expert 0


def test_routers_that_renormalise_keep_the_sum_of_the_weights(built):
    found = built(renormalize=True)
    found.rows.set(torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(route(found.blocks[0])[:, 0], torch.tensor([0, 1, 2, 3 * 0.6, 4]))
    ((_, weights, _),) = found.seen[0]
    torch.testing.assert_close(weights[0], torch.tensor([4 / 7, 3 / 7]))


def test_steps_without_prompts_and_layers_that_keep_all_are_vllms_own(built):
    found = built()
    found.rows.set(torch.zeros(5, dtype=torch.bool))
    route(found.blocks[0])
    found.rows.set(torch.ones(5, dtype=torch.bool))
    route(found.blocks[1])
    for seen in found.seen:
        ((x, weights, ids),) = seen
        assert x is STATES and weights is WEIGHTS and ids is IDS
    assert {layer: sums[:3] for layer, sums in found.usage.read().items()} == {0: [5, 20, 20], 1: [5, 20, 20]}


def test_mode_all_cuts_everything_and_counts_what_is_served_only(built):
    found = built("all")
    route(found.blocks[0])  # a warm-up, which must do the same work
    found.rows.set(torch.zeros(5, dtype=torch.bool))
    route(found.blocks[0])
    found.rows.set(None)
    route(found.blocks[0])
    assert [ids.shape[1] for _, _, ids in found.seen[0]] == [2, 2, 2]
    assert found.usage.read()[0][:3] == [5, 20, 10]


def test_after_a_step_nothing_is_cut(built):
    found = built()
    found.rows.set(torch.ones(5, dtype=torch.bool))
    found.rows.set(None)
    route(found.blocks[0])
    assert found.seen[0][0][2] is IDS
    assert found.rows.cut is None
    assert found.usage.read()[0] == [0.0] * 6


def test_the_hook_repairs_the_rows_that_are_cut(built):
    found = built(experts={0: 2, 1: 2})
    cut = torch.tensor([True, False, True, True, False])
    for chosen in (cut, torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)):
        found.rows.set(chosen)
        # The kernel writes into what it is given; the repair is of what it was given.
        plain, repaired = (route(block, STATES.clone()) for block in found.blocks)
        torch.testing.assert_close(repaired, plain + chosen[:, None] * found.hook(STATES))
        assert (repaired[1:] != plain[1:]).any(1).equal(chosen[1:])  # the first token's state is zero
        assert not repaired.requires_grad


def test_the_first_rank_alone_adds_the_repair(built):
    def second(runner):
        runner.moe_config.tp_rank = 1

    found = built(hooked=second, experts={0: 2, 1: 2})
    found.rows.set(torch.ones(5, dtype=torch.bool))
    assert torch.equal(route(found.blocks[0]), route(found.blocks[1]))


@pytest.mark.parametrize("fact", [{"routed_scaling_factor": 2.0}, {"routed_input_transform": nn.Identity()}], ids=str)
def test_a_hook_where_what_experts_give_is_changed_is_refused(fact, built):
    with pytest.raises(UserError, match=r"layer layers\.1\.experts scales or transforms what its experts give"):
        built(hooked=lambda runner: [setattr(runner, *item) for item in fact.items()])


def test_a_monolithic_kernel_is_refused_with_the_backend_to_choose(built):
    def hide(runner):
        runner.routed_experts.quant_method.is_monolithic = True

    with pytest.raises(UserError, match=r"kernel of layers\.0\.experts .*does its routing inside; choose .*triton"):
        built(change=hide)


OTHER_WAYS = [
    lambda runner: setattr(runner.moe_config, "dp_size", 2),
    lambda runner: setattr(runner.moe_config, "pcp_size", 2),
    lambda runner: setattr(runner.moe_config, "is_sequence_parallel", True),
    lambda runner: setattr(runner.routed_experts, "expert_map", torch.zeros(8)),
]


@pytest.mark.parametrize("change", OTHER_WAYS, ids=["data", "context", "sequence", "experts"])
def test_other_kinds_of_parallelism_are_refused(change, built):
    with pytest.raises(UserError, match=r"in other ways than tensor parallelism; .*leave out --enable-expert-parallel"):
        built(change=change)


def test_experts_that_move_are_refused(built):
    with pytest.raises(UserError, match="--enable-eplb"):
        built(change=lambda runner: setattr(runner.router, "eplb_state", object()))


def test_another_runner_is_refused(built):
    class Other(MoERunner):
        pass

    with pytest.raises(UserError, match=r"runs by Other, and only vLLM's own MoERunner"):
        built(change=lambda runner: setattr(runner, "__class__", Other))


@pytest.mark.parametrize(
    ("changes", "config", "told"),
    [
        ({}, {"num_hidden_layers": 3}, "is for a model with num_hidden_layers 2, and the target has 3"),
        ({}, {"num_experts_per_tok": 8}, "is for a model with top_k 4, and the target has 8"),
        ({"experts": {1: 2}}, {}, r"differ in which layers have experts: \[0\]"),
        ({}, {"hidden_size": 8}, "not for 8 dimensions at rank 3"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused(changes, config, told, built):
    with pytest.raises(UserError, match=told):
        built(config=config, **changes)


def test_which_tokens_stand_before_the_answer():
    """A chunk, a prompt's last chunk, a decode, and a preempted request that is read again beyond its prompt."""
    computed, prompts, counts = [0, 16, 30, 0], [40, 20, 30, 3], [4, 4, 1, 5]
    batch = {
        "num_reqs": 4,
        "num_computed_tokens_cpu": torch.tensor([*computed, 9]).numpy(),
        "num_prompt_tokens": torch.tensor([*prompts, 9]).numpy(),
    }
    starts = torch.tensor([0, *counts, 0]).cumsum(0)
    runner = SimpleNamespace(input_batch=SimpleNamespace(**batch), query_start_loc=SimpleNamespace(np=starts.numpy()))
    expected = [
        place < prompt - 1
        for first, prompt, count in zip(computed, prompts, counts, strict=True)
        for place in range(first, first + count)
    ]
    assert before_answer(runner).tolist() == expected
    assert expected.count(True) == 4 + 3 + 0 + 2
