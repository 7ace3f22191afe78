"""Names in a recipe: an unknown one lists the known."""

from collections.abc import Iterable

from pydantic import AfterValidator


def one_of(known: Iterable[str]) -> AfterValidator:
    """Accepts the names in `known` alone."""
    names = list(known)

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"unknown; known: {', '.join(names)}")
        return name

    return AfterValidator(check)
