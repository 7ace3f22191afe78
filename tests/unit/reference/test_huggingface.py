"""Trees through a real transformer: the same text as plain decoding, and a cache that forgets what was rejected."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from vllm_edsd.errors import UserError
from vllm_edsd.reference.engine import Engine, Sampling
from vllm_edsd.reference.growth import Plan
from vllm_edsd.reference.huggingface import HuggingFace
from vllm_edsd.scoring.distributions import probabilities
from vllm_edsd.scoring.draft import Draws
from vllm_edsd.scoring.registry import make

TOKENS = 24
COSTS = [1 + 0.04 * count for count in range(80)]
PROMPTS = [[3], [5, 9, 2, 40, 7], [11, 12, 13], list(range(20, 40))]


def llama(seed, vocabulary=96, **changes):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=0.4, eos_token_id=None, **sizes | heads | changes)
    return LlamaForCausalLM(config).eval()


def softened(model, noise):
    """A drafter that often agrees: the model with noise on its output head."""
    drafter = llama(0)
    drafter.load_state_dict(model.state_dict())
    torch.manual_seed(9)
    drafter.lm_head.weight.data += noise * torch.randn_like(drafter.lm_head.weight)
    return drafter


@pytest.fixture(scope="module")
def target():
    return llama(0)


@pytest.fixture(scope="module")
def drafter(target):
    return softened(target, 0.15)


@pytest.fixture(scope="module")
def plain(target):
    """Greedy text by the model's own generate, prompt by prompt, with nothing of ours in the way."""
    found = []
    for prompt in PROMPTS:
        text = target.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        found.append(text[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize(
    ("name", "options", "plan"),
    [
        ("standard", {}, Plan(())),
        ("standard", {}, Plan((1, 1, 1, 1))),
        ("standard", {}, Plan((1, 1, 1), Draws.INDEPENDENT)),
        ("block", {}, Plan((1, 1, 1, 1))),
        ("block", {}, Plan((1, 1, 1), Draws.INDEPENDENT)),
        ("k-seq", {}, Plan((3, 1, 1), Draws.INDEPENDENT)),
        ("recursive", {}, Plan((3, 2, 1))),
        ("recursive", {}, Plan((3, 2, 1), Draws.DISTINCT)),
        ("talon", {"budget": 8}, Plan((3, 3, 3, 3, 3))),
        ("evict", {"costs": COSTS}, Plan((1, 1, 1, 1, 1))),
        ("evict", {"costs": COSTS}, Plan((3, 2, 2))),
        ("evict", {"costs": COSTS}, Plan((3, 2), Draws.DISTINCT)),
    ],
    ids=lambda value: f"{value.draws.value}-{value.widths}" if isinstance(value, Plan) else str(value)[:12],
)
def test_greedy_text_is_plain_text(target, drafter, plain, name, options, plan):
    engine = Engine(HuggingFace(target), HuggingFace(drafter), make(name, **options), plan, Sampling(0))
    found = engine.generate(PROMPTS, TOKENS, torch.Generator().manual_seed(2))
    assert found.lists == plain
    assert (found.steps == TOKENS).all() if not plan.widths else found.steps.sum() < 0.8 * TOKENS * len(PROMPTS)


def test_a_perfect_drafter_takes_the_fewest_steps(target, plain):
    engine = Engine(HuggingFace(target), HuggingFace(target), make("standard"), Plan((1, 1, 1)), Sampling(0))
    found = engine.generate(PROMPTS, TOKENS, torch.Generator().manual_seed(2))
    assert found.lists == plain
    assert (found.steps == TOKENS // 4).all()


def test_logits_after_rejections_are_those_of_a_fresh_forward(target):
    """A tree is fed, one path stays; what follows sees that path alone, at its positions."""
    session = HuggingFace(target).start(2)
    session.feed(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[0, 0, 1], [0, 0, 1]]))
    session.commit(torch.tensor([[0, 1, 2], [0, 1, -1]]))
    tree = session.feed(torch.tensor([[7, 8, 9, 10], [7, 8, 9, 10]]), torch.tensor([[0, 0, 0, 1], [0, 0, 1, 2]]))
    for row, path, text in [(0, 3, [1, 2, 3, 7, 8, 10]), (0, 2, [1, 2, 3, 7, 9]), (1, 3, [4, 5, 7, 8, 9, 10])]:
        fresh = target(torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(tree[row, path], fresh, rtol=1e-4, atol=1e-4)
    session.commit(torch.tensor([[0, 2], [0, 1]]))
    session.select(torch.tensor([True, False]))
    last = session.feed(torch.tensor([[11]]), torch.tensor([[0]]))[0, 0]
    torch.testing.assert_close(last, target(torch.tensor([[1, 2, 3, 7, 9, 11]])).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_a_stop_token_ends_a_text(target, drafter, plain):
    stop = plain[1][7]
    engine = Engine(HuggingFace(target), HuggingFace(drafter), make("recursive"), Plan((2, 2)), Sampling(0))
    found = engine.generate(PROMPTS, TOKENS, torch.Generator().manual_seed(2), stop=[stop])
    assert found.lists == [text[: text.index(stop) + 1] if stop in text else text for text in plain]
    assert len(found.lists[1]) <= 8


@pytest.mark.parametrize(
    ("name", "plan"),
    [("recursive", Plan((2, 1), Draws.DISTINCT)), ("block", Plan((1, 1), Draws.INDEPENDENT))],
    ids=["recursive", "block"],
)
def test_sampled_text_follows_the_target(p_of, name, plan):
    tiny = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 4, "num_hidden_layers": 1}
    target, drafter = llama(3, 4, **tiny), llama(4, 4, **tiny)
    engine = Engine(HuggingFace(target), HuggingFace(drafter), make(name), plan, Sampling(0.8))
    found = engine.generate([[1, 2]] * 100_000, 3, torch.Generator().manual_seed(5))
    with torch.inference_mode():
        texts = torch.cartesian_prod(torch.tensor([1]), torch.tensor([2]), torch.arange(4), torch.arange(4))
        chances = probabilities(target(texts).logits, 0.8).unflatten(0, (4, 4))
    assert p_of(found.tokens, chances[0, 0, 1], chances[:, 0, 2], chances[:, :, 3]) > 1e-3


def test_no_tokens_wanted(target):
    engine = Engine(HuggingFace(target), HuggingFace(target), make("standard"), Plan((1,)), Sampling(0))
    assert engine.generate([[1], [2, 3]], 0, torch.Generator()).lists == [[], []]


def test_other_architectures():
    torch.manual_seed(1)
    target = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)).eval()
    text = target.generate(torch.tensor([[4, 5]]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    engine = Engine(HuggingFace(target), HuggingFace(llama(1, 50)), make("recursive"), Plan((3, 2)), Sampling(0))
    assert engine.generate([[4, 5]], 12, torch.Generator()).lists == [text[0, 2:].tolist()]


def test_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match=r"96 tokens and the drafter 50"):
        Engine(HuggingFace(llama(0)), HuggingFace(llama(0, 50)), make("standard"), Plan((1,)), Sampling())
    model = llama(0)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="eager, sdpa"):
        HuggingFace(model)
    model = llama(0)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match="linear_attention"):
        HuggingFace(model)
    model = llama(0)
    model.config.sliding_window = 6
    engine = Engine(HuggingFace(model), HuggingFace(llama(0)), make("standard"), Plan((1,)), Sampling(0))
    with pytest.raises(UserError, match="window of 6"):
        engine.generate([[1, 2, 3]], 8, torch.Generator())
    with pytest.raises(UserError, match="empty"):
        engine.generate([[1], []], 8, torch.Generator())
