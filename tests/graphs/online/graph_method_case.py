"""The contract every method for groups of graph networks keeps; the test of a method inherits it.

A method's test is a subclass whose name starts with ``Test``, see ``test_methods.py``. What the students said are
leaves, so a gradient shows where it went.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.method_inputs import HostReads
from golden.graph_networks import PLAIN_FABRIC
from stillroom.cards import Standing
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.networks import GNN, GNNOptions
from stillroom.graphs.online._method import Method, Output
from stillroom.graphs.task import GroupTask
from stillroom.hyperparameters import method_defaults, method_options
from stillroom.training.recipe import Recipe, make_optimizer

STUDENTS, NODES, CLASSES, WIDTH = 3, 12, 3, 5


def edges() -> Tensor:
    """A ring with chords and self loops; node 10 has no edge into it, node 11 none at all, one edge is there twice."""
    ring = torch.arange(9)
    ahead, chords = torch.stack([ring, (ring + 1) % 9]), torch.tensor([[0, 2, 4], [4, 7, 8]])
    loops = torch.arange(10).expand(2, 10)
    rest = torch.tensor([[10, 0], [0, 1]])
    return torch.cat([ahead, ahead.flip(0), chords, chords.flip(0), loops, rest], dim=1)


def batch(*, multilabel: bool = False, turn: int | None = None, edge_index: Tensor | None = None) -> NodeBatch:
    generator = torch.Generator().manual_seed(5)
    target: Tensor = torch.arange(NODES) % CLASSES
    if multilabel:
        target = (torch.rand(NODES, CLASSES, generator=generator) > 0.5).float()
    return NodeBatch(
        x=torch.randn(NODES, 4, generator=generator),
        edge_index=edges() if edge_index is None else edge_index,
        target=target,
        labelled=torch.tensor([0, 2, 3, 5, 9, 11]),
        turn=turn,
    )


def outputs(
    seed: int = 0, widths: Sequence[Sequence[int]] = ((WIDTH, WIDTH),) * STUDENTS, classes: int = CLASSES
) -> list[Output]:
    """What students said, one tuple of widths a student."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(width: int, scale: float) -> Tensor:
        return (scale * torch.randn(NODES, width, generator=generator)).requires_grad_()

    return [Output(leaf(classes, 1.0), tuple(leaf(width, 20.0) for width in each), F.relu) for each in widths]


def changed(said: Sequence[Output], change: Callable[[Tensor], Tensor]) -> list[Output]:
    """Apply ``change`` to everything said and make the results leaves."""

    def leaf(value: Tensor) -> Tensor:
        return change(value.detach()).detach().requires_grad_()

    return [Output(leaf(each.logits), tuple(map(leaf, each.hidden)), each.activate) for each in said]


def leaves(output: Output) -> dict[str, Tensor]:
    return {"logits": output.logits} | {f"hidden.{layer}": each for layer, each in enumerate(output.hidden)}


