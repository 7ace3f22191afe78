"""vllm_edsd: entropy-driven speculative decoding for a stock vLLM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_edsd.serving import options as options

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Importing the package stays light: vLLM does it in each of its processes.
    if name == "options":
        from vllm_edsd.serving import options

        return options
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
