"""Writes the Grafana dashboard: `python deploy/grafana/dashboards.py [FILE]`, by default edsd.json beside this file."""

import sys
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
)
from panels import SOURCE, figure, graph, listing, rows, spread, states
from queries import (
    ACCEPTED,
    BESIDE,
    CUT,
    ESTIMATED,
    OBSERVED,
    PLAIN_STEPS,
    SPEEDUP,
    WINDOW,
    edsd,
    experts,
    experts_kept,
    mean,
    percentiles,
    quantile,
    rate,
    share,
    vllm,
)

# What every server with --edsd exports, also one with fewer experts and no drafter; and what every server of vLLM does.
ALWAYS = {"edsd": "heartbeat_timestamp_seconds", "vllm": "num_requests_running"}
NO_WORKER = "no figures: the policy is fixed"
WHOLE = "the whole target: no --edsd.experts"
PAYS = [(None, "red"), (0.95, "orange"), (1.02, "green")]

AT_A_GLANCE = [
    figure(
        "Acceptance length",
        "Tokens that a step gives a request whose draft it verified, bonus token included. 1: nothing is accepted.",
        mean("step_acceptance_length"),
        "none",
        [(None, "red"), (1.1, "orange"), (1.3, "green")],
    ),
    figure(
        "Speed-up estimate",
        "Speed against plain decoding as the guard measured it, over the batch sizes in use; 1 where it decodes plainly.",
        SPEEDUP,
        "none",
        PAYS,
        NO_WORKER,
    ),
    figure(
        "Draft tokens accepted",
        "Share of verified draft tokens that the target accepted.",
        ACCEPTED,
        "percentunit",
        [(None, "blue")],
    ),
    figure(
        "Draft tokens cut",
        "Share of drafted tokens that the policy cut before verification.",
        CUT,
        "percentunit",
        [(None, "blue")],
        NO_WORKER,
    ),
    figure(
        "Plain steps",
        "Share of decoding steps after which nothing was drafted, since guard or policy said so. All of them for days: the "
        "drafter only takes memory.",
        PLAIN_STEPS,
        "percentunit",
        [(None, "green"), (0.5, "orange")],
        NO_WORKER,
    ),
    figure(
        "Running requests",
        "Requests in the batch now.",
        f"sum by (model_name) ({vllm('num_requests_running')})",
        "short",
        [(None, "blue")],
    ),
]
PAYING = [
    graph(
        "Acceptance length",
        "Mean over steps, and the last week's where the recording rules of deploy/prometheus are loaded and a day old.",
        {
            "{{model_name}}": mean("step_acceptance_length"),
            "{{model_name}}, last week": '1 + model:edsd_acceptance_gain:avg1w{model_name=~"$model_name"}',
        },
        "none",
        at_least=1,
        dashed=".*last week",
    ),
    graph(
        "Acceptance length by request",
        "Each ended request's mean over its steps: a tenth of them stay below p10.",
        {f"p{round(100 * q)}": quantile(q, edsd("request_acceptance_length_bucket")) for q in (0.1, 0.5, 0.9)},
        "none",
        at_least=1,
    ),
    rows(
        "Acceptance by position",
        "Share of the draft tokens verified at each position (0: the first) that were accepted.",
        share(
            f"sum by (position) (rate({edsd('accepted_tokens_total')}{WINDOW}))",
            f"sum by (position) (rate({edsd('verified_tokens_total')}{WINDOW}))",
        ),
        "{{position}}",
        "position",
        "percentunit",
    ),
    graph(
        "Speed-up estimate",
        "Draft over plain speed as the guard measured them, over the batch sizes in use; 1 where it decodes plainly. "
        "Policies without a guard (fixed, bandit) have no such figure.",
        {"{{model_name}}": SPEEDUP},
        "none",
        line=1,
        empty=NO_WORKER,
    ),
    graph(
        "Draft length",
        "Draft tokens of a request that a step verified, where there were any.",
        {
            "mean": mean("draft_length"),
            "p90": quantile(0.9, edsd("draft_length_bucket")),
        },
        "none",
        at_least=0,
    ),
    graph(
        "Verification saved",
        "Share of drafted tokens that the policy cut before the target had to verify them.",
        {"{{model_name}}": CUT},
        "percentunit",
        at_least=0,
        at_most=1,
        empty=NO_WORKER,
    ),
]
GUARD = [
    states(
        "Guard",
        "Whether the guard lets the policy draft, by the number of requests in a step. Off under load is as it should be.",
        f"min by (model_name, requests) ({edsd('guard_drafts')})",
        "{{requests}} requests",
        {"0": ("plain", "orange"), "1": ("drafts", "green")},
        NO_WORKER,
    ),
    graph(
        "Speed by batch size, with drafts and without",
        "What the guard measured last; the slower way is tried rarely, so its figure may be old.",
        {"{{requests}}, {{way}}": f"avg by (requests, way) ({edsd('guard_tokens_per_second')})"},
        "tokens/s",
        at_least=0,
        empty=NO_WORKER,
    ),
    graph(
        "Time of a step",
        "Mean time of the target's pass with sampling, and of the drafter where it drafted.",
        {"verify": mean("verify_seconds"), "draft": mean("draft_seconds")},
        "s",
        at_least=0,
        empty=NO_WORKER,
    ),
    graph(
        "Drafts not made, by reason",
        "Steps decoded plainly (guard, policy), requests whose drafter gave no number (nonfinite), requests whose grammar "
        "forbids sampled drafts (structured).",
        {"{{reason}}": f"sum by (reason) (rate({edsd('fallbacks_total')}{WINDOW}))"},
        "ops",
        at_least=0,
        stacked=True,
        empty=NO_WORKER,
    ),
    graph(
        "Calibration",
        "Acceptance of judged tokens as the policy estimated it and as it was; the error is the mean gap by bins.",
        {
            "estimated": ESTIMATED,
            "observed": OBSERVED,
            "error": f"avg by (model_name) ({edsd('calibration_error_ratio')})",
        },
        "percentunit",
        at_least=0,
        at_most=1,
        empty=NO_WORKER,
    ),
    spread(
        "Drafter entropy",
        "Entropy in nats of the distributions that draft tokens came from; how many fell into each bucket.",
        f"sum by (le) (rate({edsd('drafter_entropy_nats_bucket')}{WINDOW}))",
        "none",
        empty=NO_WORKER,
    ),
    graph(
        "Drafted without the model",
        "Share of accepted draft tokens that a model-free proposer made in the drafter's place, by default prompt lookup.",
        {"{{model_name}}": BESIDE},
        "percentunit",
        at_least=0,
        at_most=1,
        empty=NO_WORKER,
    ),
]
EXPERTS = [
    states(
        "Lossy?",
        "Servers whose target uses fewer experts per token than it was trained with, so that their text is another than the "
        "whole target's; with the plan and the tokens it is used for.",
        f"max by (model_name, instance, plan, mode, version) ({edsd('lossy_experts_info')})",
        "{{model_name}} on {{instance}}: {{plan}}, {{mode}}",
        {"1": ("LOSSY", "red")},
        WHOLE,
    ),
    graph(
        "Experts per token",
        "Routed experts that a token is sent to, mean over layers and tokens: as served, and as the whole target would.",
        {"served": experts("activated", "tokens", "served"), "whole target": experts("activated", "tokens", "model")},
        "none",
        at_least=0,
        dashed="whole target",
        empty=WHOLE,
    ),
    graph(
        "Distinct experts per step",
        "Different experts that a step of a layer uses, whose weights it reads; mean over layers and steps.",
        {"served": experts("distinct", "steps", "served"), "whole target": experts("distinct", "steps", "model")},
        "none",
        at_least=0,
        dashed="whole target",
        empty=WHOLE,
    ),
    rows(
        "Experts per token by layer",
        "Share of the whole target's experts per token that each layer uses; 1 where nothing is cut.",
        experts_kept("activated"),
        "{{layer}}",
        "layer",
        "percentunit",
        empty=WHOLE,
    ),
    rows(
        "Distinct experts per step by layer",
        "The same of a step's different experts: in a large batch nearly all are used by some token, cut or not.",
        experts_kept("distinct"),
        "{{layer}}",
        "layer",
        "percentunit",
        empty=WHOLE,
    ),
]
LATENCY = [
    graph(
        "Time to first token",
        "From a request's arrival to its first output; vLLM's own figures.",
        percentiles("time_to_first_token_seconds"),
        "s",
        width=6,
        at_least=0,
    ),
    graph(
        "Time between outputs",
        "vLLM's inter-token latency: from one output of a request to its next, which may hold several tokens.",
        percentiles("inter_token_latency_seconds"),
        "s",
        width=6,
        at_least=0,
    ),
    graph(
        "Time of a request",
        "vLLM's end-to-end latency: from a request's arrival to its last output.",
        percentiles("e2e_request_latency_seconds"),
        "s",
        width=6,
        at_least=0,
    ),
    graph(
        "Throughput and load",
        "Tokens generated per second; requests running and waiting.",
        {
            "tokens/s": rate(vllm("generation_tokens_total")),
            "running": f"sum by (model_name) ({vllm('num_requests_running')})",
            "waiting": f"sum by (model_name) ({vllm('num_requests_waiting')})",
        },
        "none",
        width=6,
        at_least=0,
    ),
]
STATE = [
    listing(
        "Drafter and policy",
        "What each replica uses. Two versions at a time are an upgrade under way, or one that stuck.",
        (
            f"max by (model_name, instance, drafter, version) ({edsd('drafter_info')})",
            f"max by (model_name, instance, policy, verification, num_tokens) ({edsd('policy_info')})",
        ),
    ),
    graph(
        "Requests of which state is kept",
        "By what keeps it, beside vLLM's running requests: more than those for long means a leak.",
        {
            "{{holder}}": f"sum by (holder) ({edsd('tracked_requests')})",
            "running": f"sum ({vllm('num_requests_running')})",
        },
        "short",
        at_least=0,
    ),
    graph(
        "Age of the figures and reloads",
        "Seconds since a process last wrote its figures, by place; drafters loaded into the running server, by outcome.",
        {
            "{{place}}": f"max by (place) (time() - {edsd('heartbeat_timestamp_seconds')})",
            "reload {{outcome}}": f"sum by (outcome) (increase({edsd('drafter_reloads_total')}{WINDOW}))",
        },
        "none",
        at_least=0,
    ),
]
SECTIONS = {
    "At a glance": AT_A_GLANCE,
    "Does it pay?": PAYING,
    "Policy and guard (where a policy adapts)": GUARD,
    "Experts (lossy)": EXPERTS,
    "Latency (vLLM)": LATENCY,
    "State": STATE,
}


