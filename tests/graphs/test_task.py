"""Who is updated in a step, in which order students learn, and what is kept of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from golden.graph_networks import PLAIN_FABRIC
from graphs.online.graph_method_case import STUDENTS, batch, students
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.online._method import Method
from stillroom.graphs.online.alignahead import Alignahead, alignahead_loss
from stillroom.graphs.online.alignahead_pp import AlignaheadPP
from stillroom.graphs.online.dml import DML
from stillroom.graphs.online.independent import Independent
from stillroom.graphs.online.oad import OAD
from stillroom.graphs.online.one import ONE
from stillroom.graphs.task import GroupTask, InTurns, ask
from stillroom.training.fabric import make_fabric
from stillroom.training.recipe import Recipe, make_optimizer

Named = dict[str, Tensor]


def task_of(method: Method, *, shared: bool = False, epochs: int = 3) -> GroupTask:
    torch.manual_seed(0)
    task = GroupTask(students(shared=shared), method, batch(), epochs=epochs).train()
    task.start_epoch(1)
    return task


def recipe(**options: Any) -> Recipe:
    return Recipe(**({"epochs": 1, "optimizer": "adam", "lr": 0.01, "weight_decay": 0.1} | options))


def optimizer_of(task: GroupTask, how: Recipe, *, fused: bool = False) -> torch.optim.Optimizer:
    return make_optimizer(how, task.parameters(), undecayed=list(task.method.adversaries()), fused=fused)


def weights(task: GroupTask) -> Named:
    return {name: value.detach().clone() for name, value in task.named_parameters()}


def moved(before: Named, after: Named) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def names(task: GroupTask, *prefixes: str) -> set[str]:
    return {name for name, _ in task.named_parameters() if name.startswith(prefixes)}


class Numbered:
    """Batches whose features say epoch and step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        for step in range(start, self.steps):
            yield batch()._replace(x=torch.tensor([number, step]))


def visits(loader: InTurns, epoch: int, start: int = 0) -> list[tuple[int, int, int | None]]:
    return [(int(each.x[0]), int(each.x[1]), each.turn) for each in loader.epoch(epoch, start)]


@settings(deadline=None)
@given(steps=st.integers(1, 4), count=st.integers(1, 4), epoch=st.integers(1, 3))
def test_one_student_after_the_other_passes_over_all_batches(steps: int, count: int, epoch: int) -> None:
    loader = InTurns(Numbered(steps), count)
    found = visits(loader, epoch)
    assert len(loader) == len(found) == steps * count
    assert [turn for _, _, turn in found] == [turn for turn in range(count) for _ in range(steps)]
    assert [step for _, step, _ in found] == list(range(steps)) * count
    # No two passes, of whatever student and epoch, have the same number and with it the same order.
    passes = [number for e in range(1, epoch + 1) for number, step, _ in visits(loader, e) if step == 0]
    assert passes == list(range(1, epoch * count + 1))
    for start in range(len(loader) + 1):
        assert visits(loader, epoch, start) == found[start:]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_step_of_one_student_leaves_the_others_weights_and_their_decay_alone(optimizer: Any, fused: bool) -> None:
    task, how = task_of(AlignaheadPP()), recipe(optimizer=optimizer)
    rule = optimizer_of(task, how, fused=fused)
    for turn in (0, 1, 2, 0):
        before = weights(task)
        task.step(task, rule, batch(turn=turn), PLAIN_FABRIC, how)
        assert moved(before, weights(task)) == names(task, f"students.{turn}.", f"method.aux.{turn}.")
    assert all(parameter.grad is None for parameter in task.parameters())


def test_a_step_of_all_moves_all_students() -> None:
    task, how = task_of(DML()), recipe()
    before = weights(task)
    task.step(task, optimizer_of(task, how), batch(), PLAIN_FABRIC, how)
    assert moved(before, weights(task)) == names(task, "students.")


def test_the_second_student_sees_the_first_as_it_is_after_its_turn() -> None:
    task, how = task_of(Alignahead()), recipe(lr=0.1)
    rule = optimizer_of(task, how)
    untouched = copy.deepcopy(task)
    task.step(task, rule, batch(turn=0), PLAIN_FABRIC, how)
    with torch.no_grad():
        said, old = ([each(batch().x, batch().edge_index)[1] for each in t.students] for t in (task, untouched))
        expected, stale = (alignahead_loss(each[1], [each[0], each[2]], batch().edge_index) for each in (said, old))
    parts = task.step(task, rule, batch(turn=1), PLAIN_FABRIC, how)
    torch.testing.assert_close(parts["structure"], expected)
    assert not torch.allclose(expected, stale, rtol=1e-4)


