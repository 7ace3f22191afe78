"""`vllm-edsd profile`: what drafting and verifying cost on this machine."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vllm_edsd.config import MOST_TOKENS


def profile(
    target: Annotated[str, typer.Argument(help="Directory of the target's Hugging Face checkpoint, with a chat template.")],
    edsd: Annotated[str, typer.Option(help="Drafter, a bundled name or a directory.")],
    out: Annotated[Path, typer.Option(help="Profile to write, for `vllm serve --edsd.profile`.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompt file.  [default: the demo's prompts]")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests open at a time.")] = "1,4,16",
    num_tokens: Annotated[int, typer.Option(min=1, max=MOST_TOKENS, help="Draft tokens per step (K), at most.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=8, help="Most tokens of an answer.")] = 192,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="As the server will be started.")] = False,
) -> None:
    """Serve the target with every draft length in turn, real text, and fit what a step costs to what its steps took."""
    from rich.console import Console
    from rich.table import Table

    from vllm_edsd.bench.arguments import check_dtype, sort_out
    from vllm_edsd.bench.load import MODEL, Load
    from vllm_edsd.bench.progress import Progress
    from vllm_edsd.bench.report import check_place
    from vllm_edsd.bench.sizes import measure_sizes
    from vllm_edsd.demo import demo_prompts
    from vllm_edsd.drafters.checkpoint import resolve
    from vllm_edsd.engine.server import serve
    from vllm_edsd.fingerprint import fingerprint
    from vllm_edsd.policy.profile import CostProfile
    from vllm_edsd.policy.record import steps
    from vllm_edsd.prompts import read_prompts

    check_dtype(dtype)
    check_place(out)
    levels = sort_out([], [], [concurrency]).concurrency
    chosen = read_prompts(prompts, 4 * max(levels)) if prompts else list(demo_prompts())
    marks = fingerprint(target, resolve(edsd), dtype)
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="vllm-edsd-profile-") as folder:
        record = Path(folder) / "steps.jsonl"
        arguments = [
            *("--served-model-name", MODEL, "--dtype", dtype, "--no-enable-prefix-caching", "--edsd", edsd),
            *("--edsd.policy", "sweep", "--edsd.num-tokens", str(num_tokens), "--edsd.record", str(record)),
            *measure_sizes(Path(target), chosen, max_tokens, max(levels), dtype).arguments(),
            *(["--enforce-eager"] if enforce_eager else []),
        ]
        progress.total = sum(max(len(chosen), 2 * level) for level in levels)
        starting = serve(
            target, arguments, Path(folder) / "log", progress=lambda seconds: progress.status(f"starting ({seconds:.0f} s)")
        )
        with starting as server, asyncio.Runner() as runner, Load(runner, server.url, max_tokens, 0) as load:
            load.send(chosen[:1], 1)
            record.write_text("")  # the first answer warms up
            for level in levels:
                progress.status(f"concurrency {level}")
                asked = (chosen * (2 * level))[: max(len(chosen), 2 * level)]
                replies = load.send(asked, level)
                server.check()
                progress.advance(len(replies))
        found = CostProfile.fit(list(steps(record)), marks)
    found.write(out)
    shown = Table("requests", "verified drafts", "draft steps", "steps", "ms (median)")
    for cell in found.cells:
        if cell.steps >= 3:
            shown.add_row(*map(str, (cell.requests, cell.drafts, cell.drafted, cell.steps)), f"{cell.ms:.1f}")
    Console().print(shown, f"{out}: median error of the fit {found.error:.1%}", highlight=False)
