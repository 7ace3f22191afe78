"""Keeps the prefix cache from mixing what the whole target computed with what fewer experts did.

A block's key gets the plan's fingerprint, so that nothing is shared with another plan's server through a KV store, and with
mode "prefill" any block that reaches the end of its request's prompt gets the prompt's length: from the prompt's last token
on states are computed with other experts than the same tokens further in front in a prompt would be.
"""

import functools
import os
from typing import Any

# Tells the engine's processes, which inherit it: "MODE FINGERPRINT".
SALT = "VLLM_EDSD_EXPERTS"
Key = tuple[str, str | int]


def keys(salt: str, num_prompt_tokens: int, start: int, end: int) -> list[Key]:
    """What the key of a request's block of tokens [start, end) has to say besides its tokens."""
    mode, _, fingerprint = salt.partition(" ")
    found: list[Key] = [("edsd_plan", f"{mode} {fingerprint}")] if start == 0 else []
    if mode == "prefill" and end >= num_prompt_tokens:
        found.append(("edsd_prompt_tokens", num_prompt_tokens))
    return found


def install() -> None:
    """Adds `keys` to those that vLLM makes itself while SALT is set; calling it again changes nothing."""
    from vllm.v1.core import kv_cache_utils

    original = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    if hasattr(original, "edsd"):
        return

    @functools.wraps(original)
    def extra_keys(request: Any, start_token_idx: int, end_token_idx: int) -> list[Any]:
        found = original(request, start_token_idx, end_token_idx)
        salt = os.environ.get(SALT)
        return found + keys(salt, request.num_prompt_tokens, start_token_idx, end_token_idx) if salt else found

    extra_keys.edsd = True  # type: ignore[attr-defined]
    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = extra_keys
