"""Every metric that a server with `--edsd` exports beside vLLM's own: name, kind, unit, place, labels and meaning.

All carry `model_name` and `engine`, as vLLM's do. The engine core exports what stands under ENGINE, with any model runner;
our worker what stands under WORKER, which a policy that adapts brings, or under EXPERTS, which fewer experts bring.
"""

from dataclasses import dataclass
from typing import Literal

COMMON = ("model_name", "engine")
ENGINE, WORKER, BOTH, EXPERTS = "engine", "worker", "engine, worker", "worker, with --edsd.experts"
# Why a draft was not made, or not as usual.
GUARD, POLICY, NONFINITE, STRUCTURED = REASONS = ("guard", "policy", "nonfinite", "structured")
# What became of a drafter that was loaded into a running server.
KEPT, ROLLED_BACK, REFUSED = OUTCOMES = ("kept", "rolled_back", "refused")
# What labels say that have a fixed set of values; docs/operations/metrics.md tells what bounds the others.
VALUES = {
    "drafted": ("true", "false"),
    "holder": ("scheduler", "policy", "drafter"),
    "mode": ("prefill", "all"),
    "outcome": OUTCOMES,
    "place": (ENGINE, WORKER),
    "reason": REASONS,
    "routing": ("model", "served"),
    "verification": ("standard", "block"),
    "way": ("draft", "plain"),
}
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 32, 64, 129)
MEAN_LENGTHS = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12)
NATS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10)
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass(frozen=True)
class Metric:
    """One row of the table; `buckets` are a histogram's finite upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    place: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The names of its samples on the wire."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (f"{self.name}_total",) if self.kind == "counter" else (self.name,)


def _counter(name: str, unit: str, place: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"edsd:{name}", "counter", unit, place, labels, meaning)


def _gauge(name: str, unit: str, place: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"edsd:{name}", "gauge", unit, place, labels, meaning)


def _histogram(name: str, unit: str, place: str, meaning: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"edsd:{name}", "histogram", unit, place, (), meaning, buckets)


METRICS = (
    _histogram(
        *("step_acceptance_length", "tokens", ENGINE),
        "tokens that a step gave a request whose draft it verified, bonus token included",
        LENGTHS,
    ),
    _histogram(
        *("request_acceptance_length", "tokens", ENGINE),
        "the same, averaged over the steps of a request; told when the request ends, if a draft of it was verified",
        MEAN_LENGTHS,
    ),
    _histogram(
        "draft_length", "tokens", ENGINE, "draft tokens of a request that a step verified, where there were any", LENGTHS
    ),
    _counter(
        "verified_tokens", "tokens", ENGINE, "draft tokens that the target verified, by place in the draft", "position"
    ),
    _counter(
        "accepted_tokens", "tokens", ENGINE, "draft tokens that the target accepted, by place in the draft", "position"
    ),
    _gauge("policy_info", "1", ENGINE, "always 1; how lengths are chosen", "policy", "verification", "num_tokens"),
    _gauge("drafter_info", "1", BOTH, "always 1; the drafter in use and the start of its SHA-256", "drafter", "version"),
    _gauge("tracked_requests", "requests", BOTH, "requests of which state is kept, by what keeps it", "holder"),
    _gauge("heartbeat_timestamp_seconds", "seconds", BOTH, "Unix time at which the process last wrote its figures", "place"),
    _counter("steps", "steps", WORKER, "steps that read no prompt, by whether the drafter drafted after them", "drafted"),
    _counter("drafted_tokens", "tokens", WORKER, "tokens that the drafter drafted"),
    _counter("cut_tokens", "tokens", WORKER, "drafted tokens that the policy cut before verification"),
    _counter(
        "beside_tokens", "tokens", WORKER, "tokens drafted without a model in the drafter's place and handed to the target"
    ),
    _counter("beside_accepted_tokens", "tokens", WORKER, "how many of those the target accepted"),
    _counter(
        *("fallbacks", "events", WORKER),
        "drafts not made or not as usual: a step that the guard or the policy let decode plainly (guard, policy), a request "
        "whose drafter gave NaN or infinity (nonfinite), one whose grammar forbids sampled drafts (structured)",
        "reason",
    ),
    _histogram("drafter_entropy_nats", "nats", WORKER, "entropy of the distribution that a draft token came from", NATS),
    _histogram(
        "verify_seconds", "seconds", WORKER, "a step's time up to the drafter: the target's pass and sampling", SECONDS
    ),
    _histogram("draft_seconds", "seconds", WORKER, "a step's time in the drafter", SECONDS),
    _counter(
        "judged_tokens", "tokens", WORKER, "verified draft tokens whose acceptance the policy had estimated and then saw"
    ),
    _counter("estimated_acceptances", "tokens", WORKER, "the sum of those estimates"),
    _counter("observed_acceptances", "tokens", WORKER, "how many of those tokens were accepted"),
    _gauge("calibration_error_ratio", "1", WORKER, "mean gap between estimate and acceptance over recent tokens, by bins"),
    _gauge(
        "guard_drafts", "1", WORKER, "1 where the guard lets the policy draft, by requests in a step, else 0", "requests"
    ),
    _gauge(
        *("guard_tokens_per_second", "tokens per second", WORKER),
        "what the guard measured with drafts, the reading of prompts included, and without, by requests in a step",
        *("requests", "way"),
    ),
    _counter(
        "drafter_reloads", "reloads", WORKER, "drafters loaded into the running server, by what became of them", "outcome"
    ),
    _gauge(
        *("lossy_experts_info", "1", EXPERTS),
        "always 1; the target uses fewer experts per token than it was trained with, and its text differs for it",
        *("plan", "mode", "version"),
    ),
    _counter("moe_tokens", "tokens", EXPERTS, "tokens that an MoE layer computed", "layer"),
    _counter("moe_steps", "steps", EXPERTS, "steps of an MoE layer", "layer"),
    _counter(
        *("activated_experts", "experts", EXPERTS),
        "experts that the tokens were sent to, summed over them: what the whole target would use (model) and did (served)",
        *("layer", "routing"),
    ),
    _counter(
        *("distinct_experts", "experts", EXPERTS),
        "different experts in a step, whose weights it reads, summed over the steps",
        *("layer", "routing"),
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def table() -> str:
    """The metrics as the Markdown table that the docs show."""
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(m.labels) or '-'} | {m.unit} | {m.place} | {m.meaning} |" for m in METRICS
    ]
    return "\n".join(["| name | type | labels | unit | place | meaning |", "| --- | --- | --- | --- | --- | --- |", *rows])
