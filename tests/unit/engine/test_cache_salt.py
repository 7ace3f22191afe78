"""What a block's key says besides its tokens, so that states computed by different experts are never taken for the same."""

import os
from types import SimpleNamespace

import pytest
from vllm.v1.core import kv_cache_utils

from vllm_edsd.engine import cache_salt

THEIRS = ("cache_salt", "theirs")
PLAN = ("edsd_plan", "prefill f00d")
CASES = [
    # mode, prompt's length, block, what is added
    ("prefill", 40, (0, 16), [PLAN]),
    ("prefill", 40, (16, 32), []),  # its parent's key has the plan
    ("prefill", 41, (24, 40), []),
    ("prefill", 40, (24, 40), [("edsd_prompt_tokens", 40)]),
    ("prefill", 40, (32, 48), [("edsd_prompt_tokens", 40)]),
    ("prefill", 40, (48, 64), [("edsd_prompt_tokens", 40)]),
    ("prefill", 17, (0, 16), [PLAN]),
    ("prefill", 16, (0, 16), [PLAN, ("edsd_prompt_tokens", 16)]),
    ("prefill", 15, (0, 16), [PLAN, ("edsd_prompt_tokens", 15)]),
    ("all", 40, (0, 16), [("edsd_plan", "all f00d")]),
    ("all", 40, (32, 48), []),
    ("all", 15, (0, 16), [("edsd_plan", "all f00d")]),
]


@pytest.mark.parametrize(("mode", "prompt", "block", "added"), CASES)
def test_keys(mode, prompt, block, added):
    assert cache_salt.keys(f"{mode} f00d", prompt, *block) == added


def test_settings_and_prompts_that_differ_have_different_keys():
    def first(salt, prompt):
        return tuple(cache_salt.keys(salt, prompt, 0, 16))

    settings = [("prefill a", 99), ("prefill b", 99), ("all a", 99), ("prefill a", 9), ("prefill a", 10), ("prefill b", 9)]
    assert len({first(*setting) for setting in settings}) == len(settings)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(
        kv_cache_utils, "_gen_prompt_embeds_extra_hash_keys", kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    )
    monkeypatch.delenv(cache_salt.SALT, raising=False)
    cache_salt.install()


def extra_keys(prompt, block):
    request = SimpleNamespace(
        num_prompt_tokens=prompt, prompt_embeds=None, mm_features=[], lora_request=None, cache_salt="theirs"
    )
    return kv_cache_utils.generate_block_hash_extra_keys(request, *block, 0)[0]


def test_vllm_hashes_them_beside_its_own(installed, monkeypatch):
    assert extra_keys(15, (0, 16)) == (THEIRS,)
    monkeypatch.setitem(os.environ, cache_salt.SALT, "prefill f00d")
    assert extra_keys(15, (0, 16)) == (THEIRS, PLAN, ("edsd_prompt_tokens", 15))
    assert extra_keys(99, (16, 32)) is None


def test_installing_again_changes_nothing(installed):
    before = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    cache_salt.install()
    assert kv_cache_utils._gen_prompt_embeds_extra_hash_keys is before
