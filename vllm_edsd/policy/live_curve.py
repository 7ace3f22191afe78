"""What a step costs by its size: as it was profiled, and by how much the steps really taken differ from that [ours]."""

from collections.abc import Sequence

import numpy as np

LEAST = 0.1  # of what was profiled: no cost is believed to have fallen further
NEWEST = 0.25  # least weight of the newest refit in a size's difference


class LiveCurve:
    """Milliseconds by size. Differences are added, not multiplied: what a profile leaves out is alike at all sizes."""

    def __init__(self, profiled: Sequence[tuple[int, float]], padded: int):
        """`profiled`: sizes, rising, and milliseconds; up to `padded` a step runs as the next larger one of them."""
        self.sizes = np.array([size for size, _ in profiled])
        self.profiled = np.array([milliseconds for _, milliseconds in profiled], dtype=float)
        self.padded = padded
        self.extra = np.zeros(len(self.sizes))  # milliseconds, where `refits` is above 0
        self.refits = np.zeros(len(self.sizes), dtype=int)
        self.fresh: list[list[float]] = [[] for _ in self.sizes]

    def observe(self, size: int, milliseconds: float) -> None:
        """A step of `size` took so long; what cannot be true is left out."""
        if not (np.isfinite(milliseconds) and milliseconds > 0):
            return
        place = min(int(np.searchsorted(self.sizes, size)), len(self.sizes) - 1)
        between = size > self.padded or size > self.sizes[-1]
        expected = np.interp(size, self.sizes, self.profiled) if between else self.profiled[place]
        self.fresh[place].append(milliseconds - float(expected))

    def refit(self) -> list[tuple[int, float]]:
        """The curve with what was observed since the last refit; sizes never seen differ as their neighbours do."""
        for place, values in enumerate(self.fresh):
            if values:
                self.refits[place] += 1
                # A paused process is one of many: the median does not see it.
                newest = max(NEWEST, 1 / self.refits[place])
                self.extra[place] += newest * (float(np.median(values)) - self.extra[place])
                values.clear()
        seen = self.refits > 0
        extra = np.interp(self.sizes, self.sizes[seen], self.extra[seen]) if seen.any() else 0.0
        costs = np.maximum(self.profiled + extra, LEAST * self.profiled)
        return list(zip(self.sizes.tolist(), costs.tolist(), strict=True))