@contextmanager
def refused(match: str) -> Iterator[None]:
    """An InputError whose message is one line."""
    with pytest.raises(InputError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


class GraphMethodCase:
    """What holds for every method; see the module's text."""

    reached: ClassVar[frozenset[str]] = frozenset({"logits"})  # what of a student that learns has a gradient
    bad_arguments: ClassVar[tuple[dict[str, Any], ...]] = ()  # constructor calls that must be refused
    refuses_several_labels: ClassVar[bool] = False
    refuses_unequal_depths: ClassVar[bool] = True
    refuses_unequal_widths: ClassVar[bool] = False

    def make(self) -> Method:
        """Return a fresh method with the hyperparameters to test."""
        raise NotImplementedError(f"{type(self).__name__} must define make")

    def reached_of(self, student: int) -> frozenset[str]:
        return self.reached

    def trained_by(self, method: Method, turn: int | None) -> set[str]:
        """The method's own parameters that have a gradient after a step of one student, or of all."""
        adversaries = {id(parameter) for parameter in method.adversaries()}
        return {name for name, parameter in method.named_parameters() if id(parameter) not in adversaries}

    def built(self, said: Sequence[Output] | None = None, *, multilabel: bool = False, seed: int = 0) -> Method:
        torch.manual_seed(seed)
        method = self.make()
        method.build(outputs() if said is None else said, multilabel=multilabel)
        method.start_epoch(2, 4)
        return method.train()

    def turns(self) -> list[int | None]:
        return list(range(STUDENTS)) if self.make().in_turns else [None]

    def losses(self, method: Method, said: Sequence[Output], batch: NodeBatch) -> Tensor:
        """The losses of all turns, and of the adversaries if there are any."""
        found = [method(said, batch._replace(turn=turn))["loss"] for turn in self.turns()]
        adversary = method.adversary_loss(said, batch)
        return torch.stack(found if adversary is None else [*found, adversary])

    def value_and_gradients(
        self, method: Method, said: Sequence[Output], batch: NodeBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.losses(method, said, batch)
        losses.sum().backward()
        gradients = {
            f"{m}.{name}": value.grad
            for m, each in enumerate(said)
            for name, value in leaves(each).items()
            if value.grad is not None
        }
        own = {name: value.grad for name, value in method.named_parameters() if value.grad is not None}
        return losses.detach(), gradients | own

    def check_finite(self, method: Method, said: Sequence[Output], batch: NodeBatch) -> None:
        values, gradients = self.value_and_gradients(method, said, batch)
        assert values.dtype is torch.float32
        assert torch.isfinite(values).all(), values
        assert gradients
        wrong = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
        assert not wrong, f"the gradients of {wrong} are not finite"

    def test_the_card_is_complete(self) -> None:
        card = self.make().card
        assert card.name == card.name.lower()
        assert card.summary.strip().endswith(".")
        assert card.standing in get_args(Standing)
        assert all(paper.title and paper.authors and paper.venue and paper.identifier for paper in card.papers)
        assert card.papers
        assert all(quirk.paper and quirk.code for quirk in card.ledger)

    def test_hyperparameters_are_keyword_only_typed_defaulted_documented_and_shown(self) -> None:
        kind = type(self.make())
        parameters = inspect.signature(kind).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        for parameter in named:
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter
            assert parameter.annotation is not parameter.empty, parameter
            assert parameter.default is not parameter.empty, parameter
            assert f"{parameter.name}:" in (kind.__doc__ or ""), f"{parameter.name} is not described under Args"
            assert f"{parameter.name}=" in repr(self.make())
        assert type(self.make()).__name__ in repr(self.built())

    def test_it_remembers_its_options(self) -> None:
        kind = type(self.make())
        assert method_options(kind()) == method_defaults(kind)

    def test_the_constructor_refuses_bad_values_by_name(self) -> None:
        kind = type(self.make())
        assert self.bad_arguments or not method_defaults(kind), "name some bad_arguments"
        for arguments in self.bad_arguments:
            with refused(f"^{next(iter(arguments))} "):
                kind(**arguments)

    def test_forward_returns_a_loss_and_detached_scalar_parts(self) -> None:
        for turn in self.turns():
            parts = self.built()(outputs(), batch(turn=turn))
            assert parts["loss"].requires_grad
            assert {name: part.shape for name, part in parts.items()} == dict.fromkeys(parts, torch.Size())
            assert not [name for name, part in parts.items() if name != "loss" and part.requires_grad]

    def test_gradient_reaches_those_that_learn_and_nobody_else(self) -> None:
        for turn in self.turns():
            method, said = self.built(), outputs()
            method(said, batch(turn=turn))["loss"].backward()
            for m, each in enumerate(said):
                got = {n for n, value in leaves(each).items() if value.grad is not None and value.grad.any()}
                assert got == (self.reached_of(m) if turn in (None, m) else frozenset()), (turn, m)
            own = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
            assert own == self.trained_by(method, turn), turn

    def test_the_adversaries_learn_without_the_students(self) -> None:
        method, said = self.built(), outputs()
        loss = method.adversary_loss(said, batch(turn=self.turns()[0]))
        adversaries = {id(parameter) for parameter in method.adversaries()}
        assert (loss is None) == (not adversaries)
        if loss is None:
            return
        loss.backward()
        assert not [value for each in said for value in leaves(each).values() if value.grad is not None]
        assert {id(p) for p in method.parameters() if p.grad is not None} == adversaries

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("kind", ["large", "equal", "zero"])
    def test_value_and_gradient_are_finite_at_extreme_inputs(self, kind: str, dtype: torch.dtype) -> None:
        change = {
            "large": lambda value: 1e4 * value.sign() * value.abs().clamp(0.1, 1),
            "equal": lambda value: torch.full_like(value, 1e4),
            "zero": torch.zeros_like,
        }[kind]
        said = changed(outputs(), lambda value: change(value).to(dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            self.check_finite(self.built(), said, batch())

    def test_a_graph_without_edges_is_finite(self) -> None:
        self.check_finite(self.built(), outputs(), batch(edge_index=torch.zeros(2, 0, dtype=torch.int64)))

    def test_a_batch_without_labelled_nodes_is_refused(self) -> None:
        with refused("labelled node"):
            self.losses(self.built(), outputs(), batch()._replace(labelled=torch.zeros(0, dtype=torch.int64)))

    def test_the_names_of_the_nodes_do_not_matter(self) -> None:
        generator = torch.Generator().manual_seed(7)
        order = torch.randperm(NODES, generator=generator)
        place = order.argsort()
        complete = torch.rand(NODES, generator=generator) > 0.3
        plain = batch()._replace(complete=complete)
        renamed = plain._replace(
            x=plain.x[order],
            edge_index=place[plain.edge_index],
            target=plain.target[order],
            labelled=place[plain.labelled],
            complete=complete[order],
        )
        expected, gradients = self.value_and_gradients(self.built(), outputs(), plain)
        value, renamed_gradients = self.value_and_gradients(
            self.built(), changed(outputs(), lambda each: each[order]), renamed
        )
        torch.testing.assert_close(value, expected)
        for name, gradient in gradients.items():
            wanted = gradient[order] if name[0].isdigit() else gradient
            torch.testing.assert_close(renamed_gradients[name], wanted, rtol=1e-4, atol=1e-6, msg=name)

    def test_the_order_of_the_edges_does_not_matter(self) -> None:
        order = torch.randperm(edges().shape[1], generator=torch.Generator().manual_seed(8))
        expected, _ = self.value_and_gradients(self.built(), outputs(), batch())
        value, _ = self.value_and_gradients(self.built(), outputs(), batch(edge_index=edges()[:, order]))
        torch.testing.assert_close(value, expected)

    def test_several_labels_a_node_work_or_are_refused(self) -> None:
        if self.refuses_several_labels:
            with refused("several labels"):
                self.built(multilabel=True)
            return
        self.check_finite(self.built(multilabel=True), outputs(), batch(multilabel=True))

    def test_students_that_do_not_fit_are_refused(self) -> None:
        narrow, wide = (WIDTH, WIDTH), (WIDTH, WIDTH + 1)
        for refuses, match, widths in (
            (self.refuses_unequal_depths, "have 2, 1$", (narrow, narrow[:1])),
            (self.refuses_unequal_depths, "students have none", ((), ())),
            (self.refuses_unequal_widths, "which must", (narrow, wide)),
        ):
            said = outputs(widths=widths)
            if refuses:
                with refused(match):
                    self.built(said)
            else:
                self.built(said)(said, batch(turn=0 if self.make().in_turns else None))["loss"].backward()

    def test_too_few_students_and_unequal_classes_are_refused(self) -> None:
        method, sample = self.make(), batch()
        with refused(f"{method.card.name} needs at least {method.fewest} students, not {method.fewest - 1}"):
            GroupTask(students(method.fewest - 1), method, sample, epochs=1)
        with refused(r"logits of one shape, not \[12, 3\], \[12, 4\]"):
            GroupTask([*students(1), *students(1, classes=4)], method, sample, epochs=1)

    def test_a_batch_of_nobodys_turn_is_refused_where_students_learn_in_turns(self) -> None:
        if not self.make().in_turns:
            return
        for turn in (None, -1, STUDENTS):
            with refused("turn must be 0 to 2"):
                self.built()(outputs(), batch(turn=turn))

    def test_nothing_is_read_on_the_host(self) -> None:
        method, said, given = self.built(), outputs(), batch()._replace(complete=torch.arange(NODES) > 2)
        with HostReads() as reads:
            self.losses(method, said, given).sum().backward()
        assert not reads.found, f"the step waits for the device in {sorted(set(reads.found))}"

    def test_a_saved_and_loaded_method_continues_with_the_same_loss(self) -> None:
        first = self.built(seed=0)
        self.losses(first, outputs(seed=1), batch())  # statistics move before the save
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = self.built(seed=1)
        second.load_state_dict(torch.load(file, weights_only=True))
        expected, value = (self.losses(method, outputs(), batch()) for method in (first, second))
        torch.testing.assert_close(value, expected, rtol=0, atol=0)

    def test_thirty_steps_on_a_fixed_graph_reduce_the_loss(self) -> None:
        torch.manual_seed(0)
        method, given = self.make(), batch()
        task = GroupTask(students(shared=method.shares_first_layer), method, given, epochs=1).train()
        recipe = Recipe(epochs=1, optimizer="adam", lr=0.02, weight_decay=0.0)
        optimizer = make_optimizer(recipe, task.parameters(), undecayed=list(method.adversaries()))
        task.start_epoch(1)
        losses = [
            sum(
                task.step(task, optimizer, given._replace(turn=turn), PLAIN_FABRIC, recipe)["loss"].item()
                for turn in self.turns()
            )
            for _ in range(30)
        ]
        assert losses[-1] < 0.9 * losses[0], losses


def students(count: int = STUDENTS, *, classes: int = CLASSES, shared: bool = False) -> list[nn.Module]:
    """Small networks for the features of :func:`batch`."""
    made = [GNN(4, classes, GNNOptions(layers=2, width=WIDTH, dropout=0.0)) for _ in range(count)]
    if shared:
        for each in made[1:]:
            each.layers[0] = made[0].layers[0]
    return list(made)
