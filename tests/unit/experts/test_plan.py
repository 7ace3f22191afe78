import json

import pytest
import torch
from safetensors.torch import save_file

from vllm_edsd.errors import UserError
from vllm_edsd.experts import plan as plans
from vllm_edsd.fingerprint import model_fingerprint

GOOD = {"model": "abc", "mode": "prefill", "num_hidden_layers": 3, "top_k": 4, "experts": {0: 2, 2: 4}}
PLACE = plans.HookPlace(layers=(0, 2), rank=5)


@pytest.fixture
def written(make_hook, tmp_path):
    """A plan with a hook on disk."""
    hooks = {layer: make_hook(5, hidden=16, seed=layer) for layer in PLACE.layers}
    plan = plans.Plan(**GOOD, hook=PLACE, provenance={"data": "sha256:1"})
    plans.write(plan, hooks, tmp_path / "plan")
    return tmp_path / "plan", plan, hooks


@pytest.fixture
def target(make_moe, tmp_path):
    make_moe().save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def change(folder, **changes):
    file = folder / plans.PLAN
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_plan_is_read_as_it_was_written(written):
    folder, plan, hooks = written
    assert plans.read(folder) == plan
    assert plans.read(folder).experts == {0: 2, 2: 4}
    assert plan.share == 6 / 8
    found = plans.read_hooks(folder, PLACE, 16)
    assert found.keys() == hooks.keys()
    for layer, hook in hooks.items():
        assert torch.equal(found[layer].down, hook.down) and torch.equal(found[layer].up, hook.up)


def test_a_plan_without_a_hook(tmp_path):
    plan = plans.Plan(**GOOD)
    plans.write(plan, {}, tmp_path / "plan")
    assert plans.read(tmp_path / "plan") == plan
    assert [file.name for file in (tmp_path / "plan").iterdir()] == [plans.PLAN]


def test_a_plan_replaces_the_one_before(written):
    folder, plan, _ = written
    plans.write(plan.model_copy(update={"hook": None}), {}, folder)
    assert plans.read(folder).hook is None and not (folder / plans.HOOK).exists()


IMPOSSIBLE = [
    ({"experts": {"0": 0, "2": 4}}, "layer 0 has 0 experts; possible are 1 to 4"),
    ({"experts": {"0": 2, "2": 5}}, "layer 2 has 5 experts; possible are 1 to 4"),
    ({"experts": {"0": -1, "2": 4}}, "layer 0 has -1 experts; possible are 1 to 4"),
    ({"experts": {"0": 2, "2": 4, "3": 1}}, "layer 3 is not one of 3"),
    ({"experts": {"0": 2, "2": 4, "-1": 1}}, "layer -1 is not one of 3"),
    ({"experts": {}}, "'experts' .* cannot be {}"),
    ({"experts": {"0": 2}}, r"the hook's layers \[2\] are no MoE layers of the plan"),
    ({"top_k": 0}, "'top_k' .* cannot be 0"),
    ({"num_hidden_layers": "many"}, "'num_hidden_layers' cannot be 'many'"),
    ({"mode": "decode"}, "'mode' .* cannot be 'decode'; give 'prefill' or 'all'"),
    ({"hook": {"layers": [2], "rank": 0}}, r"'hook\.rank' cannot be 0"),
    ({"hook": {"layers": [], "rank": 1}}, r"'hook\.layers' .*cannot be \[\]"),
    ({"budget": 1}, r"unknown key 'budget' \(value 1\); known: 'model', 'mode'"),
]


@pytest.mark.parametrize(("changes", "told"), IMPOSSIBLE, ids=lambda value: json.dumps(value)[:40])
def test_an_impossible_plan_is_refused(changes, told, written):
    change(written[0], **changes)
    with pytest.raises(UserError, match=rf"plan\.json: .*{told}") as caught:
        plans.read(written[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "", "[1]", "null", '"plan"', "\udc80"], ids=repr)
def test_a_damaged_plan_is_refused(text, written):
    (written[0] / plans.PLAN).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"plan\.json is (not valid JSON|no mapping)"):
        plans.read(written[0])


@pytest.mark.parametrize("place", ["nothing", "plan/plan.json", "."])
def test_what_is_no_plan_is_refused(place, written, tmp_path):
    with pytest.raises(UserError, match=r"is no plan: it has no plan\.json; make one with: vllm-edsd experts plan"):
        plans.read(tmp_path / place)


def test_a_missing_hook_is_refused(written):
    (written[0] / plans.HOOK).unlink()
    with pytest.raises(UserError, match=r"names a hook and has no hook\.safetensors; train it again"):
        plans.read(written[0])


@pytest.mark.parametrize(
    ("place", "hidden"),
    [(PLACE.model_copy(update={"rank": 6}), 16), (PLACE, 17), (PLACE.model_copy(update={"layers": (0, 1)}), 16)],
    ids=["another rank", "another width", "other layers"],
)
def test_a_hook_of_another_shape_is_refused(place, hidden, written):
    told = f"hook.safetensors is damaged or not for {hidden} dimensions at rank {place.rank} "
    with pytest.raises(UserError, match=told):
        plans.read_hooks(written[0], place, hidden)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def other(path):
    save_file({"0.up": torch.zeros(16, 5)}, path)


@pytest.mark.parametrize("spoil", [cut, other, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_hook_is_refused(spoil, written):
    spoil(written[0] / plans.HOOK)
    with pytest.raises(UserError, match=r"hook\.safetensors is damaged .*train it again"):
        plans.read_hooks(written[0], PLACE, 16)


def test_settings_that_differ_have_different_marks(written, make_hook, tmp_path):
    folder, plan, hooks = written
    variants = {"same": plan.model_copy(update={"provenance": {}}), "k": plan.model_copy(update={"experts": {0: 1, 2: 4}})}
    for name, variant in variants.items():
        plans.write(variant, hooks, tmp_path / name)
    plans.write(plan, {**hooks, 2: make_hook(5, hidden=16)}, tmp_path / "hook")
    plans.write(plan.model_copy(update={"hook": None}), {}, tmp_path / "bare")
    marks = {name: plans.fingerprint(tmp_path / name) for name in ("same", "k", "hook", "bare")}
    assert marks.pop("same") == plans.fingerprint(folder)
    assert len({*marks.values(), plans.fingerprint(folder)}) == 4


def test_a_plan_is_for_its_model_alone(make_moe, target, tmp_path):
    fitting = {**GOOD, "model": model_fingerprint(target)}
    plans.check(plans.Plan(**fitting), tmp_path / "plan", target)
    for changes, told in (
        ({"num_hidden_layers": 5}, "is for a model with num_hidden_layers 5, and .*target has 3; plan anew"),
        ({"top_k": 6}, "is for a model with top_k 6, and .*target has 4; plan anew"),
        ({"model": "abc"}, "was made for another model than .*target; plan anew with: vllm-edsd experts profile"),
    ):
        with pytest.raises(UserError, match=rf"^plan .*plan {told}"):
            plans.check(plans.Plan(**fitting | changes), tmp_path / "plan", target)


def test_a_dense_target_is_refused(dense, tmp_path):
    dense.save_pretrained(tmp_path / "dense")
    with pytest.raises(UserError, match=r"is for a model with top_k 4, and .*dense has None"):
        plans.check(plans.Plan(**GOOD), tmp_path / "plan", tmp_path / "dense")


def test_a_target_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"target .*nothing has no config\.json"):
        plans.check(plans.Plan(**GOOD), tmp_path / "plan", tmp_path / "nothing")