def spelling(prefix: str) -> QueryVariable:
    """A variable with what stands before metric names, as found; where there are several, one is chosen."""
    example = ALWAYS[prefix]
    found = f'label_values({{__name__=~"(ray_)?{prefix}[:_]{example}"}}, __name__)'
    variable = (
        QueryVariable(prefix)
        .label(f"Prefix of {prefix}'s metrics")
        .datasource(SOURCE)
        .query(found)
        .regex(f"/(.*){example}/")
    )
    return variable.refresh(VariableRefresh.ON_DASHBOARD_LOAD).current(VariableOption(text=f"{prefix}:", value=f"{prefix}:"))


def chosen(name: str, label: str) -> QueryVariable:
    """A variable over a label's values: one, several or all."""
    # Ray's agent has vLLM's figures and not ours.
    either = "|".join(f"${{{prefix}}}{example}" for prefix, example in ALWAYS.items())
    found = f'label_values({{__name__=~"{either}"}}, {name})'
    variable = QueryVariable(name).label(label).datasource(SOURCE).query(found)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True).all_value(".*")


def build() -> Dashboard:
    board = Dashboard("vLLM / EDSD speculation").uid("vllm-edsd").tags(["vllm", "edsd"]).editable()
    board.description("Speculative decoding with --edsd, beside vLLM's own dashboards.")
    board.time("now-3h", "now").refresh("30s").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    # vLLM tags its dashboards so and lists ours by the same tag.
    link = DashboardLink("vLLM dashboards").type(DashboardLinkType.DASHBOARDS).tags(["vllm"])
    board.link(link.include_vars(True).keep_time(True))
    board.with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
    board.with_variable(spelling("edsd")).with_variable(spelling("vllm"))
    board.with_variable(chosen("model_name", "Model")).with_variable(chosen("instance", "Instance"))
    numbers = count(1)
    for title, panels in SECTIONS.items():
        board.with_row(Row(title).id(next(numbers)))
        for panel in panels:
            board.with_panel(panel.id(next(numbers)))
    return board


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("edsd.json")
    place.write_text(JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n")
