"""The way out of vLLM's drafting loop and of the drafter's forward pass, which have none of their own."""


class Enough(Exception):  # noqa: N818 - not an error
    """Nothing further is needed of this pass."""
