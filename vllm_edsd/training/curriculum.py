"""EDTrain: easy tokens first (entropy mask), short drafts first (Step-n). Both follow the progress of the run."""

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_edsd.training.choices import one_of
from vllm_edsd.training.masks import MASKS, SELECTIONS

LARGEST_SHARE = 0.4


def _step_n(stage: int, periods: int, max_depth: int) -> int:
    return math.ceil(1 + (max_depth - 1) * stage / (periods - 1))


def _fixed(stage: int, periods: int, max_depth: int) -> int:
    return max_depth


DEPTHS: dict[str, Callable[[int, int, int], int]] = {"step-n": _step_n, "fixed": _fixed}


class Curriculum(BaseModel):
    """EDTrain's two schedules, driven by progress u = step / steps with t = floor(u * periods)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    periods: int = Field(
        default=10, ge=2, description="T, the number of stages; the authors' example has one for each of 10 epochs"
    )
    entropy_rate: float = Field(
        default=0.025,
        ge=0,
        le=1,
        description="s of the mask's share r_t = clip((T-t-1)*s, 0, 0.4); 0 turns the mask off",
    )
    mask: Annotated[str, one_of(MASKS)] = Field(
        default="entropy",
        description="which tokens the share drops: those of the highest target entropy, the lowest (reversed), random, none",
    )
    selection: Annotated[str, one_of(SELECTIONS)] = Field(
        default="local", description="the share is of the batch (local), or of the last positions of the run (global)"
    )
    depth: Annotated[str, one_of(DEPTHS)] = Field(
        default="step-n", description="unroll depth: growing from 1 to max_depth (step-n), or max_depth throughout (fixed)"
    )

    @model_validator(mode="before")
    @classmethod
    def _former_key(cls, data: Any) -> Any:
        """`grow_depth: true` and `false` are step-n and fixed as recipes once wrote them."""
        if isinstance(data, dict) and isinstance(data.get("grow_depth"), bool) and "depth" not in data:
            data = dict(data)
            data["depth"] = "step-n" if data.pop("grow_depth") else "fixed"
        return data


def stage(progress: float, periods: int) -> int:
    """t = floor(u * T), 0..T-1, for progress u in [0, 1]."""
    return min(int(progress * periods), periods - 1)


def masked_share(curriculum: Curriculum, progress: float) -> float:
    """r_t = clip((T-t-1) * s, 0, 0.4): the share of positions dropped, 0 in the last stage (EDTrain's entropy mask)."""
    t = stage(progress, curriculum.periods)
    return min(max((curriculum.periods - t - 1) * curriculum.entropy_rate, 0.0), LARGEST_SHARE)


def depth(curriculum: Curriculum, progress: float, max_depth: int) -> int:
    """n_t = ceil(1 + (S_max-1) * t/(T-1)) unroll steps (Step-n), or S_max where the depth is fixed."""
    return DEPTHS[curriculum.depth](stage(progress, curriculum.periods), curriculum.periods, max_depth)
