"""What a user can set when serving, as one validated schema, and how any schema's errors are told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from vllm_edsd.drafters.registry import names as proposers
from vllm_edsd.errors import UserError
from vllm_edsd.policy.registry import names

NOTHING = "none"  # for `beside`
MOST_TOKENS = 128  # vLLM's rejection sampler asserts at most so many draft tokens for a request
# Pydantic's kinds of error about a number, with what is then wanted besides its bounds.
NUMBERS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "greater": "", "less": ""}
BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
Model = TypeVar("Model", bound=BaseModel)


class ServeConfig(BaseModel):
    """The options of `vllm serve --edsd`, of `vllm_edsd.options()` and of the EDSD_* environment variables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    drafter: str | None = Field(
        default=None,
        min_length=1,
        description="name of a bundled drafter or a model-free proposer, or path of a drafter's directory",
    )
    policy: str | None = Field(
        default=None,
        description="how far to draft: a policy by name; by default evict on vLLM's CPU backend and fixed elsewhere",
    )
    num_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOKENS,
        description="draft tokens per step (K), at most; by default 2 with policy fixed, else 8",
    )
    draft_sample_method: Literal["greedy", "probabilistic"] = Field(
        default="greedy",
        description="how the drafter picks its tokens: its likeliest one, or a sample at the request's temperature",
    )
    beside: str | None = Field(
        default=None,
        description="model-free proposer that drafts instead where it is faster, or none; by default lookup, under evict",
    )
    verification: Literal["standard", "block"] = Field(
        default="standard",
        description="how drafts are accepted: token by token, or as a block, which keeps more of sampled drafts",
    )
    profile: Path | None = Field(
        default=None, description="what `vllm-edsd profile` measured, for policy evict to start from; without it, it learns"
    )
    experts: Path | None = Field(
        default=None,
        description="LOSSY: fewer experts per token on an MoE target, by the plan that `vllm-edsd experts` wrote here",
    )
    experts_mode: Literal["prefill", "all"] = Field(
        default="prefill", description="which tokens use fewer experts: the prompts', or all"
    )
    record: Path | None = Field(default=None, description="file to which every step's figures are appended, as JSON lines")

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str | None) -> str | None:
        if policy is not None and policy not in names():
            raise ValueError(f"unknown; known: {', '.join(names())}")
        return policy

    @field_validator("beside")
    @classmethod
    def _proposes(cls, beside: str | None) -> str | None:
        if beside not in (None, NOTHING, *proposers()):
            raise ValueError(f"unknown; known: {', '.join([*proposers(), NOTHING])}")
        return beside


def validate(model: type[Model], data: Mapping[str, Any], place: str | None, spell: Callable[[str], str] = repr) -> Model:
    """An instance of `model` from `data`.

    `place` says where the data came from (a file), None where `spell`, which writes a key as its user wrote it, says so too.
    Raises UserError with the first wrong key, its value, and the keys or values that are valid.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{place} is no mapping of names to values, but {data!r}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{place}: " * (place is not None) + _tell(model, first, spell)) from None


def _tell(model: type[BaseModel], error: Any, spell: Callable[[str], str]) -> str:
    path = [str(part) for part in error["loc"]]
    key = spell(".".join(path)) if path else "the value"
    fields = _fields(model, path[:-1])
    prefix = ".".join(path[:-1])
    known = ", ".join(spell(f"{prefix}.{name}" if prefix else name) for name in fields)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key} (value {error['input']!r}); known: {known}"
    if error["type"] == "missing" and path[-1] in fields:
        return f"{key} is missing; known: {known}"
    field = fields.get(path[-1]) if path else None
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{key}{meaning} cannot be {error['input']!r}{_why(error, field)}"


def _why(error: Any, field: FieldInfo | None) -> str:
    """What to give instead or, where pydantic does not know, what it says."""
    context, kind = error.get("ctx", {}), error["type"].partition("_")[0]
    if kind == "literal":
        return f"; give {context['expected']}"
    if kind not in NUMBERS:
        return f": {error['msg'].removeprefix('Value error, ')}"
    stated = field.metadata if field is not None else []
    bounds = context | {name: getattr(bound, name) for bound in stated for name in BOUNDS if hasattr(bound, name)}
    if {"ge", "le"} <= bounds.keys():
        limits = f"{bounds['ge']} to {bounds['le']}"
    else:
        limits = " and ".join(BOUNDS[name].format(bounds[name]) for name in BOUNDS if name in bounds)
    return "; give " + ", ".join(filter(None, (NUMBERS[kind], limits)))


def _fields(model: type[BaseModel], path: list[str]) -> dict[str, Any]:
    """The fields of the schema nested in `model` at `path`; parts that are no field (list positions) are passed over."""
    for part in path:
        field = model.model_fields.get(part)
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = nested[0] if nested else model
    return model.model_fields
