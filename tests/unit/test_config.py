from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field

from vllm_edsd.config import ServeConfig, validate
from vllm_edsd.errors import UserError
from vllm_edsd.experts.recipe import CarveRecipe
from vllm_edsd.policy.registry import names

Small = Annotated[int, Field(ge=0)]


class Optimizer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    lr: float = Field(default=0.1, lt=1, gt=0, description="learning rate")


class Training(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 10
    optimizer: Optimizer = Optimizer()
    stages: list[Optimizer] = Field(default_factory=list)
    pair: tuple[Small, Small] = (0, 0)


def test_defaults():
    config = validate(ServeConfig, {"drafter": "x"}, "here")
    # How many tokens that is depends on the policy (test_serving.py).
    assert (config.policy, config.num_tokens, config.draft_sample_method) == (None, None, "greedy")


def test_text_from_the_environment_is_read_as_numbers():
    assert validate(ServeConfig, {"drafter": "x", "num_tokens": "7"}, "here").num_tokens == 7


@pytest.mark.parametrize("value", [0, -1, 129, "five", 2.5], ids=str)
def test_num_tokens_out_of_range_names_field_value_and_meaning(value):
    with pytest.raises(UserError) as caught:
        validate(ServeConfig, {"drafter": "x", "num_tokens": value}, "--edsd")
    told = str(caught.value)
    meaning = ServeConfig.model_fields["num_tokens"].description
    assert told.startswith(f"--edsd: 'num_tokens' ({meaning}) cannot be {value!r}; give ") and "(K)" in told
    assert told.endswith("; give a whole number, 1 to 128" if isinstance(value, str | float) else "; give 1 to 128")


def test_wrong_choice_lists_the_choices():
    with pytest.raises(UserError, match=r"'beam'.*'greedy' or 'probabilistic'"):
        validate(ServeConfig, {"drafter": "x", "draft_sample_method": "beam"}, "here")


@pytest.mark.parametrize("policy", names())
def test_every_policy_can_be_asked_for(policy):
    assert validate(ServeConfig, {"drafter": "x", "policy": policy}, "here").policy == policy


@pytest.mark.parametrize("policy", ["warp", "Evict", ""])
def test_unknown_policy_lists_the_known(policy):
    with pytest.raises(UserError) as caught:
        validate(ServeConfig, {"drafter": "x", "policy": policy}, "here")
    told = str(caught.value)
    assert told.startswith("here: 'policy' (how far to draft") and repr(policy) in told and "\n" not in told
    assert told.endswith(f"cannot be {policy!r}: unknown; known: {', '.join(names())}")


def test_unknown_key_lists_the_known_ones_as_the_user_spells_them():
    known = "<drafter>, <policy>, <num_tokens>, "
    with pytest.raises(UserError, match=rf"^f\.yaml: unknown key <tokens> \(value 3\); known: {known}"):
        validate(ServeConfig, {"drafter": "x", "tokens": 3}, "f.yaml", lambda key: f"<{key}>")


def test_a_key_that_says_where_it_is_from_needs_no_place():
    with pytest.raises(UserError, match=r"^--edsd\.num-tokens \(.*\) cannot be 0; give 1 to 128$"):
        validate(ServeConfig, {"drafter": "x", "num_tokens": 0}, None, lambda key: "--edsd.num-tokens")


def test_missing_key_is_named():
    with pytest.raises(UserError, match="'target' is missing"):
        validate(CarveRecipe, {"data": ["x"]}, "here")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"optimizer": {"rate": 1}}, r"unknown key 'optimizer.rate' \(value 1\); known: 'optimizer.lr'"),
        ({"optimizer": {"lr": 0}}, r"'optimizer.lr' \(learning rate\) cannot be 0; give more than 0 and less than 1$"),
        ({"optimizer": {"lr": "x"}}, r"cannot be 'x'; give a number, more than 0 and less than 1$"),
        ({"pair": [1, -2]}, r"'pair.1' cannot be -2; give at least 0$"),
        ({"pair": [1]}, r"'pair.1' cannot be \[1\]: Field required$"),
        ({"stages": [{}, {"rate": 1}]}, r"unknown key 'stages.1.rate' \(value 1\); known: 'stages.1.lr'"),
    ],
    ids=["unknown", "range", "type", "range-in-a-list", "too-short", "in-a-list"],
)
def test_nested_schemas_tell_the_whole_path(data, told):
    with pytest.raises(UserError, match=told):
        validate(Training, data, "here")


def test_every_serving_option_is_described():
    assert all(field.description for field in ServeConfig.model_fields.values())
