"""Reading without drafting: of the drafter's pass only what its KV cache needs.

In a drafter of one layer the keys and values depend on nothing that attention and MLP compute, which are most of the work.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from vllm_edsd.engine.enough import Enough


@contextlib.contextmanager
def reading(layers: dict[str, Any]) -> Iterator[None]:
    """Within it a forward pass through `layers`, the drafter's attention layers by name, raises `Enough` once the keys and
    values of the only one are written. With several it runs to its end, since the second needs what the first computes."""
    if len(layers) != 1:
        yield
        return
    (layer,) = layers.values()

    def stop(*_: Any, **__: Any) -> None:
        raise Enough

    layer.impl.forward = stop  # stands before the class's own
    try:
        yield
    finally:
        del layer.impl.forward
