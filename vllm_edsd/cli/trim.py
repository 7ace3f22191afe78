"""`vllm-edsd trim`: how small a draft vocabulary may be, and a drafter with a smaller one."""

import dataclasses
import json as text
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vllm_edsd.errors import UserError

SIZES = "1024,2048,4096,8192,16384,32768"


def trim(
    target: Annotated[Path, typer.Argument(help="Directory of the target's Hugging Face checkpoint.")],
    data: Annotated[Path, typer.Option(help="Directory that `vllm-edsd regen` wrote with this target.")],
    drafter: Annotated[
        str | None, typer.Option(help="Drafter that `vllm-edsd train` wrote, a bundled name or a directory.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help=f"Sizes to report.  [default: {SIZES}, as far as there are so many tokens]")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Size of the drafter to write.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the smaller drafter.")] = None,
    depth: Annotated[int, typer.Option(min=1, max=16, help="Draft tokens per step (K) of the measurement.")] = 5,
    held_out: Annotated[int, typer.Option(min=1, help="Greedy answers that are measured on, not counted.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of held-out answers; the recipe's for its own.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
) -> None:
    """What each size of draft vocabulary covers of the target's text, and with --drafter what it costs in acceptance."""
    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.drafters import checkpoint, factory
    from vllm_edsd.files import replaceable
    from vllm_edsd.targets import require_target
    from vllm_edsd.training.belonging import check_vocabulary
    from vllm_edsd.training.export import environment, export
    from vllm_edsd.training.samples import fingerprint, metadata, read_samples, split
    from vllm_edsd.training.trim import trim as cut
    from vllm_edsd.training.vocabulary import token_counts

    if (size is None) != (out is None) or (out is not None and drafter is None):
        raise UserError("a smaller drafter needs --drafter, --size and --out; give all three, or neither --size nor --out")
    if out is not None:
        out = replaceable(out, "provenance.json")
    for place in (json, out and out / "config.json"):
        if place is not None:
            check_place(place)
    require_target(target)
    folder = None if drafter is None else checkpoint.resolve(drafter)
    vocab_size = _vocab_size(target, folder)
    whole = None if folder is None else factory.load(folder)
    wanted = _sizes(sizes, size, vocab_size if whole is None else whole.config.draft_vocab_size)
    samples = read_samples(data)
    check_vocabulary(samples, vocab_size, data, target)
    counted, kept = ([samples[place] for place in places] for places in split(samples, held_out, seed, data))
    counts = token_counts(counted, vocab_size)
    result: dict[str, Any] = {
        "target": target.name,
        "data": f"sha256:{fingerprint(data)}",
        "counted": len(counted),
        "held_out": held_out,
        "seed": seed,
    }
    if whole is None:
        result["sizes"], table = _coverage(counts, token_counts(kept, vocab_size), wanted)
        advice = "for a drafter to be trained: set draft_vocab_size in its recipe; training takes the same tokens"
    else:
        drafters = {number: cut(whole, counts, number) for number in wanted}
        result |= {"drafter": drafter, "depth": depth, "temperature": 0.0}
        result["sizes"], table = _acceptance([whole, *drafters.values()], kept, target, data, depth)
        advice = "change: against the drafter as it is, on the same answers; 95% bootstrap intervals over answers"
    if folder is not None and out is not None and size is not None:
        made = folder / "provenance.json"
        provenance = {
            **environment(),
            "trimmed_from": {
                "drafter": drafter,
                "version": checkpoint.version(folder),
                "provenance": text.loads(made.read_text()) if made.is_file() else None,
            },
            "data": {"fingerprint": result["data"], "samples": len(counted), "made_with": metadata(data)},
            "held_out": next(row for row in result["sizes"] if row["size"] == size),
        }
        export(drafters[size].config, drafters[size].state_dict(), out, provenance)
        advice += f"\nwrote {out} with {size} rows"
    if json is not None:
        write(result, json)
    Console().print(table, advice, highlight=False)


def _vocab_size(target: Path, folder: Path | None) -> int:
    """The target's. Raises UserError for a drafter of another target, or one that is not ours."""
    from vllm_edsd.drafters import checkpoint
    from vllm_edsd.drafters.target import read_target

    shape = read_target(target)
    if shape is None or shape.vocab_size is None:
        raise UserError(f"{target}/config.json states no vocab_size; give the directory of a Llama-like target")
    if folder is not None and "edsd" not in checkpoint.check(folder, shape):
        raise UserError(f"drafter {folder} was not written by `vllm-edsd train`, and only such can be trimmed")
    return shape.vocab_size


def _sizes(listed: str | None, size: int | None, largest: int) -> list[int]:
    """The sizes asked for, descending. Raises UserError for one that is no number or larger than what there is."""
    parts = [part.strip() for part in (listed or SIZES).split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--sizes {listed!r} are not positive whole numbers; give for example 1024,2048")
    found = {int(part) for part in parts}
    if listed is None:
        found = {number for number in found if number < largest} or {max(1, largest // 2)}
    if size is not None:
        found.add(size)
    if max(found) > largest:
        raise UserError(f"size {max(found)} is larger than the present vocabulary of {largest}; give at most that")
    return sorted(found, reverse=True)


def _coverage(counts, unseen, sizes: Sequence[int]) -> tuple[list[dict[str, Any]], Table]:
    from vllm_edsd.training.trim import coverage
    from vllm_edsd.training.vocabulary import most_frequent

    table = Table("draft_vocab_size", "covers, counted answers", "covers, held-out answers")
    rows = []
    for size in sizes:
        ids = most_frequent(counts, size)
        rows.append({"size": size, "counted": coverage(counts, ids), "coverage": coverage(unseen, ids)})
        table.add_row(str(size), f"{rows[-1]['counted']:.2%}", f"{rows[-1]['coverage']:.2%}")
    return rows, table


def _acceptance(drafters, kept, target: Path, data: Path, depth: int) -> tuple[list[dict[str, Any]], Table]:
    from vllm_edsd.training.trim import compare

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {what: progress.add_task(what, total=None) for what in ("hidden states", "drafting")}
        cuts = compare(
            drafters,
            kept,
            target,
            data,
            depth,
            lambda what, done, total: progress.update(tasks[what], completed=done, total=total),
        )
    table = Table("rows", "covers, held-out answers", f"acceptance length, K = {depth}", "change", "parameters")
    for found in cuts:
        tau, change = found.acceptance_length, found.change
        table.add_row(
            str(found.size),
            f"{found.coverage:.2%}",
            f"{tau['mean']:.3f} ({tau['low']:.3f}..{tau['high']:.3f})",
            f"{change['mean']:+.3f} ({change['low']:+.3f}..{change['high']:+.3f})",
            f"{found.parameters / 1e6:.2f}M",
        )
    return [dataclasses.asdict(found) for found in cuts], table
