import subprocess
import sys

import pytest
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.kernels import dispatch

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from vllm_edsd.kernels import block_verify, budget, draft_stats, head_soft_ce, soft_ce
print(int(draft_stats.draft_stats(torch.eye(3))[0].sum()))
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("EDSD_KERNELS", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


class OnGpu:
    is_cuda = True


def test_triton_runs_on_a_gpu_only():
    assert dispatch.use_triton(OnGpu(), None)
    assert not dispatch.use_triton(torch.zeros(1))
    assert not dispatch.use_triton(OnGpu(), torch.zeros(1))


def test_or_under_its_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.use_triton(torch.zeros(1))


def test_the_switch_forces_naive(monkeypatch):
    monkeypatch.setenv("EDSD_KERNELS", "naive")
    assert not dispatch.use_triton(OnGpu())
    monkeypatch.setenv("EDSD_KERNELS", "auto")
    assert dispatch.use_triton(OnGpu())


def test_an_unknown_choice_is_the_users_mistake(monkeypatch):
    monkeypatch.setenv("EDSD_KERNELS", "slow")
    with pytest.raises(UserError, match=r"EDSD_KERNELS is 'slow'; give one of: auto, naive"):
        dispatch.use_triton(torch.zeros(1))


def test_all_is_there_without_triton():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
