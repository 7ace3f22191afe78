"""The tiny target with a tokenizer and a template, drafters for it, and a judge's view of both."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.evaluation.target import Target
from vllm_edsd.training.export import export
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.target import TargetEnds
from vllm_edsd.training.trainer import Trainer

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}w2 w3 {% endif %}"
    "{% for message in messages %}{{ message['content'] + ' w4 ' }}{% endfor %}{% if add_generation_prompt %}w5{% endif %}"
)


@pytest.fixture(scope="session")
def chat_target(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory: the tiny target, whose tokens are the words w0 to w127."""
    folder = tmp_path_factory.mktemp("chat") / "chat-target"
    shutil.copytree(tiny_target, folder)
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(128)}, unk_token="w2"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", unk_token="w2")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(chat_target: Path) -> Target:
    """That target, loaded in float32."""
    return Target(chat_target, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="session", params=["edsd", "eagle3"])
def tiny_drafter(request, tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory: a drafter of random weights, half of the vocabulary, that says something else at every position."""
    torch.manual_seed(3)
    config = DrafterConfig.of_target(TargetEnds.read(tiny_target).config, "tiny-target", request.param, (1, 3), 64)
    drafter = factory.build(config, torch.randperm(128)[:64].sort().values)
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    folder = tmp_path_factory.mktemp(request.param) / "drafter"
    export(config, drafter.state_dict(), folder, {})
    return folder


@pytest.fixture
def trained_drafter(tiny_recipe: dict, tmp_path: Path) -> Path:
    """A directory: a drafter that has learnt the tiny data by heart, as far as it goes."""
    recipe = tiny_recipe | {"epochs": 30, "batch_tokens": 256, "draft_vocab_size": 128, "learning_rate": 5e-3}
    Trainer(Recipe(**recipe), tmp_path / "trained", lambda *_: None, lambda *_: None).run(lambda *_: None)
    return tmp_path / "trained"
