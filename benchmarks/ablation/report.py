"""A result of run.py as Markdown tables and a picture: python benchmarks/ablation/report.py RESULT.json [REFERENCE]

REFERENCE is the arm that the others are compared with, the plan's when left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy
from scipy import stats

Runs = list[dict[str, Any]]


def main(path: Path, compared: str | None = None) -> None:
    result = json.loads(path.read_text())
    plan, arms = result["plan"], {}
    for run in result["runs"]:
        arms.setdefault(run["arm"], []).append(run)
    against = compared or plan["reference"]
    reference = arms[against]
    sets = list(plan["prompts"])
    print(f"    {result['command']}\n")
    table(
        ["arm", "parameters", *sets, f"all, against {against}"],
        [
            [arm, f"{runs[0]['parameters'] / 1e6:.2f}M"]
            + [interval([run["acceptance_length"][name] for run in runs]) for name in sets]
            + [interval([100 * (mean(run) / mean(other) - 1) for run, other in pairs(runs, reference)], "{:+.1f}", "%")]
            for arm, runs in arms.items()
        ],
    )
    table(
        ["arm", "unroll steps", "tokens/s", "peak memory MiB", "seconds, share", "to the reference's last length, share"],
        [
            [
                arm,
                str(runs[0]["unroll_steps"]),
                f"{numpy.median([run['tokens'] / run['seconds'] for run in runs]):.0f}",
                f"{numpy.median([run['peak_memory_mib'] for run in runs]):.0f}",
                interval([run["seconds"] / other["seconds"] for run, other in pairs(runs, reference)]),
                reached(runs, reference),
            ]
            for arm, runs in arms.items()
        ],
    )
    draw(arms, sets, path.with_suffix(".png"))


def mean(run: dict[str, Any]) -> float:
    return float(numpy.mean(list(run["acceptance_length"].values())))


def pairs(runs: Runs, reference: Runs) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Runs with the reference's of the same seed."""
    by_seed = {run["seed"]: run for run in reference}
    return [(run, by_seed[run["seed"]]) for run in runs]


def half(values: list[float]) -> float:
    """Half of the 95% interval of the mean over seeds, by Student's t; one seed has none."""
    return float("nan") if len(values) < 2 else float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def interval(values: list[float], form: str = "{:.2f}", unit: str = "") -> str:
    spread = f" ± {form.replace('+', '').format(half(values))}" if len(values) > 1 else ""
    return form.format(numpy.mean(values)) + spread + unit


def reached(runs: Runs, reference: Runs) -> str:
    """Seconds until a run's held-out length is the reference's last, over the reference's seconds."""
    shares = [share for share in (crossing(*pair) for pair in pairs(runs, reference)) if share is not None]
    if len(shares) < len(runs):
        return f"reached by {len(shares)} of {len(runs)}"
    return interval(shares)


def crossing(run: dict[str, Any], other: dict[str, Any]) -> float | None:
    goal = other["curve"][-1]["length"]
    before = {"seconds": 0.0, "length": 1.0}
    for point in run["curve"]:
        if point["length"] >= goal:
            share = (goal - before["length"]) / (point["length"] - before["length"])
            return (before["seconds"] + share * (point["seconds"] - before["seconds"])) / other["seconds"]
        before = point
    return None


def table(head: list[str], rows: list[list[str]]) -> None:
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
    print()


def draw(arms: dict[str, Runs], sets: list[str], path: Path) -> None:
    """Lengths by arm with their intervals; held-out lengths over a run's seconds, seed 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(sets):
        lengths = [[run["acceptance_length"][name] for run in runs] for runs in arms.values()]
        places = numpy.arange(len(arms)) + 0.2 * (number - (len(sets) - 1) / 2)
        left.errorbar(
            [numpy.mean(each) for each in lengths],
            places,
            xerr=[half(each) for each in lengths],
            fmt="o",
            capsize=2,
            label=name,
        )
    left.set_yticks(range(len(arms)), list(arms))
    left.invert_yaxis()
    left.set_xlabel("acceptance length, mean over seeds, 95%")
    left.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(sets))
    for place, (arm, runs) in enumerate(arms.items()):
        curve = runs[0]["curve"]
        style = ("-", "--", ":")[place // 10]
        right.plot([p["seconds"] for p in curve], [p["length"] for p in curve], style, label=arm, linewidth=1)
    right.set_xlabel("seconds of training, seed 0")
    right.set_ylabel("held-out acceptance length")
    right.legend(fontsize=7)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
