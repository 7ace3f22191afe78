"""`vllm-edsd doctor`: is this machine ready to serve with a drafter, and if not, what to do."""

import json
import os
from dataclasses import asdict
from typing import Annotated

import typer

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    target: Annotated[str | None, typer.Option(help="Also check this target: a path or hub id.")] = None,
    drafter: Annotated[str | None, typer.Option(help="Also check this drafter: a bundled name or a path.")] = None,
) -> None:
    """Check versions, vLLM's hooks, backend, runner, preloaded libraries, target and drafter. Status 1 if a check fails."""
    # vLLM logs to standard output while it is imported, which would not be JSON.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_edsd.diagnosis import examine

    checks = examine(target, drafter)
    ok = all(check.status != "fail" for check in checks)
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks], "ok": ok}, indent=2))
    else:
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        table = Table(*(Column(title, overflow="fold") for title in ("check", "status", "found", "what to do")))
        for check in checks:
            table.add_row(check.name, Text(check.status, COLOURS[check.status]), Text(check.detail), Text(check.remedy))
        Console().print(table)
    if not ok:
        raise typer.Exit(1)
