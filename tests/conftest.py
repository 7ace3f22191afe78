"""The bundled target, a tiny real one with its data, the docs' packages, what kustomize renders; each made once."""

import functools
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vllm_edsd.engine.cpu import cpu_environment
from vllm_edsd.targets import default_target
from vllm_edsd.training.samples import Sample, write_shard

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def pytest_configure() -> None:
    """Preloads for the engines that tests start, as our commands have them, and one thread for each process where pytest
    runs several: vLLM would bind all of them to the same cores.

    Ray's workers are no nicer than the tests beside them, which would leave them next to nothing.
    """
    os.environ |= cpu_environment(os.environ)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "RAY_worker_niceness": "0"}
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first: at the end the others' processes would have nothing left to do beside it."""
    items.sort(key=lambda item: item.path.name != "test_sampling.py")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a test leaves in the environment is gone before the next: commands called here set defaults for vLLM."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def target() -> Path:
    """SmolLM2-135M-Instruct in the user's cache."""
    return default_target()


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers in float32, sharp enough that greedy continuations vary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(initializer_range=0.3, **TINY))
    folder = tmp_path_factory.mktemp("tiny") / "tiny-target"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def extending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of docs/extending.md as pip leaves them: modules, and metadata with entry points."""
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    folder = tmp_path_factory.mktemp("extending")
    for module, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (folder / module).write_text(code)
    for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        project = tomllib.loads(block)["project"]
        metadata = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = []
        for group, entries in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {place}" for name, place in entries.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def kustomize() -> Callable[[Path], list[dict[str, Any]]]:
    """The objects that `kubectl kustomize FOLDER` prints."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; manifests are rendered with `kubectl kustomize`")

    @functools.cache
    def render(folder: Path) -> list[dict[str, Any]]:
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return render


@pytest.fixture(scope="session")
def image_environment() -> Callable[[str], dict[str, str]]:
    """The ENV of a Dockerfile under deploy/docker/, by its name."""

    def read(name: str) -> dict[str, str]:
        text = (Path(__file__).parents[1] / "deploy" / "docker" / name).read_text().replace("\\\n", " ")
        settings = " ".join(re.findall(r"^ENV (.*)$", text, re.MULTILINE))
        return dict(re.findall(r"(\w+)=(\S+)", settings))

    return read


@pytest.fixture(scope="session")
def tiny_data(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of greedy answers by the tiny target to random prompts of uneven length."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    folder = tmp_path_factory.mktemp("data") / "tiny-data"
    for shard in range(2):
        samples = []
        for number in range(12):
            prompt = torch.randint(2, 128, (1, 5 + 3 * number), generator=generator)
            text = model.generate(prompt, max_new_tokens=10 + 2 * number, do_sample=False, pad_token_id=1)[0]
            samples.append(Sample(text.int(), prompt.shape[1], 0.0))
        write_shard(folder / f"samples-{shard:05d}.safetensors", samples, {"target": "tiny-target"})
    return folder


@pytest.fixture
def tiny_recipe(tiny_target: Path, tiny_data: Path, tmp_path: Path) -> dict:
    """The keys of a recipe that trains in a second; change what a test is about."""
    return {
        "drafter": "edsd",
        "target": str(tiny_target),
        "target_name": "tiny-target",
        "data": str(tiny_data),
        "features": str(tmp_path / "features"),
        "feature_layers": [1, 2, 3],
        "layers": [2, 3],
        "draft_vocab_size": 64,
        "max_depth": 3,
        "epochs": 4,
        "batch_tokens": 64,
        "precision": "float32",
        "held_out": 4,
        "evaluate_every": 1000,
        "checkpoint_every": 5,
    }
