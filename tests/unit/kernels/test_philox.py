import numpy as np
import torch

from vllm_edsd.kernels.block_verify import exponential
from vllm_edsd.kernels.philox import philox


def test_known_answers():
    """Of the generator's authors, for a block and a key of zeros."""
    words = philox(torch.tensor(0), torch.tensor(0), 0)
    assert [int(word) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_streams_seeds_and_counters_differ():
    seeds = torch.tensor([0, 1, -1, 1 << 40])
    blocks = torch.stack([philox(seeds[:, None], torch.arange(100), stream) for stream in (0, 1)])
    assert len(blocks.flatten().unique()) > 0.999 * blocks.numel()
    assert blocks.min() >= 0 and blocks.max() < 2**32


def test_variates_are_exponential_down_to_the_smallest():
    from scipy.stats import kstest

    words = philox(torch.tensor(7), torch.arange(50_000), 1).flatten()
    assert kstest(exponential(words).numpy(), "expon").pvalue > 1e-3
    small = torch.tensor([0, 1, 1 << 10, (1 << 26) - 1, 1 << 26])
    exact = -np.log1p(-(small.numpy() + 0.5) / 2**32)
    np.testing.assert_allclose(exponential(small).numpy(), exact, rtol=1e-5)
