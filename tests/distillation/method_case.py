"""The contract every offline distillation method keeps; the test of a method inherits it.

A method's test is a subclass whose name starts with ``Test``::

    from distillation.method_case import MethodCase

    class TestKD(MethodCase):
        trains_on = frozenset({"logits"})
        bad_arguments = ({"temperature": 0.0},)

        def make(self) -> Method:
            return KD(temperature=4.0)

A check that the mathematics of a method rules out is switched off by stating the reason in one of the ``*_because``
attributes. Another pair of networks is another subclass with other shapes.
"""

from __future__ import annotations

import inspect
import io
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn

from distillation.method_inputs import HostReads, Inputs, Map, SignalName, channels_last, each, strided, tensors
from stillroom.cards import Card, Standing
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import Convention, DryRun, Method, Weights
from stillroom.errors import InputError
from stillroom.models.signals import Signals


class MethodCase:
    """What holds for every method; see the module's text."""

    # The pair. The pooled vector is the mean of the last map, so its width is the last map's channels.
    batch_size: ClassVar[int] = 8
    num_classes: ClassVar[int] = 10
    train_size: ClassVar[int] = 40
    student_stages: ClassVar[tuple[Map, ...]] = ((8, 8, 8), (16, 4, 4), (32, 2, 2))
    teacher_stages: ClassVar[tuple[Map, ...]] = ((16, 8, 8), (32, 4, 4), (64, 2, 2))

    # What the method claims.
    trains_on: ClassVar[frozenset[SignalName]] = frozenset({"logits"})  # student signals its gradient reaches
    bad_arguments: ClassVar[tuple[dict[str, Any], ...]] = ()  # constructor calls that must be refused
    toy_learning_rate: ClassVar[float] = 0.02

    # Reasons to leave a check out; empty = it applies.
    batch_of_one_refused_because: ClassVar[str] = ""  # then one sample must raise InputError
    order_matters_because: ClassVar[str] = ""
    not_compiled_because: ClassVar[str] = ""

    def make(self) -> Method:
        """Return a fresh method with the hyperparameters to test (small where the paper's are large)."""
        raise NotImplementedError(f"{type(self).__name__} must define make")

    def signals(self, shapes: tuple[Map, ...], size: int, seed: int, classifier: nn.Linear) -> Signals:
        """Return signals that agree with each other: stage = ReLU(preact), pooled = its mean, logits = W·pooled + b."""
        generator = torch.Generator().manual_seed(seed)
        wanted = self.make().signals
        preact = []
        for channels, height, width in shapes:
            offset = 2.0 * torch.randn(size, channels, 1, 1, generator=generator)
            preact.append(offset + torch.randn(size, channels, height, width, generator=generator))
        stages = [torch.relu(value) for value in preact]
        pooled = stages[-1].mean(dim=(2, 3))
        with torch.no_grad():
            logits = classifier(pooled)
        everything = Signals(
            logits=logits,
            stages=tuple(stages) if "stages" in wanted else (),
            preact=tuple(preact) if "preact" in wanted else (),
            pooled=pooled if "pooled" in wanted else None,
        )
        return each(everything, lambda value: value)

    def classifier(self, shapes: tuple[Map, ...], seed: int) -> nn.Linear:
        layer = nn.Linear(shapes[-1][0], self.num_classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            layer.weight.copy_(0.5 * torch.randn(layer.weight.shape, generator=generator))
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
        return layer

    def train_target(self) -> Tensor:
        return torch.arange(self.train_size) % self.num_classes

    def inputs(self, size: int | None = None, seed: int = 0) -> Inputs:
        size = self.batch_size if size is None else size
        index = torch.randperm(self.train_size, generator=torch.Generator().manual_seed(seed))[:size]
        return Inputs(
            student=self.signals(self.student_stages, size, seed + 1, self.classifier(self.student_stages, seed=11)),
            teacher=self.signals(self.teacher_stages, size, seed + 2, self.classifier(self.teacher_stages, seed=12)),
            batch=Batch(images=torch.zeros(size, 3, 8, 8), target=self.train_target()[index], index=index),
        )

    def extreme(self, gap: float, dtype: torch.dtype) -> Inputs:
        """Logits that span ``gap`` with the networks in disagreement; features of that magnitude."""
        plain = self.inputs()

        def spread(logits: Tensor) -> Tensor:
            low, high = logits.amin(dim=1, keepdim=True), logits.amax(dim=1, keepdim=True)
            return gap * (logits - low) / (high - low)

        def stretch(signals: Signals, logits: Tensor) -> Signals:
            stretched = signals._replace(logits=logits)._asdict()
            for name in ("stages", "preact"):
                stretched[name] = tuple(gap * value for value in stretched[name])
            if signals.pooled is not None:
                stretched["pooled"] = gap * signals.pooled
            return each(Signals(**stretched), lambda value: value.to(dtype))

        logits = spread(plain.teacher.logits.detach())
        return Inputs(stretch(plain.student, -logits), stretch(plain.teacher, logits), plain.batch)

    def dry_run(self, size: int | None = None) -> DryRun:
        sample = self.inputs(size, seed=100)
        with torch.no_grad():
            student, teacher = each(sample.student, torch.clone), each(sample.teacher, torch.clone)
        return DryRun(
            student=student,
            teacher=teacher,
            teacher_classifier=self.classifier(self.teacher_stages, seed=12).requires_grad_(False),
            train_target=self.train_target(),
            num_classes=self.num_classes,
            batch_size=self.batch_size if size is None else size,
            seed=0,
        )

    def built(self, size: int | None = None, seed: int = 0) -> Method:
        torch.manual_seed(seed)
        method = self.make()
        method.build(self.dry_run(size))
        return method.train()

    def value_and_gradients(self, method: Any, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(3)
        loss = method(inputs.student, inputs.teacher, inputs.batch)["loss"]
        loss.backward()
        named = tensors(inputs.student)
        return loss.detach(), {name: value.grad for name, value in named.items() if value.grad is not None}

    def check_same(self, inputs: Inputs) -> None:
        """The plain inputs and ``inputs`` give the same loss and the same student gradients."""
        expected, expected_gradients = self.value_and_gradients(self.built(), self.inputs())
        value, gradients = self.value_and_gradients(self.built(), inputs)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6, msg=name)

    def test_the_card_is_complete(self) -> None:
        card = self.make().card
        assert isinstance(card, Card)
        assert card.name == card.name.lower()
        assert card.name
        assert card.summary.strip().endswith(".")
        assert card.standing in get_args(Standing)
        assert card.papers
        for paper in card.papers:
            assert all((paper.title, paper.authors, paper.venue, paper.identifier)), paper
            assert 1990 < paper.year < 2100
        for quirk in card.ledger:
            assert quirk.paper, quirk
            assert quirk.code, quirk

    def test_both_weight_conventions_are_presets(self) -> None:
        presets = self.make().presets
        assert set(presets) == set(get_args(Convention))
        for weights in presets.values():
            assert isinstance(weights, Weights)
            assert min(weights.ce, weights.kd, weights.method) >= 0
            assert weights.method > 0

    def constructor_arguments(self) -> list[inspect.Parameter]:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(type(self.make())).parameters.values()
        return [parameter for parameter in parameters if parameter.kind not in kinds]

    def test_hyperparameters_are_keyword_only_typed_defaulted_and_documented(self) -> None:
        kind = type(self.make())
        text = f"{kind.__doc__}\n{kind.__init__.__doc__}"
        for parameter in self.constructor_arguments():
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"{parameter.name} is not keyword-only"
            assert parameter.annotation is not inspect.Parameter.empty, f"{parameter.name} has no type"
            assert parameter.default is not inspect.Parameter.empty, f"{parameter.name} has no default"
            assert f"{parameter.name}:" in text, f"{parameter.name} is not described under Args"

    def test_repr_shows_every_hyperparameter(self) -> None:
        shown = repr(self.make())
        missing = [p.name for p in self.constructor_arguments() if f"{p.name}=" not in shown]
        assert not missing, f"{missing} not in {shown}"

    def test_the_constructor_refuses_bad_values(self) -> None:
        kind = type(self.make())
        assert self.bad_arguments or not self.constructor_arguments(), "name some bad_arguments"
        for arguments in self.bad_arguments:
            with pytest.raises(InputError, match=next(iter(arguments))):
                kind(**arguments)

    def test_claimed_signals_are_requested(self) -> None:
        assert self.trains_on - {"logits"} <= self.make().signals

    def test_forward_returns_a_loss_and_detached_scalar_parts(self) -> None:
        inputs = self.inputs()
        parts = self.built()(inputs.student, inputs.teacher, inputs.batch)
        assert parts["loss"].requires_grad
        for name, part in parts.items():
            if name == "output":  # what the deployed model answers, where that is not the student's own logits
                assert part.shape == (self.batch_size, self.num_classes)
                continue
            assert part.ndim == 0, f"{name} is not a scalar"
            assert name == "loss" or not part.requires_grad, f"{name} is not detached"

    def test_predict_returns_one_row_of_logits_a_sample(self) -> None:
        method = self.built().eval()
        assert method.predict(self.inputs().student).shape == (self.batch_size, self.num_classes)

    def test_gradient_reaches_the_claimed_student_signals_and_nothing_else(self) -> None:
        inputs = self.inputs()
        _, gradients = self.value_and_gradients(self.built(), inputs)
        reached = {name.split(".")[0] for name, gradient in gradients.items() if gradient.abs().sum() > 0}
        assert reached == self.trains_on
        touched = [name for name, value in tensors(inputs.teacher).items() if value.grad is not None]
        assert not touched, f"gradient reached the teacher's {touched}"

    def test_every_trainable_parameter_takes_part(self) -> None:
        method = self.built()
        self.value_and_gradients(method, self.inputs())
        unused = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused, f"no gradient for {unused}"

    def test_the_teacher_is_left_as_it_was(self) -> None:
        torch.manual_seed(0)
        method, dry_run, inputs = self.make(), self.dry_run(), self.inputs()
        assert dry_run.teacher_classifier is not None
        classifier = {name: value.clone() for name, value in dry_run.teacher_classifier.state_dict().items()}
        said = {name: value.detach().clone() for name, value in tensors(inputs.teacher).items()}
        method.build(dry_run)
        self.value_and_gradients(method.train(), inputs)
        trained = {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
        for name, parameter in dry_run.teacher_classifier.named_parameters():
            assert parameter.grad is None, f"gradient on the teacher's classifier {name}"
            assert id(parameter) not in trained, f"the teacher's classifier {name} would be trained"
            torch.testing.assert_close(parameter.detach(), classifier[name], rtol=0, atol=0)
        for name, value in tensors(inputs.teacher).items():
            torch.testing.assert_close(value.detach(), said[name], rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    @pytest.mark.parametrize("gap", [0.0, 50.0, 1e4])
    def test_value_and_gradient_are_finite_at_extreme_inputs(self, gap: float, dtype: torch.dtype) -> None:
        inputs = self.extreme(gap, dtype)
        method = self.built()
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = method(inputs.student, inputs.teacher, inputs.batch)["loss"]
        loss.backward()
        assert loss.dtype is torch.float32
        assert torch.isfinite(loss)
        gradients = {name: value.grad for name, value in tensors(inputs.student).items() if value.grad is not None}
        gradients |= {name: value.grad for name, value in method.named_parameters() if value.grad is not None}
        assert gradients
        infinite = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
        assert not infinite, f"gradients of {infinite} are not finite"

    def test_a_batch_of_one_works_or_is_refused(self) -> None:
        inputs = self.inputs(size=1)
        if self.batch_of_one_refused_because:
            with pytest.raises(InputError):
                self.built(size=1)(inputs.student, inputs.teacher, inputs.batch)
            return
        value, gradients = self.value_and_gradients(self.built(size=1), inputs)
        assert torch.isfinite(value)
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())

    def test_the_order_of_the_samples_does_not_matter(self) -> None:
        if self.order_matters_because:
            pytest.skip(self.order_matters_because)
        plain = self.inputs()
        order = torch.randperm(self.batch_size, generator=torch.Generator().manual_seed(5))
        turned = Inputs(
            each(plain.student, lambda value: value[order]),
            each(plain.teacher, lambda value: value[order]),
            Batch(*(value[order] for value in plain.batch)),
        )
        expected, _ = self.value_and_gradients(self.built(), plain)
        value, _ = self.value_and_gradients(self.built(), turned)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("layout", [strided, channels_last])
    def test_memory_layout_does_not_matter(self, layout: Any) -> None:
        plain = self.inputs()
        # The leaves keep the strides the layout gave them: detaching does not copy.
        self.check_same(Inputs(each(plain.student, layout), each(plain.teacher, layout), plain.batch))

    def test_nothing_is_read_on_the_host(self) -> None:
        method, inputs = self.built(), self.inputs()
        with HostReads() as reads:
            method(inputs.student, inputs.teacher, inputs.batch)["loss"].backward()
        assert not reads.found, f"the step waits for the device in {sorted(set(reads.found))}"

    def test_the_step_compiles_as_one_graph_and_gives_the_eager_value(self) -> None:
        if self.not_compiled_because:
            pytest.skip(self.not_compiled_because)
        torch._dynamo.reset()
        expected, expected_gradients = self.value_and_gradients(self.built(), self.inputs())
        compiled = torch.compile(self.built(), fullgraph=True, backend="eager")
        value, gradients = self.value_and_gradients(compiled, self.inputs())
        torch.testing.assert_close(value, expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name])

    def test_a_saved_and_loaded_method_continues_with_the_same_loss(self) -> None:
        first = self.built(seed=0)
        self.value_and_gradients(first, self.inputs(seed=1))  # memories and statistics move before the save
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = self.built(seed=1)
        second.load_state_dict(torch.load(file, weights_only=True))
        expected, _ = self.value_and_gradients(first, self.inputs())
        value, _ = self.value_and_gradients(second, self.inputs())
        torch.testing.assert_close(value, expected, rtol=0, atol=0)

    def test_twenty_steps_reduce_the_loss(self) -> None:
        method, inputs = self.built(), self.inputs()
        adapters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        leaves = list(tensors(inputs.student).values())
        optimiser = torch.optim.Adam([*leaves, *adapters], lr=self.toy_learning_rate)
        losses = []
        for _ in range(21):
            optimiser.zero_grad()
            loss = method(inputs.student, inputs.teacher, inputs.batch)["loss"]
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.98 * losses[0], losses
