"""Prints a result of `vllm-edsd bench --json` as a Markdown table: python benchmarks/table.py RESULT.json [...]"""

import json
import sys
from pathlib import Path

COLUMNS = {
    "arm": "arm",
    "policy": "policy",
    "concurrency": "conc.",
    "output_tokens_per_s": "tokens/s",
    "speedup": "speed-up",
    "acceptance_length": "acceptance length",
    "tokens_per_step": "tokens / step",
    "draft_tokens": "verified drafts",
    "per_position": "accepted by position",
    "identical_share": "identical to none",
    "ttft_ms": "TTFT p50 ms",
    "itl_ms": "ITL p50 / p99 ms",
}


def cell(key: str, value) -> str:
    if value is None:
        return "-"
    if key == "identical_share":
        return f"{value:.1%}"
    if isinstance(value, list):
        return " ".join(f"{share:.2f}" for share in value) or "-"
    if isinstance(value, dict):
        return f"{value['p50']:.1f} / {value['p99']:.1f}" if key == "itl_ms" else f"{value['p50']:.0f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table(result: dict) -> str:
    rows = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    rows += [[cell(key, row.get(key)) for key in COLUMNS] for row in result["arms"]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        result = json.loads(Path(name).read_text())
        print(f"    {result['environment']['command']}\n\n{table(result)}\n")
