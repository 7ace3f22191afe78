"""Finished training runs, as `plan` compares them: read from the directories that `vllm-edsd train` exported."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_edsd.drafters import checkpoint
from vllm_edsd.errors import UserError
from vllm_edsd.fingerprint import fingerprint

SAME = ("prompts", "template", "temperature", "num_tokens", "draft_sample_method", "dtype", "max_tokens")


@dataclasses.dataclass(frozen=True)
class Finished:
    """`tokens` answer tokens trained on, repeats counted; `per_position[j]` the share of drafts whose token j was accepted.

    `judged_on` says which text that is of; `mark` is what a cost profile knows the drafter by.
    """

    name: str
    kind: str
    target: str
    parameters: int
    tokens: int
    per_position: list[float]
    judged_on: str
    mark: str


def read_runs(drafters: Sequence[str], evaluations: Sequence[Path] = ()) -> list[Finished]:
    """The runs behind drafters given by bundled name or path, judged as `vllm-edsd eval` wrote, else on their held-out text.

    Raises UserError for a drafter that no recipe made, one without evaluation where others have one, evaluations that
    differ in anything but the drafter, and drafters of several targets.
    """
    judged = _judged(evaluations)
    runs = [_run(name, judged) for name in drafters]
    for run in runs[1:]:
        if run.target != runs[0].target:
            raise UserError(
                f"drafter {run.name} is for target {run.target}, {runs[0].name} for {runs[0].target}; plan for one target"
            )
    return runs


def _run(name: str, judged: dict[str, list[float]]) -> Finished:
    folder = checkpoint.resolve(name)
    made = _json(folder / "provenance.json")
    if "recipe" not in made:
        raise UserError(f"{folder}/provenance.json has no recipe; give drafters as `vllm-edsd train` exported them")
    recipe, version = made["recipe"], checkpoint.version(folder)
    if judged and version not in judged:
        raise UserError(
            f"no --eval file is of drafter {name} (version {version}); make one with: "
            f"vllm-edsd eval --drafter {name} --json FILE"
        )
    held_out = f"{made['data']['fingerprint']}, held_out {recipe['held_out']}, seed {recipe['seed']}"
    return Finished(
        name=name,
        kind=recipe["drafter"],
        target=recipe["target_name"],
        parameters=made["parameters"],
        tokens=trained_tokens(made),
        per_position=judged.get(version) or made["held_out"]["per_position"],
        judged_on="evaluations" if judged else held_out,
        mark=fingerprint(None, folder, None)["drafter"],
    )


def trained_tokens(provenance: dict[str, Any]) -> int:
    """Answer tokens that a drafter was trained on, repeats counted; 0 where its provenance does not say."""
    if "trained_tokens" in provenance:
        return provenance["trained_tokens"]
    # Runs from before they were counted.
    data, recipe = provenance.get("data", {}), provenance.get("recipe", {})
    return round(data.get("answer_tokens", 0) * recipe.get("epochs", 0))


def _judged(evaluations: Sequence[Path]) -> dict[str, list[float]]:
    """Acceptance by position of each drafter, by the version of its weights."""
    found: dict[str, list[float]] = {}
    first: dict[str, Any] = {}
    for path in evaluations:
        result = _json(path)
        environment = result.get("environment", {})
        if "per_position" not in result or len(environment.get("drafters", {})) != 1:
            raise UserError(f"{path} is no result of `vllm-edsd eval`; make one with its --json")
        first = first or environment
        for key in SAME:
            if environment.get(key) != first.get(key):
                raise UserError(
                    f"{path} has {key} {environment.get(key)!r}, but {evaluations[0]} has {first.get(key)!r}; judge all "
                    "drafters alike"
                )
        (drafter,) = environment["drafters"].values()
        found[drafter["version"]] = [share["mean"] for share in result["per_position"]]
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found
