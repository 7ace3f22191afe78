"""`vllm-edsd experts profile`, `plan`, `train` and `eval` from the command line to their files."""

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.errors import UserError
from vllm_edsd.experts import plan as plans
from vllm_edsd.training.samples import Sample, write_shard

TEMPLATE = "{% for message in messages %}{{ message['content'] + ' w4 ' }}{% endfor %}"


@pytest.fixture(autouse=True)
def stays(monkeypatch):
    """A command started as a script starts itself again on CPU, which would end this process."""
    monkeypatch.setattr("sys.argv", ["main.py"])


def call(*arguments):
    return CliRunner().invoke(app, ["experts", *map(str, arguments)])


def done(*arguments):
    found = call(*arguments)
    assert found.exit_code == 0, found.exception
    return found


def refusal(*arguments):
    found = call(*arguments)
    assert isinstance(found.exception, UserError), found.exception
    told = str(found.exception)
    assert "\n" not in told
    return told


@pytest.fixture(scope="module")
def target(make_moe, tmp_path_factory):
    """A Qwen2-MoE whose tokens are the words w0 to w95."""
    folder = tmp_path_factory.mktemp("moe") / "target"
    make_moe().save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(96)}, unk_token="w2"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", unk_token="w2")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_data(make_moe, tmp_path_factory):
    """A folder of the target's greedy answers to random prompts."""

    def make(seed, count=10):
        model, generator = make_moe(), torch.Generator().manual_seed(seed)
        samples = []
        for number in range(count):
            prompt = torch.randint(2, 96, (1, 10 + number), generator=generator)
            text = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=1)[0]
            samples.append(Sample(text.int(), prompt.shape[1], 0.0))
        folder = tmp_path_factory.mktemp("data") / f"data-{seed}"
        write_shard(folder / "samples-00000.safetensors", samples, {"target": "target"})
        return folder

    return make


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(1)


@pytest.fixture(scope="module")
def held_out(make_data):
    return make_data(2)


