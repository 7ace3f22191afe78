"""A measured cost model on disk, and whom it is for."""

import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.policy.base import Step
from vllm_edsd.policy.cost import GUESS, CostModel, Load

PASSES = 3  # over the steps, in random order


class Cell(BaseModel):
    """What the steps of one kind cost: `drafts` verified draft tokens in all, `drafted` draft steps; median milliseconds."""

    requests: int
    drafts: int
    drafted: int
    steps: int
    context: float
    ms: float


class CostProfile(BaseModel):
    """Coefficients of `CostModel` in seconds, the steps they were fitted to, and what they hold for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: dict[str, str] = Field(description="target, drafter, machine and versions, by name")
    coefficients: list[float] = Field(min_length=len(GUESS), max_length=len(GUESS))
    error: float = Field(description="median relative error over the cells")
    cells: list[Cell]

    @classmethod
    def fit(cls, steps: Sequence[Step], fingerprint: Mapping[str, str]) -> "CostProfile":
        """From the steps of a sweep. Raises UserError where there are too few."""
        if len(steps) < 10 * len(GUESS):
            raise UserError(f"{len(steps)} measured steps are too few for a profile; ask for more with --max-tokens")
        cost, order = CostModel(), list(steps)
        for number in range(PASSES):
            random.Random(number).shuffle(order)
            for step in order:
                cost.learn(step)
        groups: dict[tuple[int, int, int], list[Step]] = defaultdict(list)
        for step in steps:
            groups[step.requests, step.tokens - step.requests, step.drafted].append(step)
        cells, errors = [], []
        for (requests, drafts, drafted), group in sorted(groups.items()):
            seconds = statistics.median(step.seconds for step in group)
            context = statistics.mean(step.context for step in group)
            cells.append(
                Cell(requests=requests, drafts=drafts, drafted=drafted, steps=len(group), context=context, ms=seconds * 1e3)
            )
            if len(group) >= 3:
                errors.append(abs(cost.seconds(Load(requests, int(context), drafts, drafted)) / seconds - 1))
        return cls(
            fingerprint=dict(fingerprint),
            coefficients=cost.weights.tolist(),
            error=statistics.median(errors) if errors else float("nan"),
            cells=cells,
        )

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        with atomic(path) as partial:
            partial.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, fingerprint: Mapping[str, str]) -> "CostProfile":
        """Raises UserError for a missing or damaged file, and for one that was measured with something else."""
        if not path.is_file():
            raise UserError(
                f"profile {path} does not exist; make one with: vllm-edsd profile TARGET --edsd DRAFTER --out {path}"
            )
        try:
            profile = cls.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no cost profile ({error}); make one anew with: vllm-edsd profile") from None
        for name, now in fingerprint.items():
            before = profile.fingerprint.get(name)
            if before != now:
                raise UserError(
                    f"profile {path} was measured with another {name} ({before}, now {now}), so its costs would mislead; "
                    "make it anew with: vllm-edsd profile"
                )
        return profile
