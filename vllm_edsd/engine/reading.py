"""Reading without drafting: of the drafter's pass only what its KV cache needs.

With one layer, keys and values depend on nothing that its attention or MLP computes, and these are most of the work.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from vllm_edsd.engine.enough import Enough


@contextlib.contextmanager
def reading(layers: dict[str, Any]) -> Iterator[None]:
    """Within it a forward pass through `layers`, the drafter's attention layers by name, ends by raising `Enough` once the
    keys and values of the only one are written; with several, all but the first of which need the pass, it runs as ever."""
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
