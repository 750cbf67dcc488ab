"""Every attack steals a small victim, ends with its budget, and takes up what it paid for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.defense.attacks.clone import train_clone
from stillroom.defense.attacks.dfme import DFME
from stillroom.defense.attacks.disguide import DisGUIDE, Ensemble
from stillroom.defense.attacks.jbda import JBDA
from stillroom.defense.attacks.knockoff import Knockoff
from stillroom.defense.attacks.maze import MAZE
from stillroom.defense.attacks.target import Labels, Target
from stillroom.defense.attacks.transfer import Recorded, Stolen, TransferSet
from stillroom.defense.contracts import Images, Queries
from stillroom.defense.dadd import DetectAndPoison
from stillroom.defense.poison import KeyedPoison
from stillroom.errors import InputError, OutputError
from stillroom.models.stored import state_hash
from stillroom.training.recipe import Recipe

SHAPE = (1, 8, 8)
SHORT = Recipe(epochs=12, batch_size=32, lr=0.1, schedule="cosine")
Make = Callable[[int, int], Images]
Fresh = Callable[[int], nn.Module]
Agreement = Callable[[nn.Module], float]


def unique(images: Images) -> int:
    return len(np.unique(images.reshape(len(images), -1), axis=0))


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("strategy", ["random", "adaptive"])
def test_knockoff_steals_from_a_few_hundred_answers(
    strategy: Any, labels: Labels, victim: Any, undefended: Any, noise: Make, fresh: Fresh, agreement: Agreement
) -> None:
    target = Target(victim, undefended, budget=300, labels=labels)
    surrogate = noise(400, 1)
    classes = victim(surrogate).logits.argmax(1)
    clone = fresh(0)
    before = agreement(clone)
    stolen = Knockoff(strategy=strategy, recipe=SHORT, objective="mixed").steal(
        target.ask, clone, surrogate, labels=classes, budget=300, seed=3, show_progress=False
    )
    assert target.spent == 300
    assert stolen.transfer is not None
    assert len(stolen.transfer) == unique(stolen.transfer.images) == 300
    assert len(stolen.history) == SHORT.epochs
    assert agreement(stolen.model) > max(0.85, before + 0.2)


def test_poisoned_answers_teach_the_clone_nothing(victim: Any, noise: Make, fresh: Fresh, agreement: Agreement) -> None:
    class Suspicious:
        def watch(self, queries: Queries) -> Any:
            return np.ones(len(queries))

    target = Target(victim, DetectAndPoison(Suspicious(), 0.5, KeyedPoison(bytes(16))), budget=300)
    stolen = Knockoff(recipe=SHORT).steal(target.ask, fresh(0), noise(300, 1), budget=300, seed=3, show_progress=False)
    assert (target.altered, target.first_detected) == (300, 1)
    assert agreement(stolen.model) < 0.6


@pytest.mark.parametrize("form", ["jacobian", "fgsm", "top", "random"])
def test_jbda_grows_its_seeds_within_the_budget(
    form: Any, victim: Any, undefended: Any, noise: Make, fresh: Fresh, agreement: Agreement
) -> None:
    target = Target(victim, undefended, budget=200)
    recipe = Recipe(epochs=10, batch_size=16, optimizer="adam", lr=0.02, weight_decay=0.0, schedule="constant")
    stolen = JBDA(form=form, rounds=3, recipe=recipe).steal(
        target.ask, fresh(0), noise(40, 1), budget=200, seed=0, show_progress=False
    )
    assert stolen.transfer is not None
    assert target.spent == len(stolen.transfer) == 200
    # The seeds come first and stay as they were.
    assert unique(np.concatenate([stolen.transfer.images[:40], noise(40, 1)])) == 40
    moved = stolen.transfer.images[40:].astype(int)
    apart = np.abs(moved[:, None] - stolen.transfer.images[None, :].astype(int)).max((2, 3, 4))
    apart[np.arange(160), 40 + np.arange(160)] = 255
    assert (apart.min(1) <= 26).all()  # each lies within the step of another image of the set
    sizes = [record["queries"] for record in stolen.history]
    assert sizes == sorted(sizes)
    assert agreement(stolen.model) > 0.6


DATA_FREE: list[tuple[Any, Labels]] = [
    (DFME(batch_size=32, clone_steps=2, latent=8, lr_clone=0.1, lr_generator=1e-3), "soft"),
    (DFME(batch_size=32, clone_steps=2, latent=8, loss="kl", correction="min"), "soft"),
    (MAZE(batch_size=32, clone_steps=2, directions=2, replay_steps=2, replay_size=64, latent=8), "soft"),
    (DisGUIDE(batch_size=32, latent=8, replay_size=64, lr_clone=0.2), "soft"),
    (DisGUIDE(batch_size=32, latent=8, replay_size=64, labels="hard", lr_clone=0.2), "hard"),
]


@pytest.mark.parametrize(("attack", "labels"), DATA_FREE, ids=["dfme-l1", "dfme-kl", "maze", "disguide", "hard"])
def test_attacks_without_data_steal_and_pay_what_they_say(
    attack: Any, labels: Labels, victim: Any, undefended: Any, fresh: Fresh, agreement: Agreement
) -> None:
    target = Target(victim, undefended, budget=20 * attack.cost + 5, labels=labels)
    clone = Ensemble([fresh(0), fresh(1)]) if isinstance(attack, DisGUIDE) else fresh(0)
    stolen = attack.steal(
        target.ask,
        clone,
        SHAPE,
        budget=target.budget,
        seed=1,
        measure=lambda clone: {"agreement": agreement(clone)},
        show_progress=False,
    )
    assert target.spent == 20 * attack.cost
    assert [record["queries"] for record in stolen.history] == [n * attack.cost for n in range(1, 21)]
    assert stolen.history[-1]["agreement"] == agreement(stolen.model) > 0.6  # by chance 0.25


@pytest.mark.parametrize("attack", [attack for attack, _ in DATA_FREE[1:4]], ids=["dfme", "maze", "disguide"])
def test_attacks_without_data_depend_on_their_seed_alone(
    attack: Any, victim: Any, undefended: Any, fresh: Fresh
) -> None:
    def steal(seed: int) -> str:
        target = Target(victim, undefended, budget=2 * attack.cost)
        clone = Ensemble([fresh(0), fresh(1)]) if isinstance(attack, DisGUIDE) else fresh(0)
        stolen = attack.steal(target.ask, clone, SHAPE, budget=target.budget, seed=seed, show_progress=False)
        return state_hash(stolen.model.state_dict())

    state = torch.get_rng_state()
    first = steal(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert steal(1) == first != steal(2)


@pytest.mark.parametrize("attack", [DFME(batch_size=8, latent=4), MAZE(batch_size=8, latent=4, directions=2)])
def test_a_budget_that_ends_early_ends_the_attack_cleanly(
    attack: Any, victim: Any, undefended: Any, fresh: Fresh
) -> None:
    target = Target(victim, undefended, budget=3 * attack.cost + 9)
    stolen = attack.steal(target.ask, fresh(0), SHAPE, budget=40 * attack.cost, seed=1, show_progress=False)
    assert target.budget - attack.cost < target.spent <= target.budget
    assert not stolen.model.training
    with pytest.raises(InputError, match="lower batch_size"):
        attack.steal(target.ask, fresh(0), SHAPE, budget=attack.cost - 1, seed=1, show_progress=False)


@pytest.mark.parametrize("attack", [Knockoff(recipe=SHORT), JBDA(recipe=SHORT, rounds=3)])
def test_a_target_with_less_left_than_the_attack_wanted_gives_what_it_has(
    attack: Any, victim: Any, undefended: Any, noise: Make, fresh: Fresh
) -> None:
    target = Target(victim, undefended, budget=70)
    stolen = attack.steal(target.ask, fresh(0), noise(50, 1), budget=50, seed=1, show_progress=False)
    assert len(stolen.transfer) == 50
    stolen = attack.steal(target.ask, fresh(0), noise(50, 1), budget=50, seed=1, show_progress=False)
    assert len(stolen.transfer) == 20
    with pytest.raises(InputError, match="budget"):
        attack.steal(target.ask, fresh(0), noise(50, 1), budget=50, seed=1, show_progress=False)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("strategy", ["random", "adaptive"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_killed_knockoff_goes_on_without_paying_twice(
    strategy: Any, call: int, tmp_path: Path, undefended: Any, victim: Any, noise: Make, fresh: Fresh
) -> None:
    surrogate = noise(600, 1)
    classes = victim(surrogate).logits.argmax(1)
    victim.seen.clear()
    attack = Knockoff(strategy=strategy, step=256, recipe=Recipe(epochs=1, batch_size=64, lr=0.1))

    def steal(ask: Any) -> Stolen:
        return attack.steal(ask, fresh(0), surrogate, labels=classes, budget=600, seed=1, show_progress=False)

    first, calls = Target(victim, undefended, budget=600), 0

    def dying(images: Images) -> Any:
        nonlocal calls
        if calls == call:
            raise Killed
        calls += 1
        return first.ask(images)

    with pytest.raises(Killed):
        steal(Recorded(dying, tmp_path))
    recorded = Recorded(Target(victim, undefended, budget=600, spent=first.spent).ask, tmp_path)
    assert recorded.paid == first.spent == 256 * call
    resumed = steal(recorded)
    asked = np.concatenate(victim.seen)
    assert len(asked) == unique(asked) == unique(surrogate)
    whole = steal(Target(victim, undefended, budget=600).ask)
    assert state_hash(resumed.model.state_dict()) == state_hash(whole.model.state_dict())


def test_a_recorded_attack_costs_nothing_the_second_time(
    tmp_path: Path, victim: Any, undefended: Any, noise: Make, fresh: Fresh
) -> None:
    attack = JBDA(rounds=2, recipe=SHORT)
    target = Target(victim, undefended, budget=80)
    hashes = {
        state_hash(
            attack.steal(
                Recorded(target.ask, tmp_path), fresh(0), noise(20, 1), budget=80, seed=0, show_progress=False
            ).model.state_dict()
        )
        for _ in range(2)
    }
    assert target.spent == 80
    assert len(hashes) == 1


def test_a_recording_of_another_attack_or_a_damaged_one_is_refused(
    tmp_path: Path, victim: Any, undefended: Any, noise: Make
) -> None:
    target = Target(victim, undefended, budget=100)
    recorded = Recorded(target.ask, tmp_path)
    recorded(noise(10, 1))
    recorded(noise(10, 2))
    with pytest.raises(InputError, match="another attack"):
        Recorded(target.ask, tmp_path)(noise(10, 3))
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == ["part-000000.safetensors", "part-000001.safetensors"]
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-7])
    with pytest.raises(InputError, match="damaged"):
        Recorded(target.ask, tmp_path)
    parts[1].write_bytes(content)
    parts[0].unlink()
    with pytest.raises(InputError, match="missing"):
        Recorded(target.ask, tmp_path)
    with pytest.raises(OutputError):
        Recorded(target.ask, parts[1])


def test_a_transfer_set_comes_back_as_it_was(tmp_path: Path, noise: Make) -> None:
    kept = TransferSet(noise(7, 0)[::2], np.random.default_rng(0).dirichlet(np.ones(4), 4))
    kept.save(tmp_path / "transfer.safetensors")
    read = TransferSet.load(tmp_path / "transfer.safetensors")
    np.testing.assert_array_equal(read.images, kept.images)
    np.testing.assert_array_equal(read.answers, kept.answers)
    with pytest.raises(InputError, match="no transfer set"):
        TransferSet.load(tmp_path / "absent")
    with pytest.raises(InputError, match="do not fit"):
        TransferSet(noise(3, 0), np.eye(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Knockoff(strategy="greedy"),  # type: ignore[arg-type]
        lambda: Knockoff(reward="fame"),  # type: ignore[arg-type]
        lambda: Knockoff(step=0),
        lambda: JBDA(form="other"),  # type: ignore[arg-type]
        lambda: JBDA(rounds=0),
        lambda: JBDA(step=0.0),
        lambda: DFME(batch_size=1),
        lambda: DFME(epsilon=0.0),
        lambda: DFME(loss="l2"),  # type: ignore[arg-type]
        lambda: MAZE(directions=0),
        lambda: MAZE(replay_steps=-1),
        lambda: DisGUIDE(labels="top"),  # type: ignore[arg-type]
        lambda: DisGUIDE(weight_diversity=-1.0),
    ],
)
def test_impossible_hyperparameters_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_what_an_attack_lacks_is_said(victim: Any, undefended: Any, noise: Make, fresh: Fresh) -> None:
    target, images = Target(victim, undefended, budget=10), noise(10, 1)
    options: dict[str, Any] = {"budget": 10, "seed": 0, "show_progress": False}
    with pytest.raises(InputError, match="labels"):
        Knockoff(strategy="adaptive").steal(target.ask, fresh(0), images, **options)
    for attack in (Knockoff(), JBDA()):
        with pytest.raises(InputError, match="8-bit"):
            attack.steal(target.ask, fresh(0), images / 255, **options)
        with pytest.raises(InputError, match="8-bit"):
            attack.steal(target.ask, fresh(0), images[:0], **options)
    with pytest.raises(InputError, match="Ensemble"):
        DisGUIDE().steal(target.ask, fresh(0), SHAPE, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="objective"):
        train_clone(fresh(0), TransferSet(images, np.eye(4)[:1].repeat(10, 0)), objective="hard", seed=0)  # type: ignore[arg-type]
    assert target.spent == 0
