"""What can be asked for by name: ours, and what installed packages add under a group of entry points."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vllm_edsd.errors import UserError


@dataclass(frozen=True)
class Extensions:
    """Subclasses of `base`, each called a `kind`; `ours` gives them by name as entry points do, `module:Class`."""

    kind: str
    group: str
    base: type
    ours: Mapping[str, str]

    def known(self) -> dict[str, EntryPoint]:
        """Every entry point by name, sorted; nothing is imported. Raises UserError for a name that is taken twice."""
        ours = (EntryPoint(name, value, self.group) for name, value in self.ours.items())
        found: dict[str, EntryPoint] = {}
        for entry in [*ours, *entry_points(group=self.group)]:
            if found.setdefault(entry.name, entry).value != entry.value:
                values = f"{found[entry.name].value} and {entry.value}"
                raise UserError(f"the {self.kind} {entry.name!r} is both {values}: uninstall the package of one of them")
        return dict(sorted(found.items()))

    def load(self, name: str) -> Any:
        """The class of this name. Raises UserError for an unknown name, a failing import, or a class that is no `base`."""
        entries = self.known()
        if name not in entries:
            raise UserError(f"unknown {self.kind} {name!r}; known: {', '.join(entries)}")
        what = f"the {self.kind} {name!r}, {entries[name].value},"
        try:
            found = entries[name].load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"{what} cannot be loaded ({error}): install its package again, or uninstall it") from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise UserError(f"{what} is no subclass of {self.base.__module__}.{self.base.__qualname__}")
        return found
