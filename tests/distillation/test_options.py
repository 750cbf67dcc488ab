"""A method's hyperparameters as plain data."""

from __future__ import annotations

import pytest

from stillroom.distillation.methods import METHODS, method_class
from stillroom.distillation.options import short_training
from stillroom.hyperparameters import method_defaults, method_options


@pytest.mark.parametrize("name", METHODS)
def test_a_method_remembers_what_it_was_built_with(name: str) -> None:
    method = method_class(name)
    assert method_options(method()) == method_defaults(method)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_built_again_from_its_options(name: str) -> None:
    options = method_options(method_class(name)())
    assert method_options(method_class(name)(**options)) == options


def test_a_warm_up_longer_than_the_training_is_said() -> None:
    rld = method_class("rld")()
    assert short_training(rld, 20) == []
    (note,) = short_training(rld, 19)
    assert "20 epochs and the training 19" in note
    assert short_training(method_class("kd")(), 1) == []
