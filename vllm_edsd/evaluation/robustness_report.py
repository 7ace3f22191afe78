"""The robustness of drafters as a table and as a picture."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vllm_edsd.evaluation.report import span
from vllm_edsd.evaluation.robustness import FOREIGN
from vllm_edsd.files import atomic


def table(found: dict[str, Any]) -> Table:
    """One row for each drafter and class; drops in percent."""
    environment = found["environment"]
    shown = Table(box=SIMPLE_HEAD, title=f"{title(environment)}, {environment['prompt_count']} user turns")
    for column in ("drafter", "system prompt", "acceptance length", "95%", "drop", "95%"):
        shown.add_column(column, justify="left" if column in ("drafter", "system prompt") else "right")
    for name, drafter in found["drafters"].items():
        for kind, row in drafter["classes"].items():
            length, drop = row["acceptance_length"], row.get("drop")
            shown.add_row(name, kind, f"{length['mean']:.3f}", span(length), *_drop(drop))
        shown.add_row(name, FOREIGN, "", "", *_drop(drafter["drop"]), end_section=True)
    return shown


def factors(found: dict[str, Any]) -> list[str]:
    """One line for each pair of drafters: the factor and the difference of their mean drops."""
    lines = []
    for pair in found["factors"]:
        compared = pair["classes"][FOREIGN]
        factor, difference = compared["factor"], compared["difference"]
        value = "-" if factor["mean"] is None else f"{factor['mean']:.2f}"
        lines.append(
            f"drop of {pair['first']} over that of {pair['second']}: {value} ({span(factor)}), defined in "
            f"{compared['defined']:.0%} of resamples; difference {difference['mean']:+.1%} ({_percent(difference)})"
        )
    return lines


def title(environment: dict[str, Any]) -> str:
    """What was measured, in a line."""
    return (
        f"{Path(environment['target']).name}, {environment['dtype']}, K={environment['num_tokens']}, "
        f"temperature {environment['temperature']:g}"
    )


def plot(found: dict[str, Any], path: Path) -> None:
    """Writes a PNG: acceptance length and drop by class of system prompt, with intervals. Raises UserError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    taus, drops = figure.subplots(1, 2)
    width = 0.8 / len(found["drafters"])
    for index, (name, drafter) in enumerate(found["drafters"].items()):
        shift = (index - (len(found["drafters"]) - 1) / 2) * width
        classes = drafter["classes"]
        for axes, kinds, key, scale in (
            (taus, list(classes), "acceptance_length", 1),
            (drops, [kind for kind in classes if "drop" in classes[kind]], "drop", 100),
        ):
            rows = [classes[kind][key] for kind in kinds]
            if axes is drops:
                rows, kinds = [*rows, drafter["drop"]], [*kinds, FOREIGN]
            means = [row["mean"] * scale for row in rows]
            errors = [
                [0 if row[end] is None else abs(row[end] * scale - mean) for row, mean in zip(rows, means, strict=True)]
                for end in ("low", "high")
            ]
            places = [place + shift for place in range(len(rows))]
            axes.bar(places, means, width, yerr=errors, capsize=2, label=name, color=f"C{index}")
            axes.set_xticks(range(len(rows)), kinds, fontsize=8)
    taus.set_title("acceptance length by system prompt, 95% intervals", fontsize=9)
    drops.set_title("drop against the training system prompt, %", fontsize=9)
    drops.axhline(0, color="black", linewidth=0.6)
    taus.legend(fontsize=8)
    figure.suptitle(f"{title(found['environment'])}, {found['environment']['prompt_count']} user turns", fontsize=10)
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def _drop(drop: dict[str, float | None] | None) -> tuple[str, str]:
    return ("", "") if drop is None else (f"{drop['mean']:.1%}", _percent(drop))


def _percent(drop: dict[str, float | None]) -> str:
    return "-" if drop["low"] is None or drop["high"] is None else f"{drop['low']:.1%} .. {drop['high']:.1%}"
