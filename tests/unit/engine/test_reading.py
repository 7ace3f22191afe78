"""The drafter's pass ends where its keys and values are written."""

from types import SimpleNamespace

import pytest

from vllm_edsd.engine.enough import Enough
from vllm_edsd.engine.reading import reading


class Impl:
    def forward(self, query):
        return query + 1


def layers(count):
    return {str(number): SimpleNamespace(impl=Impl()) for number in range(count)}


def test_the_only_layers_attention_ends_the_pass_and_is_there_again_afterwards():
    (layer,) = (given := layers(1)).values()
    with pytest.raises(Enough), reading(given):
        layer.impl.forward(1)
    assert layer.impl.forward(1) == 2


def test_an_error_leaves_the_attention_in_place():
    (layer,) = (given := layers(1)).values()
    with pytest.raises(KeyError), reading(given):
        raise KeyError
    assert layer.impl.forward(1) == 2


def test_several_layers_are_left_alone():
    given = layers(2)
    with reading(given):
        assert [layer.impl.forward(1) for layer in given.values()] == [2, 2]