@pytest.fixture(scope="module")
def made(target, data, make_data, tmp_path_factory):
    """A profile, a plan of it, and the plan with its hook, as the commands leave them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main.py"])
        # An engine of vLLM's is for other tests.
        patch.setattr("vllm_edsd.engine.experts_share.experts_share", lambda target, dtype, prompts: len(prompts) / 10)
        done("profile", target, "--data", data, "--out", folder / "profile.json", "--texts", 3)
        planned = done("plan", "--profile", folder / "profile.json", "--out", folder / "plan")
        options = ("--texts", 6, "--held-out", 3, "--rank", 4)
        more = make_data(3)
        done("train", target, "--plan", folder / "plan", "--data", more, "--out", folder / "hooked", *options)
    return folder, planned, more


def test_a_profile_is_figures_and_a_picture(made):
    found = json.loads((made[0] / "profile.json").read_text())
    assert (found["top_k"], found["num_experts"], found["num_hidden_layers"]) == (4, 8, 3)
    assert (found["mode"], found["texts"], found["answer_tokens"]) == ("prefill", 3, 36)
    assert found["experts_share_of_prefill"] == 0.3
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert all(layer["divergence"][3] == 0 for layer in found["layers"])
    # What the last layer makes of a prompt reaches nothing.
    assert all(layer["divergence"][0] > 1e-3 for layer in found["layers"][:2])
    assert (made[0] / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_is_within_its_budget(made):
    folder, planned, _ = made
    plan = plans.read(folder / "plan")
    assert sum(plan.experts.values()) == 6 and plan.share == 0.5 and plan.hook is None
    assert "share 0.50" in planned.stdout
    assert plan.provenance["budget"] == 0.5
    assert plan.provenance["profile"]["data"].startswith("sha256:")


def test_training_writes_a_hook_for_the_layers_that_lost_experts(made, target):
    plan = plans.read(made[0] / "hooked")
    assert plan.experts == plans.read(made[0] / "plan").experts
    assert plan.hook.rank == 4
    assert plan.hook.layers == tuple(layer for layer, count in plan.experts.items() if count < 4 and layer < 2)
    plans.check(plan, made[0] / "hooked", target)
    hooks = plans.read_hooks(made[0] / "hooked", plan.hook, 64)
    assert all(hook.up.abs().max() > 0 for hook in hooks.values())
    held_out = plan.provenance["held_out"]["kl"]
    assert held_out.keys() == {"without", "fitted", "trained"} and len({*held_out.values()}) == 3


def test_eval_shows_every_arm_and_writes_what_it_shows(made, target, data, held_out, tmp_path):
    folder, _, _ = made
    rows = [{"id": n, "turns": [f"w{n + 9} w{n + 40}"], "reference": f"w{n + 20} w{n}"} for n in range(8)]
    questions = tmp_path / "words.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("eval", target, "--plan", folder / "hooked", "--data", held_out, "--calibration", data)
    options = ("--questions", questions, "--texts", 5, "--calibration-texts", 5, "--choices", 4)
    shown = done(*common, *options, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert list(arms) == ["full", "uniform", "graded", "ridge", "hook"]
    assert (found["texts"], found["questions"], found["answer_tokens"], found["mode"]) == (5, 4, 60, "prefill")
    assert arms["full"]["divergence"] == pytest.approx(0, abs=1e-6) and arms["full"]["agreement"] == 1
    assert all(arms[name]["divergence"] > 1e-4 for name in ("uniform", "graded", "ridge", "hook"))
    used = [arms[name]["experts_per_token"] for name in ("full", "uniform", "graded", "hook")]
    assert used == [4, used[1], used[1], used[1]] and 2 < used[1] < 2.2  # a prompt's last token keeps all
    assert all(arm["accuracy"].keys() == {"words"} for arm in arms.values())
    assert f"{arms['hook']['perplexity']:.3f}" in shown.stdout
    again = done(*common, *options, "--json", tmp_path / "again.json")
    assert again.stdout == shown.stdout


def test_eval_refuses_what_the_plan_was_made_from(made, target, data, held_out):
    folder, _, more = made
    for used, calibration in ((data, held_out), (more, held_out), (held_out, held_out)):
        told = refusal("eval", target, "--plan", folder / "hooked", "--data", used, "--calibration", calibration)
        assert told == f"data {used} is what the plan or the ridge fit is made from; evaluate on other answers"


@pytest.mark.parametrize("budget", ["0", "0.2"])
def test_a_budget_of_less_than_one_expert_is_refused(budget, made, tmp_path):
    told = refusal("plan", "--profile", made[0] / "profile.json", "--out", tmp_path / "p", "--budget", budget)
    assert told.startswith(f"budget {float(budget)} leaves less than one of 4 experts per token")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\udc80", None], ids=repr)
def test_what_is_no_profile_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "profile.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "profile.json" in refusal("plan", "--profile", tmp_path / "profile.json", "--out", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_dense_target_is_refused(dense, data, tmp_path):
    dense.save_pretrained(tmp_path / "dense")
    told = refusal("profile", tmp_path / "dense", "--data", data, "--out", tmp_path / "profile.json")
    assert "LlamaForCausalLM has no MoE layers" in told
    assert not (tmp_path / "profile.json").exists()


@pytest.mark.parametrize("command", ["profile", "train", "eval"])
def test_a_target_that_is_not_there_is_refused(command, made, data, held_out, tmp_path):
    given = {
        "profile": ("--data", data, "--out", tmp_path / "out"),
        "train": ("--plan", made[0] / "plan", "--data", data, "--out", tmp_path / "out"),
        "eval": ("--plan", made[0] / "plan", "--data", held_out, "--calibration", data),
    }
    assert "nothing has no config.json" in refusal(command, tmp_path / "nothing", *given[command])


def test_a_plan_for_another_model_is_refused(made, target, data, held_out, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(target, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    plan = ("--plan", made[0] / "plan")
    for given in (
        ("train", other, *plan, "--data", data, "--out", tmp_path / "out"),
        ("eval", other, *plan, "--data", held_out, "--calibration", data),
    ):
        assert "was made for another model" in refusal(*given)


def test_what_is_the_users_is_not_replaced(made, target, data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"target": str(target), "data": [str(data)]}))
    for mark, given in (
        ("plan.json", ("plan", "--profile", made[0] / "profile.json")),
        ("plan.json", ("train", target, "--plan", made[0] / "plan", "--data", data)),
        ("provenance.json", ("carve", recipe)),
    ):
        assert f"holds files that are not ours (there is no {mark})" in refusal(*given, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_rank_above_the_width_is_refused(made, target, data, tmp_path):
    given = (
        "--plan",
        made[0] / "plan",
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--texts",
        2,
        "--held-out",
        1,
        "--rank",
        65,
    )
    assert "--rank 65 is more than the 64 dimensions" in refusal("train", target, *given)


def test_too_few_texts_are_refused(made, target, data, tmp_path):
    given = ("--plan", made[0] / "plan", "--data", data, "--out", tmp_path / "out", "--texts", 9, "--held-out", 9)
    assert "and 18 are needed" in refusal("train", target, *given)


def test_a_rate_of_zero_is_refused(made, target, data, tmp_path):
    given = ("--plan", made[0] / "plan", "--data", data, "--out", tmp_path / "out", "--learning-rate", 0)
    assert "'learning_rate' cannot be 0.0; give more than 0" in refusal("train", target, *given)
