"""How a dense target is made into an MoE: the shape, the carve and the distillation, as one configuration file."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CarveRecipe(BaseModel):
    """What an MoE target is carved from, into what, and how it is distilled."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    target: Path = Field(description="directory of the dense target's Hugging Face checkpoint")
    data: tuple[Path, ...] = Field(min_length=1, description="directories that `vllm-edsd regen` wrote with this target")
    experts: int = Field(default=12, ge=2, description="routed experts per layer")
    shared: int = Field(default=384, ge=1, description="MLP neurons of the shared expert")
    top_k: int = Field(default=8, ge=1, description="routed experts per token")
    distilled_top_k: int | None = Field(
        default=None, ge=1, description="routed experts per token in the distillation, if others: fewer make each count"
    )
    row: int = Field(default=256, ge=16, description="tokens in a row of packed samples")
    calibration_rows: int = Field(default=64, ge=1, description="rows that neurons are counted on")
    steps: int = Field(default=350, ge=0, description="of the distillation")
    rows_per_step: int = Field(default=8, ge=1)
    rank: int = Field(default=32, ge=1, description="of the change to each MLP matrix")
    learning_rate: float = Field(default=1e-3, gt=0, description="of the matrices' changes")
    router_learning_rate: float = Field(default=2e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps with a rising learning rate")
    predicted: float = Field(default=0.25, gt=0, le=1, description="share of the positions whose predictions are compared")
    held_out_rows: int = Field(default=24, ge=1, description="rows kept from calibration and training")
    checkpoint_every: int = Field(default=25, ge=1, description="steps")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "CarveRecipe":
        for k in (self.top_k, self.distilled_top_k or 1):
            if k > self.experts:
                raise ValueError(f"{k} experts per token are more than the {self.experts} there are")
        return self
