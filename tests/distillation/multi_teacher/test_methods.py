"""What holds for every multi-teacher method, and the details of those that read feature maps."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.method_inputs import HostReads
from stillroom.cards import Card
from stillroom.distillation.methods import FAMILIES, method_class
from stillroom.distillation.multi_teacher._method import DryRun, ManyTeachers
from stillroom.distillation.multi_teacher.camkd import CAMKD, ConfidentFeatures
from stillroom.distillation.multi_teacher.fitnet_mkd import FitNetMKD, MultiHint
from stillroom.distillation.multi_teacher.mmkd import MMKD, FeatureWeights, LogitWeights, gram_rows
from stillroom.distillation.multi_teacher.weights import confidence_weights
from stillroom.errors import InputError
from stillroom.models.signals import Signals

NAMES = sorted(FAMILIES["multi_teacher"])
SAMPLES, CLASSES = 8, 5
STUDENT = ((6, 8), (12, 4))  # channels and side of each stage
TEACHERS = (((8, 8), (10, 4)), ((8, 4), (16, 2)), ((4, 16), (9, 8)))  # of different architectures


def signals(stages: tuple[tuple[int, int], ...], seed: int, samples: int = SAMPLES) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(samples, c, s, s, generator=generator).relu().requires_grad_() for c, s in stages]
    return Signals(torch.randn(samples, CLASSES, generator=generator).requires_grad_(), stages=tuple(maps))


def target(samples: int = SAMPLES) -> Tensor:
    return torch.arange(samples) % CLASSES


def heads(teachers: list[Signals]) -> list[nn.Module]:
    torch.manual_seed(3)
    layers = [nn.Linear(teacher.stages[-1].shape[1], CLASSES) for teacher in teachers]
    return [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer).requires_grad_(False) for layer in layers]


def built(name: str, *, teachers: int = 3, samples: int = SAMPLES, **options: Any) -> tuple[ManyTeachers, Any]:
    """The method, and its inputs: student, teachers, target."""
    if name == "mmkd":
        options = {"buffer_size": 4 * samples} | options
    method: ManyTeachers = method_class(name)(**options)
    student = signals(STUDENT, 1, samples)
    masters = [signals(stages, 2 + k, samples) for k, stages in enumerate(TEACHERS[:teachers])]
    torch.manual_seed(0)
    method.build(DryRun(student=student, teachers=masters, heads=heads(masters), batch_size=samples))
    return method, (student, masters, target(samples))


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_its_card_and_options_say_what_it_is(self, name: str) -> None:
        cls = method_class(name)
        assert isinstance(cls.card, Card)
        assert cls.card.name == name
        assert cls.card.standing == "verified"
        method = cls()
        documented = set(re.findall(r"^        (\w+): ", inspect.getdoc(cls) and cls.__doc__, re.M))
        parameters = inspect.signature(cls).parameters
        assert set(parameters) == documented
        for option, parameter in parameters.items():
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert getattr(method, option) == parameter.default

    def test_gradient_reaches_student_and_adapters_and_nothing_else(self, name: str) -> None:
        method, (student, teachers, labels) = built(name)
        method(student, teachers, labels)["loss"].backward()
        assert student.logits.grad is not None
        assert student.logits.grad.abs().sum() > 0
        read = {"fitnet_mkd": {1}, "camkd": {1}, "mmkd": {1}}.get(name, set())
        assert {k for k, stage in enumerate(student.stages) if stage.grad is not None} == read
        for teacher in teachers:
            assert all(value.grad is None for value in (teacher.logits, *teacher.stages))
        for adapter, parameter in method.named_parameters():
            assert (parameter.grad is None) == ("weight." in adapter and "_weight" in adapter), adapter

    @pytest.mark.parametrize("teachers", [1, 2])
    def test_any_number_of_teachers_will_do(self, name: str, teachers: int) -> None:
        method, inputs = built(name, teachers=teachers)
        parts = method(*inputs)
        assert {f"weight_{k}" for k in range(teachers)} <= set(parts)
        assert f"weight_{teachers}" not in parts
        if teachers == 1 and name != "ebkd":
            assert parts["weight_0"] == 1

    def test_a_batch_of_one_will_do(self, name: str) -> None:
        method, inputs = built(name, samples=1)
        method(*inputs)["loss"].backward()

    def test_nothing_is_read_on_the_host(self, name: str) -> None:
        method, inputs = built(name)
        with HostReads() as reads:
            method(*inputs)["loss"].backward()
        assert not reads.found

    @pytest.mark.filterwarnings("error:Dynamo detected")
    def test_the_step_compiles_as_one_graph_and_gives_the_eager_value(self, name: str) -> None:
        torch._dynamo.reset()
        method, inputs = built(name)
        expected = method(*inputs)["loss"]
        compiled = torch.compile(method, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs)["loss"], expected)

    def test_parts_are_detached_scalars(self, name: str) -> None:
        method, inputs = built(name)
        for part, value in method(*inputs).items():
            assert value.shape == ()
            assert value.requires_grad == (part == "loss"), part

    def test_teachers_with_other_classes_are_refused(self, name: str) -> None:
        method, (student, teachers, labels) = built(name, teachers=2)
        teachers[1] = teachers[1]._replace(logits=torch.zeros(SAMPLES, CLASSES + 1))
        with pytest.raises(InputError, match="match their classes first"):
            method(student, teachers, labels)

    @pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"alpha": -1.0}])
    def test_bad_options_are_refused(self, name: str, bad: dict[str, float]) -> None:
        with pytest.raises(InputError, match=next(iter(bad))):
            method_class(name)(**bad)


def test_camkd_moves_the_student_also_through_the_feature_weights() -> None:
    student, teachers = signals(STUDENT, 1), [signals(stages, 2 + k) for k, stages in enumerate(TEACHERS)]
    maps = [teacher.stages[-1].detach() for teacher in teachers]
    features = ConfidentFeatures(12, [(m.shape[1], m.shape[-1]) for m in maps], heads(teachers))
    own = student.stages[-1]
    projected = features(own, maps, target())
    (whole,) = torch.autograd.grad(projected.loss, own, retain_graph=True)
    errors = torch.stack([(a - m).square().mean((1, 2, 3)) for a, m in zip(projected.aligned, maps, strict=True)], 1)
    (without,) = torch.autograd.grad((projected.weights.detach() * errors).sum(1).mean() / 3, own)
    assert (whole - without).abs().max() > 1e-7


def test_camkd_resizes_the_original_map_for_every_teacher() -> None:
    student, teachers = signals(STUDENT, 1), [signals(stages, 2 + k) for k, stages in enumerate(TEACHERS)]
    own, maps = student.stages[-1], [teacher.stages[-1].detach() for teacher in teachers]
    features = ConfidentFeatures(12, [(m.shape[1], m.shape[-1]) for m in maps], heads(teachers))
    aligned = features(own, maps, target()).aligned
    wanted = [own, F.adaptive_avg_pool2d(own, 2), F.interpolate(own, size=(8, 8), mode="bilinear")]
    for embed, resized, found in zip(features.embed, wanted, aligned, strict=True):
        torch.testing.assert_close(found, embed(resized))


def test_camkd_has_no_feature_term_in_the_first_epoch() -> None:
    method, inputs = built("camkd")
    method.start_epoch(1)
    parts = method(*inputs)
    assert "feature" not in parts
    torch.testing.assert_close(parts["loss"], parts["cross_entropy"] + parts["kd"])
    assert method.notes(1)
    assert not method.notes(2)
    method.start_epoch(2)
    assert "feature" in method(*inputs)


def test_camkds_heads_stay_frozen_and_out_of_its_state() -> None:
    method, inputs = built("camkd")
    assert isinstance(method, CAMKD)
    before = [copy.deepcopy(head.state_dict()) for head in method.features.heads]
    assert not any("head" in name for name in method.state_dict())
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    method(*inputs)["loss"].backward()
    optimizer.step()
    for head, state in zip(method.features.heads, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())


def test_camkd_without_heads_is_refused() -> None:
    student, teacher = signals(STUDENT, 1), signals(TEACHERS[0], 2)
    with pytest.raises(InputError, match="not every teacher came with one"):
        CAMKD().build(DryRun(student=student, teachers=[teacher], heads=[None], batch_size=SAMPLES))


@pytest.mark.parametrize("size", [2, 4, 5, 8, 16, 32])
def test_a_hint_meets_teachers_of_every_size(size: int) -> None:
    own = torch.randn(2, 3, 8, 8, requires_grad=True)
    teacher = torch.randn(2, 6, size, size)
    hint = MultiHint(own, [teacher])
    errors = hint(own, [teacher])
    assert errors.shape == (2, 1)
    errors.mean().backward()
    assert own.grad is not None
    assert own.grad.abs().sum() > 0


def test_the_hint_of_a_network_with_one_stage_is_its_only_one() -> None:
    method = FitNetMKD()
    student, teachers = signals(STUDENT[:1], 1), [signals(TEACHERS[0], 2), signals(TEACHERS[1][:1], 3)]
    method.build(DryRun(student=student, teachers=teachers, heads=[None, None], batch_size=SAMPLES))
    assert method.notes(1) == ("No second stage in student, teacher 2: the hint is taken from the only one there.",)
    method(student, teachers, target())["loss"].backward()


def test_mmkds_feature_weights_refuse_another_batch_size() -> None:
    net = FeatureWeights(4, 2)
    maps = [torch.randn(3, 5, 2, 2)] * 2
    with pytest.raises(InputError, match="made for batches of 4, not 3"):
        net(torch.randn(3, 2, 2, 2), maps)


def test_normalised_similarities_do_not_depend_on_the_size_of_the_map() -> None:
    small = torch.randn(3, 4, 2, 2)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(gram_rows(large, normalize=True), gram_rows(small, normalize=True))
    torch.testing.assert_close(gram_rows(large), 4 * gram_rows(small))


def test_mmkds_weight_networks_send_nothing_to_the_student() -> None:
    student, teachers = signals(STUDENT, 1), [signals(stages, 2 + k) for k, stages in enumerate(TEACHERS)]
    by_logits = LogitWeights(CLASSES, 3)(student.logits, [teacher.logits for teacher in teachers])
    by_maps = FeatureWeights(SAMPLES, 3)(student.stages[-1], [teacher.stages[-1] for teacher in teachers])
    (by_logits[:, 0] + by_maps[:, 0]).sum().backward()
    assert student.logits.grad is None
    assert student.stages[-1].grad is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"meta_freq": 0}, "meta_freq is 0"),
        ({"inner_steps": 0}, "inner_steps is 0"),
        ({"meta_lr": 0.0}, "meta_lr must be"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0"),
    ],
)
def test_mmkd_refuses_bad_options(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MMKD(**bad)


def test_mmkd_refuses_a_buffer_that_holds_no_whole_batches() -> None:
    with pytest.raises(InputError, match=r"buffer_size is 30; it must be a multiple of recipe.batch_size, 8"):
        built("mmkd", buffer_size=30)


def test_a_wrong_teacher_counts_less_than_a_right_one_only_under_methods_that_look_at_labels() -> None:
    right = 4.0 * F.one_hot(target(), CLASSES).float()
    wrong = right.roll(1, dims=1)
    student = torch.zeros(SAMPLES, CLASSES)
    means = {}
    for name in ("aver", "ebkd", "camkd"):
        method = method_class(name)()
        means[name] = method.weigh(student, torch.stack((right, wrong)), target()).mean(0)
    assert means["camkd"][1] < 0.05 < 0.9 < means["camkd"][0]
    torch.testing.assert_close(means["ebkd"][0], means["ebkd"][1])
    torch.testing.assert_close(means["aver"][0], means["aver"][1])
    torch.testing.assert_close(means["camkd"], confidence_weights(torch.stack((right, wrong)), target()).mean(0))


# MMKD's weight networks know the teachers by their place.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mmkd"])
def test_the_order_of_the_teachers_does_not_matter(name: str) -> None:
    method, (student, teachers, labels) = built(name, teachers=2)
    expected = method(student, teachers, labels)["loss"]
    turned = method_class(name)()
    back = list(reversed(teachers))
    turned.build(DryRun(student=student, teachers=back, heads=heads(teachers)[::-1], batch_size=SAMPLES))
    state = method.state_dict()
    turned.load_state_dict({re.sub(r"\.([01])\.", lambda m: f".{1 - int(m[1])}.", n): v for n, v in state.items()})
    torch.testing.assert_close(turned(student, back, labels)["loss"], expected)
