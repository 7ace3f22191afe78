"""Greedy answers of model runner V2 under vLLM's and our adaptive verification: python verify_v2.py TARGET DRAFTER OUT.

The engine is made to do what drafts of changing length could upset: prompts read in chunks, requests that come and go, a KV
cache too small for all of them (preemption), and prompts whose beginnings are cached.
"""

import json
import random
import sys
from pathlib import Path

import torch
import v2

K = 4
LENGTHS = (3, 1, 40, 17, 90, 33)
CURVES = [(1, 1.0), (4, 1.2)], [(size, 5 + 0.6 * size) for size in (1, 2, 4, 8, 16, 32, 48)]


def main(target: str, drafter: str, out: str) -> None:
    from vllm import SamplingParams, TokensPrompt

    from vllm_edsd.engine.v2 import adaptation

    llm, worker = v2.engine(
        target,
        drafter,
        num_tokens=K,
        adaptive=True,
        dtype="float32",
        max_model_len=160,
        max_num_seqs=4,
        max_num_batched_tokens=48,
        num_gpu_blocks_override=6,
        block_size=32,
        kv_cache_memory_bytes=1 << 28,
        disable_log_stats=False,
    )
    live, verification = worker.adaptation, worker.adaptation.verification
    words = random.Random(1)
    start = [words.randrange(2, 128) for _ in range(64)]
    prompts = [start[: length // 2] + [words.randrange(2, 128) for _ in range(length - length // 2)] for length in LENGTHS]
    params = [
        # With few tokens to choose from, texts repeat themselves.
        SamplingParams(
            temperature=0,
            max_tokens=6 + 7 * number,
            ignore_eos=True,
            detokenize=False,
            allowed_token_ids=[*range(2, 8)] if number % 2 else None,
        )
        for number in range(len(prompts))
    ]
    given = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    budgets = []
    choose = verification.get_num_tokens

    def chosen(*args):
        tokens = choose(*args)
        budgets.append((sum(verification._batch_budget[0].values()), verification._batch_budget[2]))
        return tokens

    verification.get_num_tokens = chosen

    class Whims:
        """In place of a contest: drafts and rests by turns of random length."""

        def __init__(self):
            self.random, self.left, self.current, self.learnt = random.Random(7), 3, True, []

        def of(self, _):
            return self

        def next(self):
            self.left -= 1
            if not self.left:
                self.current, self.left = not self.current, self.random.randint(1, 9)
            return self.current

        def learn(self, drafts, step):
            self.learnt.append((drafts, step.emitted, step.requests, step.tokens, step.seconds))

    class Off(Whims):
        def next(self):
            return False

    class On(Whims):
        def next(self):
            return True

    apart = compare(worker.model_runner.speculator)
    adaptation.LEARN, adaptation.REFIT = 4, 16
    results = {"priced": priced(worker)}
    for name, contest in {"off": Off, "on": On, "whims": Whims, "control": On}.items():
        live.contests = contest()
        if name == "control":  # everything that is verified is accepted
            worker.model_runner.rejection_sampler.synthetic_conditional_rates = torch.ones(K)
        verification.fitted = False
        verification.set_cost_curves(*CURVES)
        before = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        del budgets[:]
        answers = [list(answer.outputs[0].token_ids) for answer in llm.generate(given, params, use_tqdm=False)]
        after = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        results[name] = {
            "answers": answers,
            "budgets": list(budgets),
            "learnt": live.contests.learnt,
            "counts": {key: value - before.get(key, 0) for key, value in after.items()},
            "refits": [int(verification.drafting.refits.sum()), int(verification.verifying.refits.sum())],
            "tokens": [verification.drafted, verification.cut],
        }
    Path(out).write_text(json.dumps(results | {"estimates": apart}))


def compare(speculator) -> list[list[float]]:
    """For each of some draft steps: how many tokens and estimates there were, and how far ours and vLLM's are apart."""
    from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

    ours, theirs, apart = speculator.sample_draft, DraftModelSpeculator.sample_draft, []
    estimator = speculator.acceptance_estimator

    def sample_draft(hidden_states, positions, rows, temperature, seeds, step, *rest):
        given = (hidden_states, positions, rows, temperature, seeds, step, *rest)
        real = rows >= 0  # vLLM leaves out the others, ours have a row of their own
        if len(apart) == 40 or not real.any():
            return ours(*given)

        def held():
            kept = speculator.draft_token_confidence_probs[: len(rows), step][real]
            return torch.stack([estimator.features[rows[real], step], estimator.predictions[rows[real], step], kept])

        wanted, before = theirs(speculator, *given), held()
        tokens = ours(*given)
        far = float((held() - before).abs().max())
        apart.append([int(real.sum()), max(far, float((tokens != wanted)[real].sum()))])
        return tokens

    speculator.sample_draft = sample_draft
    return apart


def priced(worker) -> dict[str, list]:
    """What the steps are like by which costs are profiled: how many of their tokens count, and how many ids there are."""
    from vllm.forward_context import get_forward_context
    from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager as Manager

    runner, found = worker.model_runner, {}
    verification, forward = runner.adaptive_verification, runner.model.forward
    for name, batches in {"vllm": Manager.batches_to_profile, "ours": type(verification).batches_to_profile}.items():
        steps = found[name] = []

        def look(input_ids, *args, steps=steps, **kwargs):
            steps.append([int((~get_forward_context().is_padding).sum()), len(set(input_ids.tolist()))])
            return forward(input_ids, *args, **kwargs)

        runner.model.forward = look
        with runner.step_timing.collect() as samples:
            for batch in batches(verification, [4, 32]):
                runner._dummy_run(**batch)
        found[f"{name} samples"] = [[sample.num_target_tokens, sample.forward_ms, sample.drafter_ms] for sample in samples]
    runner.model.forward = forward
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
