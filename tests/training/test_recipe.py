"""Recipes, presets and schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stillroom.errors import InputError
from stillroom.training.recipe import PRESETS, Recipe, default_lr, lr_at, make_optimizer, warmup_weight


def test_the_cifar_preset_falls_after_epochs_150_180_and_210() -> None:
    rates = [lr_at(PRESETS["cifar"], epoch) for epoch in range(1, 241)]
    falls = [epoch for epoch in range(1, 240) if rates[epoch] < rates[epoch - 1]]
    assert falls == [150, 180, 210]
    assert rates[0] == 0.05
    assert rates[-1] == pytest.approx(5e-5)


def test_the_imagenet_preset_falls_after_epochs_30_60_and_90() -> None:
    rates = [lr_at(PRESETS["imagenet-simkd"], epoch) for epoch in range(1, 121)]
    assert [epoch for epoch in range(1, 120) if rates[epoch] < rates[epoch - 1]] == [30, 60, 90]


def test_milestones_scale_with_the_epochs() -> None:
    short = replace(PRESETS["cifar"], epochs=8)
    assert [lr_at(short, epoch) for epoch in range(1, 9)] == pytest.approx(
        [0.05, 0.05, 0.05, 0.05, 0.05, 0.005, 0.0005, 0.00005]
    )


def test_the_first_epoch_has_the_first_rate_however_few_there_are() -> None:
    assert lr_at(Recipe(epochs=1, milestones=(0.1,)), 1) == 0.05


def test_cosine_starts_at_the_full_rate_falls_and_stays_positive() -> None:
    recipe = Recipe(epochs=10, schedule="cosine", lr=0.2)
    rates = [lr_at(recipe, epoch) for epoch in range(1, 11)]
    assert rates[0] == 0.2
    assert rates == sorted(rates, reverse=True)
    assert rates[5] == pytest.approx(0.1)
    assert rates[-1] > 0


def test_the_constant_schedule_is_constant() -> None:
    recipe = Recipe(epochs=10, schedule="constant")
    assert {lr_at(recipe, epoch) for epoch in range(1, 11)} == {0.05}


def test_no_warm_up_means_full_weight() -> None:
    assert warmup_weight(1, 0) == 1.0


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv2_half", "shufflenet_v1", "shufflenet_v2_x1_5"])
def test_mobile_students_start_at_a_hundredth(name: str) -> None:
    assert default_lr(name) == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "recipe.epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "recipe.batch_size"),
        ({"lr": 0.0}, "recipe.lr"),
        ({"lr": float("nan")}, "recipe.lr"),
        ({"momentum": 1.0}, "recipe.momentum"),
        ({"weight_decay": -1e-4}, "recipe.weight_decay"),
        ({"milestones": (0.75, 0.5)}, "recipe.milestones"),
        ({"milestones": (150,)}, "recipe.milestones"),
        ({"decay": 0.0}, "recipe.decay"),
        ({"clip_norm": 0.0}, "recipe.clip_norm"),
        ({"nesterov": True, "optimizer": "adam"}, "recipe.nesterov"),
        ({"optimizer": "lion"}, "recipe.optimizer"),
        ({"schedule": "linear"}, "recipe.schedule"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_optimiser_has_the_recipes_numbers_and_leaves_frozen_parameters_out(name: Any, kind: type) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(Recipe(optimizer=name, lr=0.3, momentum=0.8, weight_decay=0.01), model.parameters())
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model[1].parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)
    assert group["momentum"] == 0.8 if name == "sgd" else group["betas"] == (0.8, 0.999)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to train"):
        make_optimizer(Recipe(), nn.Linear(2, 2).requires_grad_(False).parameters())


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_passes_over_the_undecayed(name: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    before = [parameter.clone() for parameter in model.parameters()]
    exempt = [*model[1].parameters(), *model[2].parameters()]
    recipe = Recipe(optimizer=name, lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(recipe, model.parameters(), undecayed=exempt)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    for parameter in model[:2].parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, False, False, False]


def test_all_parameters_may_be_undecayed() -> None:
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(Recipe(), model.parameters(), undecayed=list(model.parameters()))
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
