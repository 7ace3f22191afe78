"""The one configuration file of a training run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python

from vllm_edsd.drafters.config import ARCHITECTURES
from vllm_edsd.training.choices import one_of
from vllm_edsd.training.curriculum import Curriculum
from vllm_edsd.training.losses import LOSSES
from vllm_edsd.training.optimizers import OPTIMIZERS

Beta = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel):
    """What a drafter is trained from, on what, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    drafter: Annotated[str, one_of(ARCHITECTURES)] = Field(description="kind of drafter")
    target: Path = Field(description="directory of the target's Hugging Face checkpoint")
    target_name: str = Field(description="name of the target, written into the drafter")
    data: Path = Field(description="directory that `vllm-edsd regen` wrote")
    features: Path | None = Field(
        default=None,
        description="directory for the target's hidden states, made when missing, shared between runs; without one the "
        "target runs beside the drafter at every step",
    )
    feature_layers: tuple[int, ...] = Field(
        min_length=1, description="target layers to store: i is the input of layer i; a superset of `layers`"
    )
    layers: tuple[int, ...] = Field(min_length=1, description="target layers that the drafter reads")
    start: str | None = Field(
        default=None,
        description="drafter to go on from, by name or path: its weights and draft vocabulary in place of fresh ones",
    )
    draft_vocab_size: int = Field(
        default=8192, ge=1, description="rows of the draft head: the target's most frequent own tokens"
    )
    intermediate_size: int | None = Field(
        default=None, ge=1, description="width of MLP and EDFuse; the target's when absent"
    )
    max_depth: int = Field(default=5, ge=1, le=16, description="S_max: unroll steps at full depth")
    depth_decay: float = Field(default=0.8, gt=0, le=1, description="weight of unroll step j is depth_decay ** j")
    going_on: float = Field(
        default=1.0, gt=0, le=1, description="share of a step's samples that go on from one unroll step to the next"
    )
    loss: Annotated[str, one_of(LOSSES)] = Field(
        default="kl", description="of the drafter against the target; see vllm_edsd/training/losses.py"
    )
    curriculum: Curriculum = Curriculum()
    epochs: float = Field(default=4.0, gt=0, description="passes over the data; a fraction stops within one")
    batch_tokens: int = Field(
        default=2048, ge=1, description="answer tokens in an optimiser step, at most (one sample at least)"
    )
    accumulate: int = Field(
        default=1, ge=1, description="parts that a step's batch is worked through in: less memory, the same step"
    )
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = Field(
        default="adamw", description="adamw, or muon for the matrices and AdamW for norms and head"
    )
    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.015, ge=0, lt=1, description="share of the steps with a rising learning rate")
    clip: float = Field(default=0.5, gt=0, description="largest norm of the gradient")
    precision: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="of the matrix products; weights are float32"
    )
    held_out: int = Field(default=64, ge=1, description="samples kept from training for evaluation")
    evaluate_every: int = Field(default=500, ge=1, description="steps")
    checkpoint_every: int = Field(default=200, ge=1, description="steps")
    seed: int = Field(default=0, ge=0)


def by_key(recipe: dict[str, Any]) -> dict[str, Any]:
    """A dumped recipe with nested keys as `curriculum.mask`; keys that an older version did not write get their defaults."""
    defaults = {name: field.default for name, field in Recipe.model_fields.items() if not field.is_required()}
    whole = to_jsonable_python(defaults) | recipe
    curriculum = Curriculum.model_validate(whole.pop("curriculum")).model_dump(mode="json")
    return whole | {f"curriculum.{name}": value for name, value in curriculum.items()}
