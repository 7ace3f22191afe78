"""The arms of a bench: how each one's server is told to speculate.

none     plain decoding, what all others are compared with
ngram    vLLM's prompt lookup, matching the last 2 to 4 tokens
suffix   vLLM's suffix decoding (needs arctic-inference)
eagle3   our EAGLE-3 drafter, by `--edsd`
edsd     our EDSD drafter, by `--edsd`

The last two come once for each length policy that is asked for.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence

from vllm_edsd.bench.arguments import ARMS
from vllm_edsd.config import MOST_TOKENS, NOTHING
from vllm_edsd.drafters.checkpoint import check, resolve
from vllm_edsd.drafters.registry import names as proposers
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.errors import UserError
from vllm_edsd.policy.registry import names

DRAFTERS = {"eagle3": "smollm2-eagle3", "edsd": "smollm2-edsd"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """A name and the `vllm serve` arguments it adds; `remembers` its answers across requests if a repeat would be easier.

    `policy` is how far it drafts, as in `evict:8`; None where vLLM's own method has no policy.
    """

    name: str
    arguments: tuple[str, ...] = ()
    remembers: bool = False
    policy: str | None = None

    @property
    def label(self) -> str:
        """The name, with the policy where there is one."""
        return self.name if self.policy is None else f"{self.name} {self.policy}"


def make_arms(
    arms: Sequence[str],
    num_tokens: int,
    drafters: Mapping[str, str],
    target: TargetShape | None,
    policies: Sequence[str],
) -> list[Arm]:
    """The arms of these names, all drafting up to `num_tokens` tokens a step; `drafters` overrides DRAFTERS.

    `policies` are names, each with `:K` where it shall draft up to another number of tokens, and `+PROPOSER` for another
    model-free proposer beside the drafter than the policy has by itself (`+none`: the drafter alone). Raises UserError for
    an unknown arm, policy or proposer, a missing package, or a drafter that is absent or not made for `target`.
    """
    for name in drafters:
        if name not in DRAFTERS:
            raise UserError(f"arm {name!r} takes no drafter; those that do: {', '.join(DRAFTERS)}")
    lengths = dict(parse_policy(policy, num_tokens) for policy in policies)
    made = []
    for name in dict.fromkeys(arms):
        if name in DRAFTERS:
            drafter = {**DRAFTERS, **drafters}[name]
            check(resolve(drafter), target)
            for policy, options in lengths.items():
                made.append(Arm(name, ("--edsd", drafter, *options), policy=policy))
        else:
            made.append(_make(name, num_tokens))
    return made


def parse_policy(given: str, num_tokens: int) -> tuple[str, tuple[str, ...]]:
    """`evict`, `evict:8` or `evict:8+none` to its full form and the options of `vllm serve` that it stands for.

    Raises UserError for another form, an unknown policy or an unknown proposer.
    """
    head, plus, beside = given.partition("+")
    kind, separator, length = head.partition(":")
    if separator and not (length.isdecimal() and 1 <= int(length) <= MOST_TOKENS):
        raise UserError(f"--policies {given!r} is not NAME or NAME:K with K of 1 to {MOST_TOKENS}, as in fixed:3")
    if kind not in names():
        raise UserError(f"--policies: unknown policy {kind!r}; known: {', '.join(names())}")
    if plus and beside not in (known := [*proposers(), NOTHING]):
        raise UserError(f"--policies {given!r}: unknown proposer {beside!r}; known: {', '.join(known)}")
    most = str(int(length) if separator else num_tokens)
    options = ("--edsd.policy", kind, "--edsd.num-tokens", most, *(("--edsd.beside", beside) if plus else ()))
    return f"{kind}:{most}{plus}{beside}", options


def _make(name: str, num_tokens: int) -> Arm:
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
    raise UserError(f"unknown arm {name!r}; known: {', '.join(ARMS)}")


def _native(method: str, config: dict[str, int], remembers: bool = False) -> Arm:
    return Arm(method, ("--speculative-config", json.dumps({"method": method, **config})), remembers)
