"""Which drafter size and draft length pay: the law of acceptance against measured costs of a step."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.intervals import Estimate, estimate
from vllm_edsd.policy.cost import CostModel, Load
from vllm_edsd.policy.profile import CostProfile
from vllm_edsd.training.finished import Finished
from vllm_edsd.training.scaling import Law, fit

FAR = 2.0  # times the most tokens of any run: beyond it a prediction is called a guess


@dataclasses.dataclass(frozen=True)
class Costs:
    """Steps of `requests` requests: `plain` seconds without drafts; `verify` and `draft` seconds for a draft token more.

    `draft` holds the measured sizes, parameters to seconds.
    """

    plain: float
    verify: float
    draft: Mapping[int, float]

    def step(self, parameters: int, depth: int) -> numpy.ndarray:
        """Seconds with K = 1 .. `depth` drafts; drafting is linear in size, through nil where one size was measured."""
        sizes, seconds = (numpy.array(each) for each in zip(*sorted(self.draft.items()), strict=True))
        if len(sizes) == 1:
            each = seconds[0] * parameters / sizes[0]
        else:
            slope, start = numpy.polyfit(sizes, seconds, 1)
            each = max(start + slope * parameters, 0.0)
        return self.plain + numpy.arange(1, depth + 1) * (self.verify + each)


def read_costs(profiles: Sequence[Path], runs: Sequence[Finished], requests: int) -> dict[str, Costs]:
    """By kind of drafter. Raises UserError for a profile of a drafter that is none of the runs."""
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for path in profiles:
        profile = CostProfile.read(path, {})
        run = next((run for run in runs if run.mark == profile.fingerprint.get("drafter")), None)
        if run is None:
            raise UserError(f"{path} was measured with a drafter that is none of the runs given; give that drafter as well")
        weights = [cell.steps * cell.context / cell.requests for cell in profile.cells]
        context = round(requests * sum(weights) / sum(cell.steps for cell in profile.cells))
        model = CostModel(numpy.array(profile.coefficients))
        plain = model.seconds(Load(requests, context, 0, 0))
        verify = model.seconds(Load(requests, context, requests, 0)) - plain
        draft = model.seconds(Load(requests, context, 0, 1)) - plain
        found.setdefault(run.kind, []).append((run.parameters, plain, verify, draft))
    return {
        kind: Costs(
            plain=float(numpy.mean([row[1] for row in rows])),
            verify=float(numpy.mean([row[2] for row in rows])),
            draft={size: float(numpy.mean([row[3] for row in rows if row[0] == size])) for size in {row[0] for row in rows}},
        )
        for kind, rows in found.items()
    }


def plan(runs: Sequence[Finished], costs: Mapping[str, Costs], tokens: int | None, seed: int) -> dict[str, Any]:
    """`laws` by kind, `options` (kind, size, K) best first, `best`, `rivals` that it cannot be told from, and `notes`.

    `tokens` is the training to predict for; the longest of the runs where None.
    """
    tokens = tokens or max(run.tokens for run in runs)
    laws: dict[str, dict[str, Estimate] | None] = {}
    options, notes = [], _cautions(runs, tokens)
    for number, kind in enumerate(dict.fromkeys(run.kind for run in runs)):
        mine = [run for run in runs if run.kind == kind]
        law = fit(mine, seed + number)  # kinds are independent
        if isinstance(law, str):
            laws[kind] = None
            notes.append(f"{kind}: cannot tell, {law}")
            continue
        laws[kind] = effects = {name: law.per_doubling(name) for name in law.factors}
        notes += [f"{kind}: {_effect(name, found)}" for name, found in effects.items()]
        sizes = sorted({run.parameters for run in mine})
        if kind in costs:
            options += _options(kind, law, sizes, tokens, costs[kind])
            assumed = [size for size in sizes if size not in costs[kind].draft]
            if assumed:
                notes.append(
                    f"{kind}: drafting was measured with {_sizes(costs[kind].draft)}; a straight line is assumed for "
                    + _sizes(assumed)
                )
        else:
            notes.append(f"{kind}: no measured cost, so nothing is said about speed; give one with --cost")
    options.sort(key=lambda option: -option["speedup"]["mean"])
    best, rivals = (options[0], _rivals(options)) if options else (None, [])
    for option in options:
        del option["draws"]
    return {"tokens": tokens, "laws": laws, "options": options, "best": best, "rivals": rivals, "notes": notes}


def verdict(speedup: Estimate) -> str:
    """Whether an option is faster than no drafts: pays, loses, or cannot tell."""
    low, high = speedup["low"], speedup["high"]
    assert low is not None and high is not None
    return "pays" if low > 1 else "loses" if high < 1 else "cannot tell"


def _options(kind: str, law: Law, sizes: Sequence[int], tokens: int, costs: Costs) -> list[dict[str, Any]]:
    found = []
    for size in sizes:
        lengths, draws = law.lengths(tokens, size)
        faster = costs.plain / costs.step(size, len(lengths))
        for place, factor in enumerate(faster):
            speedup = estimate(float(lengths[place] * factor), draws[:, place] * factor, len(draws))
            found.append(
                {
                    "kind": kind,
                    "parameters": size,
                    "num_tokens": place + 1,
                    "acceptance_length": estimate(float(lengths[place]), draws[:, place], len(draws)),
                    "speedup": speedup,
                    "verdict": verdict(speedup),
                    "draws": draws[:, place] * factor,
                }
            )
    return found


def _rivals(options: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the data cannot tell from the first option: the interval of the difference reaches nil."""
    best, *others = options
    apart = [estimate(0.0, best["draws"] - other["draws"], len(best["draws"]))["low"] for other in others]
    keys = ("kind", "parameters", "num_tokens")
    return [{key: other[key] for key in keys} for other, low in zip(others, apart, strict=True) if low is None or low <= 0]


def _effect(factor: str, found: Estimate) -> str:
    low, high = found["low"], found["high"]
    assert low is not None and high is not None
    says = "helps" if low > 0 else "hurts" if high < 0 else "cannot tell whether it helps"
    return f"twice the {factor}: acceptance length {found['mean']:+.3f} ({low:+.3f} .. {high:+.3f}), {says}"


def _cautions(runs: Sequence[Finished], tokens: int) -> list[str]:
    notes = []
    if len({run.judged_on for run in runs}) > 1:
        notes.append(
            "the runs were judged on different held-out answers; for a fair fit give --eval files of one prompt file"
        )
    if tokens > FAR * max(run.tokens for run in runs):
        notes.append(f"{tokens} training tokens are far beyond the longest run's {max(run.tokens for run in runs)}: a guess")
    return notes


def _sizes(sizes) -> str:
    return ", ".join(f"{size / 1e6:.2f}M" for size in sorted(sizes))
