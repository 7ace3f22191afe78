"""Times the kernels on a GPU against naive torch and torch.compile: python benchmarks/kernels.py [--json PATH]

Every arm must agree with the naive reference before its kernel is timed. A time is the median over rounds, in which the arms
take turns, of a CUDA graph's replay with a cold cache, so that launches from Python do not count. GB/s and TFLOP/s are of
the least an implementation could read, write and multiply; their share is of a copy's bandwidth and a bfloat16 product's
rate measured in the same run. Memory is the peak of one call beyond its arguments.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from kernel_cases import Case, cases

from vllm_edsd.files import atomic
from vllm_edsd.kernels.dispatch import SWITCH, use_triton

ROUNDS, WARMUP = 50, 3
COLD = 256 << 20  # bytes written before each replay: more than the cache of any GPU


def call(function: Callable, arguments: tuple) -> list[torch.Tensor]:
    """Results, then the gradients of the first one's sum."""
    result = function(*arguments)
    result = list(result) if isinstance(result, tuple) else [result]
    wanted = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    return result + (list(torch.autograd.grad(result[0], wanted, torch.ones_like(result[0]))) if wanted else [])


class WrongError(Exception):
    """An arm does not compute what the naive reference does."""


def check(case: Case, arm: str, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """Raises WrongError where floats are too far off, or too large a share of integers differs."""
    for one, other in zip(found, wanted, strict=True):
        if one.is_floating_point():
            distance = (one - other).double().norm() / other.double().norm().clamp(min=1e-30)
        else:
            distance = (one != other).double().mean()
        if not distance <= case.tolerance:  # NaN is too far off, too
            raise WrongError(
                f"{case.name}: {arm} is off by {distance:.1e}, {case.tolerance:.1e} is allowed; it was not timed"
            )


def median(arms: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each arm."""
    cold, graphs, times = torch.empty(COLD, dtype=torch.int8, device="cuda"), {}, {name: [] for name in arms}
    for name, arm in arms.items():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                arm()
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            arm()
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cold.zero_()
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(arm: Callable[[], object]) -> int:
    """Bytes that one call needs beyond what was allocated."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arm()
    return torch.cuda.max_memory_allocated() - before


def rates() -> dict[str, float]:
    """What this GPU does: GB/s of a copy, read and write counted, and TFLOP/s of a bfloat16 product."""
    x, y = torch.empty(2, 1 << 30, dtype=torch.int8, device="cuda")
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    seconds = median({"copy": lambda: y.copy_(x), "product": lambda: a @ b})
    return {"copy_gb_s": 2 * x.numel() * 1e-9 / seconds["copy"], "product_tflop_s": 2 * 8192**3 * 1e-12 / seconds["product"]}


def measure(case: Case, rate: dict[str, float]) -> list[dict]:
    torch._dynamo.reset()
    functions = {"naive": case.naive, "compile": torch.compile(case.naive, dynamic=False), "triton": case.fused}
    wanted = call(case.naive, case.arguments)
    for name in ("triton", "compile"):
        check(case, name, call(functions[name], case.arguments), wanted)
    del wanted
    arms = {name: functools.partial(call, function, case.arguments) for name, function in functions.items()}
    memory = {name: peak(arm) for name, arm in arms.items()}
    rows = []
    for name, seconds in median(arms).items():
        figures = {"gb_s": case.gigabytes / seconds, "tflop_s": case.teraflops / seconds}
        shares = {
            "copy_share": figures["gb_s"] / rate["copy_gb_s"],
            "product_share": figures["tflop_s"] / rate["product_tflop_s"],
        }
        rows.append(
            {"kernel": case.name, "arm": name, "us": seconds * 1e6, **figures, **shares, "peak_mib": memory[name] / 2**20}
        )
    return rows


def table(rows: list[dict]) -> str:
    """Markdown; a rate of 0 was not worth counting."""
    columns = ["kernel", "arm", "us", "gb_s", "copy_share", "tflop_s", "product_share", "peak_mib"]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        shown = {key: f"{x:.0%}" if "share" in key else f"{x:.1f}" for key, x in row.items() if not isinstance(x, str)}
        lines.append([(row | shown)[key] for key in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("kernels-bench needs a GPU and a CUDA build of torch: this Python's torch finds none. See docs/kernels.md.")
    if not use_triton(torch.empty(0, device="cuda")):
        sys.exit(f"kernels-bench compares with Triton: install triton and unset {SWITCH}.")
    torch.manual_seed(0)
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    result = {"device": torch.cuda.get_device_name(), "versions": versions, "rates": rates(), "rows": []}
    print(json.dumps({key: result[key] for key in ("device", "versions", "rates")}))
    wrong = []
    for case in cases("cuda"):
        try:
            result["rows"] += measure(case, result["rates"])
            print(f"{case.name}: measured", file=sys.stderr)
        except WrongError as error:
            wrong.append(str(error))
        if options.json:
            with atomic(options.json) as beside:
                beside.write_text(json.dumps(result, indent=2))
    print(table(result["rows"]))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
