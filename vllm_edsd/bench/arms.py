"""The arms of a bench: how each one's server is told to speculate.

none     plain decoding, what all others are compared with
ngram    vLLM's prompt lookup, matching the last 2 to 4 tokens
suffix   vLLM's suffix decoding (needs arctic-inference)
eagle3   our EAGLE-3 drafter, by `--edsd`
edsd     our EDSD drafter, by `--edsd`
"""

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence

from vllm_edsd.bench.arguments import ARMS
from vllm_edsd.drafters.checkpoint import check, resolve
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.errors import UserError

DRAFTERS = {"eagle3": "smollm2-eagle3", "edsd": "smollm2-edsd"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A name and the `vllm serve` arguments it adds; `remembers` its answers across requests if a repeat would be easier."""

    name: str
    arguments: tuple[str, ...] = ()
    remembers: bool = False


def make_arms(names: Sequence[str], num_tokens: int, drafters: Mapping[str, str], target: TargetShape | None) -> list[Arm]:
    """The arms `names`, all drafting up to `num_tokens` tokens a step; `drafters` overrides DRAFTERS.

    Raises UserError for an unknown arm, a missing package, or a drafter that is absent or not made for `target`.
    """
    for name in drafters:
        if name not in DRAFTERS:
            raise UserError(f"arm {name!r} takes no drafter; those that do: {', '.join(DRAFTERS)}")
    return [_make(name, num_tokens, {**DRAFTERS, **drafters}, target) for name in dict.fromkeys(names)]


def _make(name: str, num_tokens: int, drafters: Mapping[str, str], target: TargetShape | None) -> Arm:
    if name == "none":
        return Arm(name)
    if name == "ngram":
        return _native(name, {"num_speculative_tokens": num_tokens, "prompt_lookup_max": 4, "prompt_lookup_min": 2})
    if name == "suffix":
        if importlib.util.find_spec("arctic_inference") is None:
            raise UserError(
                "arm suffix needs package arctic-inference, which is not installed; run `pip install nanobind==2.9.2 "
                "grpcio-tools && pip install --no-deps --no-build-isolation arctic-inference==0.3.0` (g++ and cmake compile "
                "it), or leave suffix out of --arms"
            )
        return _native(name, {"num_speculative_tokens": num_tokens}, remembers=True)
    if name in DRAFTERS:
        check(resolve(drafters[name]), target)
        return Arm(name, ("--edsd", drafters[name], "--edsd.num-tokens", str(num_tokens)))
    raise UserError(f"unknown arm {name!r}; known: {', '.join(ARMS)}")


def _native(method: str, config: dict[str, int], remembers: bool = False) -> Arm:
    return Arm(method, ("--speculative-config", json.dumps({"method": method, **config})), remembers)
