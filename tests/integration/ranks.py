"""One rank, then two through Ray: python ranks.py TARGET DRAFTER SAMPLES OUT.

The answers of both, what each rank drafted at every step, and what is left when a rank is killed while it answers.
"""

import asyncio
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "RAY_ADDRESS": "local",  # a cluster of this test's own, whatever else runs here
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # lets functions be sent to the workers
}
EXECUTOR = "vllm_edsd.engine.ray_executor.RayCPUExecutor"
ENGINE = {
    "dtype": "float32",
    "max_model_len": 192,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 48,  # prompts are read in chunks
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 27,
    "enforce_eager": True,
    "skip_tokenizer_init": True,
}
TOKENS = 32
ROUNDING = 1e-3  # nats
GONE_SECONDS = 30.0


def record(worker) -> dict:
    """Lets a rank write down its drafts and its clock; returns what it is."""
    import torch
    from vllm.distributed.parallel_state import get_tp_group

    drafter = worker.model_runner.drafter
    propose, begin = drafter.propose, drafter.clock.begin
    worker.drafts, worker.seconds = [], []

    def recorded(*args, **kwargs):
        drafter.tokens = []
        kept = propose(*args, **kwargs)
        requests = [request.rsplit("-", 1)[0] for request in worker.model_runner.input_batch.req_ids]
        worker.drafts.append([requests, len(drafter.tokens), [len(tokens) for tokens in kept]])
        return kept

    def timed(*args):
        step = begin(*args)
        worker.seconds.append(step and step.seconds)
        return step

    drafter.propose, drafter.clock.begin = recorded, timed
    return {
        "rank": get_tp_group().rank_in_group,
        "pid": os.getpid(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "model": type(drafter.model).__name__,
        "active": os.environ.get("VLLM_EDSD_ACTIVE"),
        "preload": os.environ.get("LD_PRELOAD", ""),
        "sums_in_shared_memory": hasattr(torch.ops._C, "init_shm_manager"),  # vLLM's build for AVX2 does not
    }


def recorded(worker) -> dict:
    """What it has written down since the last call."""
    found = {"drafts": worker.drafts, "seconds": worker.seconds}
    worker.drafts, worker.seconds = [], []
    return found


def confuse(worker) -> None:
    """Gives each rank a policy that decides at random, each from another seed."""
    import random

    import numpy as np

    from vllm_edsd.engine.agreement import agreed
    from vllm_edsd.policy.base import DraftPolicy

    dice = random.Random(os.getpid())

    class Chaos(DraftPolicy):
        def start(self, requests):
            return dice.random() < 0.8

        def proceed(self, drafting):
            return dice.random() < 0.7

        def cut(self, drafting):
            return np.array([dice.randint(0, drafting.drafted) for _ in drafting.requests])

    drafter = worker.model_runner.drafter
    drafter.policy = agreed(Chaos(drafter.num_speculative_tokens))


def shared_memory(pid: int) -> set[str]:
    """The files in shared memory that a process of vLLM's has mapped for its queues and for the ranks' sums."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/\S*(?:psm_|cpushm)\S*", maps))


def one_rank(target: str, prompts: list) -> list[dict]:
    """Plain decoding: each prompt, its answer and the least lead, in nats, that a token of it has over the next likely."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=2)
    found = []
    for prompt, answer in zip(prompts, LLM(target, **ENGINE).generate(prompts, params, use_tqdm=False), strict=True):
        (output,) = answer.outputs
        leads = [abs(first.logprob - second.logprob) for first, second in (step.values() for step in output.logprobs)]
        found.append({"prompt": prompt, "tokens": list(output.token_ids), "lead": min(leads)})
    del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return found


async def two_ranks(target: str, options: dict, prompts: list) -> dict:
    import psutil
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    through_ray = {"tensor_parallel_size": 2, "distributed_executor_backend": EXECUTOR}
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(target, **ENGINE, **through_ray, **options))

    async def answer(number: int, tokens: int = TOKENS):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        async for output in llm.generate(prompts[number], params, f"{number}"):
            yield list(output.outputs[0].token_ids)

    async def last(number: int) -> list[int]:
        return [tokens async for tokens in answer(number)][-1]

    found: dict = {"ranks": await llm.collective_rpc(record)}
    for policy in ("evict", "chaos"):
        if policy == "chaos":
            await llm.collective_rpc(confuse)
        answers = await asyncio.gather(*map(last, range(len(prompts))))
        found[policy] = {"answers": answers, "ranks": await llm.collective_rpc(recorded)}
    (core,) = (process for process in psutil.Process().children() if process.name() == "VLLM::EngineCore")
    family = [core, *core.children(recursive=True)]
    found["family"] = [process.name() for process in family]
    found["shared"] = sorted({name for process in family for name in shared_memory(process.pid)})
    begun = None
    try:
        async for tokens in answer(0, 150):
            if begun is None and len(tokens) > 10:
                os.kill(found["ranks"][1]["pid"], signal.SIGKILL)
                begun = time.monotonic()
    except EngineDeadError as error:
        found["error"], found["error_seconds"] = type(error).__name__, time.monotonic() - begun
    _, left = psutil.wait_procs(family, timeout=GONE_SECONDS)
    found["left"] = [process.name() for process in left]
    found["left_shared"] = [name for name in found["shared"] if Path(name).exists()]
    llm.shutdown()
    return found


def main(target: str, drafter: str, samples: str, out: str) -> None:
    from vllm import TokensPrompt

    import vllm_edsd
    from vllm_edsd.training.samples import read_samples

    options = vllm_edsd.options(drafter, num_tokens=4, policy="evict")
    texts = (sample.tokens[: sample.answer].tolist() for sample in read_samples(Path(samples))[::2])
    prompts = [TokensPrompt(prompt_token_ids=text) for text in texts]
    # Two ranks sum in another order than one: where two tokens are level within rounding, either may be written.
    one = [answer for answer in one_rank(target, prompts) if answer["lead"] > ROUNDING]
    two = asyncio.run(two_ranks(target, options, [answer["prompt"] for answer in one]))
    Path(out).write_text(json.dumps({"one": one, "two": two}))


if __name__ == "__main__":
    main(*sys.argv[1:])
