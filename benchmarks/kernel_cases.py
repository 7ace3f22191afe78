"""What benchmarks/kernels.py times, and how much each must at least read, write and multiply."""

import dataclasses
from collections.abc import Callable, Iterator

import torch

from vllm_edsd.kernels import block_verify, budget, draft_stats, head_soft_ce, soft_ce


@dataclasses.dataclass
class Case:
    """`fused` and `naive` take `arguments`; those that want gradients make it a forward and a backward pass."""

    name: str
    fused: Callable
    naive: Callable
    arguments: tuple
    gigabytes: float = 0.0
    teraflops: float = 0.0
    tolerance: float = 0.0  # relative distance of floats, share of differing integers


def cases(device: str, rows: int = 4096, draft: int = 32000, full: int = 151936, hidden: int = 4096) -> Iterator[Case]:
    def rand(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = False) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype).requires_grad_(grad)

    for n in (1, 256):
        x = (rand(n, full), torch.full((n,), 0.7, device=device), None)
        size = n * full * 2e-9
        yield Case(f"draft_stats {n} x {full}", draft_stats.draft_stats, draft_stats.naive, x, size, tolerance=1e-3)
    x = (torch.rand(256, 8, device=device), torch.full((256,), 8, device=device, dtype=torch.int32), 512)
    yield Case("budget 256 x 8", budget.budget, budget.naive, x)
    for method in block_verify.METHODS:
        requests, longest = 64, 5
        q, p = (rand(requests * longest, full, dtype=torch.float32).mul_(2).softmax(-1) for _ in range(2))
        ends = torch.arange(1, requests + 1, device=device, dtype=torch.int32) * longest
        ids = torch.randint(1 << 40, (requests,), device=device)
        x = (q.multinomial(1)[:, 0], ends, q, p, ids % full, ids, longest, method)
        size = 2 * 4e-9 * full * requests * (longest if method == "block" else 1)
        name = f"block_verify {method} {requests} x {longest} x {full}"
        yield Case(name, block_verify.block_verify, block_verify.naive, x, size)
    for loss in soft_ce.LOSSES:
        x = (rand(rows, draft, grad=True), rand(rows, draft), None, loss)
        size = 5 * rows * draft * 2e-9
        yield Case(f"soft_ce {loss} {rows} x {draft}", soft_ce.soft_ce, soft_ce.naive, x, size, tolerance=1e-2)
    x = (rand(4 * rows, hidden, grad=True), rand(draft, hidden, grad=True), rand(4 * rows, draft), 1e-4)
    flops = 3 * 2 * 4 * rows * hidden * draft * 1e-12
    name = f"head_soft_ce kl {4 * rows} x {hidden} x {draft}"
    yield Case(name, head_soft_ce.head_soft_ce, head_soft_ce.naive, x, teraflops=flops, tolerance=2e-2)