def test_those_whose_turn_it_is_not_answer_without_graph_in_the_mode_they_are_in() -> None:
    task = task_of(Alignahead())
    said = task.say(batch(turn=1))
    assert [each.logits.requires_grad for each in said] == [False, True, False]
    assert all(student.training for student in task.students)
    assert all(each.logits.requires_grad for each in task.say(batch()))
    with torch.no_grad():
        assert not any(each.logits.requires_grad for each in task.say(batch(turn=1)))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_adversaries_step_first_and_alone(optimizer: Any, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task, how = task_of(OAD()), recipe(optimizer=optimizer)
    rule = optimizer_of(task, how, fused=fused)
    stages, step = [weights(task)], rule.step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        found = step(*args, **kwargs)
        stages.append(weights(task))
        return found

    monkeypatch.setattr(rule, "step", recorded)
    parts = task.step(task, rule, batch(), PLAIN_FABRIC, how)
    first, second, third = stages
    assert moved(first, second) == names(task, "method.discriminators.")
    assert moved(second, third) == names(task, "students.")
    # The students' loss is that of the discriminators after their step.
    before, after = task_of(OAD()), task_of(OAD())
    after.load_state_dict(before.state_dict() | second)
    value, stale = (float(each(batch())["adversarial"]) for each in (after, before))
    assert float(parts["adversarial"]) == pytest.approx(value, rel=1e-6)
    assert value != pytest.approx(stale, rel=1e-6)
    assert not parts["discriminators"].requires_grad


def test_weight_decay_does_not_reach_the_adversaries() -> None:
    found = []
    for decay in (0.0, 0.5):
        task, how = task_of(OAD()), recipe(weight_decay=decay, optimizer="sgd")
        task.step(task, optimizer_of(task, how), batch(), PLAIN_FABRIC, how)
        found.append(weights(task))
    # Biases begin at 0, of which nothing decays.
    assert moved(*found) == {name for name in names(task, "students.") if not name.endswith("bias")}


def test_adversaries_rest_in_the_warm_up() -> None:
    task, how = task_of(OAD(warmup_epochs=1)), recipe()
    rule, before = optimizer_of(task, how), weights(task)
    parts = task.step(task, rule, batch(), PLAIN_FABRIC, how)
    assert "discriminators" not in parts
    assert moved(before, weights(task)) == names(task, "students.")
    task.start_epoch(2)
    assert "discriminators" in task.step(task, rule, batch(), PLAIN_FABRIC, how)


def test_both_updates_of_a_step_are_clipped() -> None:
    task, how = (
        task_of(OAD(d_weight=1e3)),
        recipe(optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.01),
    )
    fabric = make_fabric("cpu")
    model, rule = fabric.setup(task, optimizer_of(task, how))
    before = weights(task)
    task.step(model, rule, batch(), fabric, how)
    after = weights(task)
    for part in ("students.", "method.discriminators."):
        change = torch.cat([(after[name] - before[name]).flatten() for name in sorted(names(task, part))])
        assert float(change.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("make", [OAD, Alignahead])
def test_a_step_in_bfloat16_is_close_to_that_in_single_precision(make: Any) -> None:
    found = []
    for precision in ("32", "bf16-mixed"):
        task, how, fabric = task_of(make()), recipe(), make_fabric("cpu", precision)  # type: ignore[arg-type]
        model, rule = fabric.setup(task, optimizer_of(task, how))
        parts = task.step(model, rule, batch(turn=0 if make is Alignahead else None), fabric, how)
        found.append({name: value.item() for name, value in parts.items()})
        assert all(parameter.dtype is torch.float32 for parameter in task.parameters())
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=0.05, abs=0.02), name


def test_a_common_first_layer_is_trained_once() -> None:
    task, how = task_of(ONE(), shared=True), recipe()
    first = task.students[0].layers[0]  # type: ignore[index, union-attr]
    assert all(each.layers[0] is first for each in task.students)  # type: ignore[index, union-attr]
    rule = optimizer_of(task, how)
    trained = [id(parameter) for group in rule.param_groups for parameter in group["params"]]
    assert len(trained) == len(set(trained))
    assert trained.count(id(first.lin.weight)) == 1  # type: ignore[union-attr]
    assert len(trained) == 2 * (1 + 2 * STUDENTS) + len(list(task.method.parameters()))
    task.step(task, rule, batch(), PLAIN_FABRIC, how)
    assert all(each.layers[0] is first for each in task.students)  # type: ignore[index, union-attr]


def test_the_best_are_not_trained_and_do_not_move_with_the_students() -> None:
    task, how = task_of(Independent()), recipe()
    assert not any(parameter.requires_grad for parameter in task.best.parameters())
    task.keep_best([1.0] * STUDENTS, [1.0] * STUDENTS)
    kept = copy.deepcopy(task.best.state_dict())
    task.step(task, optimizer_of(task, how), batch(), PLAIN_FABRIC, how)
    torch.testing.assert_close(task.best.state_dict(), kept, rtol=0, atol=0)
    assert moved(dict(task.best.named_parameters()), dict(task.students.named_parameters()))


# 81.2 and 81.3 are not numbers of float32: they lie on both sides of their neighbours there.
@pytest.mark.parametrize("score", [50.0, 81.2, 81.3])
def test_the_higher_score_is_kept_and_of_equal_ones_the_lower_loss(score: float) -> None:
    task = task_of(Independent())
    history = [
        # epoch, scores, losses -> epochs that are then the best
        (1, (score, score, 0.0), (1.0, 1.0, 1.0), [1, 1, 1]),
        (2, (score, score - 1, 0.0), (1.0, 0.1, 0.9), [1, 1, 2]),
        (3, (score, score + 1, 0.0), (1.1, 9.0, 0.9), [1, 3, 2]),
        (4, (score, score + 1, 0.0), (0.7, 9.0, 0.8), [4, 3, 4]),
        (5, (float("nan"), score + 1, 0.0), (0.0, 8.9, 1.0), [4, 5, 4]),
    ]
    states: dict[int, list[Named]] = {}
    for epoch, scores, losses, best in history:
        task.start_epoch(epoch)
        with torch.no_grad():
            for m, student in enumerate(task.students):
                for parameter in student.parameters():
                    parameter.fill_(10 * m + epoch)
        states[epoch] = [copy.deepcopy(each.state_dict()) for each in task.students]
        task.keep_best(scores, losses)
        assert task.best_epoch.tolist() == best
        for m, kept in enumerate(task.best):
            torch.testing.assert_close(kept.state_dict(), states[best[m]][m], rtol=0, atol=0)
    assert task.best_score.tolist() == pytest.approx([score, score + 1, 0.0])


def test_what_was_best_is_part_of_the_state() -> None:
    first, second = task_of(Independent()), task_of(Independent())
    first.start_epoch(2)
    first.keep_best([3.0, 2.0, 1.0], [1.0, 1.0, 1.0])
    second.load_state_dict(first.state_dict())
    second.start_epoch(3)
    second.keep_best([2.0, 2.0, 2.0], [0.5, 0.5, 2.0])
    assert second.best_epoch.tolist() == [2, 3, 3]


class Fixed(nn.Module):
    """A student that answers one thing."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.answer


LOGITS, HIDDEN = torch.zeros(12, 3), torch.zeros(12, 5)


@pytest.mark.parametrize(
    "answer",
    [
        LOGITS,
        (LOGITS,),
        (LOGITS, HIDDEN, HIDDEN),
        [LOGITS, (HIDDEN,)],
        (LOGITS, HIDDEN),
        (LOGITS, (HIDDEN, None)),
        ([0.0], (HIDDEN,)),
        None,
    ],
    ids=["logits", "one", "three", "list", "bare hidden", "none among hidden", "numbers", "nothing"],
)
def test_a_student_that_answers_something_else_is_refused(answer: Any) -> None:
    with pytest.raises(InputError, match=r"must return \(logits, hidden layers\).*; Fixed returned a ") as caught:
        ask(Fixed(answer), batch().x, batch().edge_index)
    assert "\n" not in str(caught.value)


def test_any_sequence_of_hidden_layers_and_no_activation_is_taken() -> None:
    for hidden in ((HIDDEN, HIDDEN), [HIDDEN, HIDDEN], ()):
        said = ask(Fixed((LOGITS, hidden)), batch().x, batch().edge_index)
        assert isinstance(said.hidden, tuple)
        assert len(said.hidden) == len(hidden)
        assert said.activate(-HIDDEN - 1) is not None
        torch.testing.assert_close(said.activate(HIDDEN - 1), HIDDEN - 1)
    elu = GNN(4, 3, GNNOptions(conv="gat", layers=1, width=2))
    torch.testing.assert_close(
        ask(elu, batch().x, batch().edge_index).activate(HIDDEN - 1), nn.functional.elu(HIDDEN - 1)
    )


def test_building_a_task_leaves_the_students_statistics_and_modes_alone() -> None:
    made = [GNN(4, 3, GNNOptions(conv="gin", layers=1, width=4)).train() for _ in range(2)]
    made[1].layers[0].eval()
    before = copy.deepcopy([each.state_dict() for each in made])
    modes = [module.training for each in made for module in each.modules()]
    GroupTask(made, DML(), batch(), epochs=1)
    assert [module.training for each in made for module in each.modules()] == modes
    for each, state in zip(made, before, strict=True):
        torch.testing.assert_close(each.state_dict(), state, rtol=0, atol=0)
