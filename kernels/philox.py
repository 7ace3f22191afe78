"""The random numbers of `block_verify`: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

Counter-based: number i of a seed needs no state, so every implementation draws the same ones, in any order.
"""

import torch

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def _product(constant: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of constant * word, by halves: int64 cannot hold the whole product."""
    low = constant * (word & 0xFFFF)
    high = constant * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(seed: torch.Tensor, counter: torch.Tensor, stream: int) -> torch.Tensor:
    """Four 32-bit words for each counter: int64 [..., 4] in [0, 2^32).

    seed and counter int64, broadcast to [...]; 64 bits of the seed are the key, (counter, stream, 0, 0) is the block.
    """
    seed, first = torch.broadcast_tensors(seed, counter & WORD)
    keys = [seed & WORD, (seed >> 32) & WORD]
    words = [first, torch.full_like(first, stream), torch.zeros_like(first), torch.zeros_like(first)]
    for _ in range(ROUNDS):
        high_a, low_a = _product(MULTIPLIERS[0], words[0])
        high_b, low_b = _product(MULTIPLIERS[1], words[2])
        words = [high_b ^ words[1] ^ keys[0], low_b, high_a ^ words[3] ^ keys[1], low_a]
        keys = [(key + step) & WORD for key, step in zip(keys, WEYL, strict=True)]
    return torch.stack(words, -1)
