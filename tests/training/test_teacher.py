"""A live teacher stays frozen, answers in its own precision and in the student's class order."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.errors import InputError
from stillroom.models.signals import Signals
from stillroom.training.teacher import LiveTeacher, match_classes, renormalisation, select_classes


class Net(nn.Module):
    """A small network with batch statistics and dropout: both would tell if it ever trained."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Signals:
        stage = F.relu(self.norm(self.conv(images)))
        pooled = stage.mean((2, 3))
        return Signals(self.classifier(self.dropout(pooled)), (stage,), (), pooled)


class Task(nn.Module):
    """What encloses a teacher in training: a student, and the teacher as a plain attribute."""

    def __init__(self, teacher: LiveTeacher) -> None:
        super().__init__()
        self.student = Net()
        self.teacher = teacher

    def forward(self, batch: Batch) -> Tensor:
        answer = self.teacher.signals(batch).logits
        return F.mse_loss(self.student(batch.images).logits, answer)


def make_batch(size: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 6, 6, generator=generator)
    return Batch(images, torch.randint(5, (size,), generator=generator), torch.arange(size))


def state_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_an_epoch_of_training_leaves_the_teacher_state_unchanged(net: Net) -> None:
    teacher = LiveTeacher(net)
    task = Task(teacher)
    before, student_before = state_hash(net), state_hash(task.student)
    optimiser = torch.optim.SGD(task.parameters(), lr=0.1)
    teacher.start_epoch(1)
    task.train()
    for step in range(5):
        optimiser.zero_grad()
        task(make_batch(seed=step)).backward()
        optimiser.step()
    assert state_hash(net) == before
    assert state_hash(task.student) != student_before


def test_what_encloses_a_teacher_does_not_reach_it(net: Net) -> None:
    task = Task(LiveTeacher(net)).train()
    assert not any(module.training for module in net.modules())
    assert not any(name.startswith("teacher") for name in task.state_dict())
    assert {id(p) for p in task.parameters()} == {id(p) for p in task.student.parameters()}


def test_a_teacher_told_to_train_by_another_owner_is_back_in_evaluation_mode_at_the_next_epoch(net: Net) -> None:
    teacher = LiveTeacher(net)
    net.train()
    teacher.start_epoch(2)
    assert not any(module.training for module in net.modules())


def test_signals_carry_no_graph_and_no_parameter_asks_for_a_gradient(net: Net) -> None:
    signals = LiveTeacher(net).signals(make_batch())
    assert not signals.logits.requires_grad
    assert not signals.stages[0].requires_grad
    assert signals.pooled is not None
    assert not signals.pooled.requires_grad
    assert not any(p.requires_grad for p in net.parameters())


def test_a_float32_teacher_ignores_the_autocast_of_the_student(net: Net) -> None:
    teacher, batch = LiveTeacher(net), make_batch()
    expected = teacher.signals(batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(teacher.signals(batch).logits, expected, rtol=0, atol=0)
        half = batch._replace(images=batch.images.bfloat16())
        assert teacher.signals(half).logits.dtype == torch.float32


def test_a_bfloat16_teacher_answers_in_float32_and_reports_how_far_it_agrees(net: Net) -> None:
    teacher, batch = LiveTeacher(net, precision="bf16"), make_batch(32)
    signals = teacher.signals(batch)
    assert {signals.logits.dtype, signals.stages[0].dtype} == {torch.float32}
    exact = LiveTeacher(copy.deepcopy(net)).signals(batch).logits
    agreement = teacher.agreement(batch.images)
    assert agreement.max_difference == pytest.approx((signals.logits - exact).abs().max().item())
    assert 0 < agreement.max_difference < 0.1
    assert agreement.top1 == (signals.logits.argmax(1) == exact.argmax(1)).float().mean().item()
    assert LiveTeacher(net).agreement(batch.images) == (1.0, 0.0)


def test_an_unknown_precision_is_refused(net: Net) -> None:
    with pytest.raises(InputError, match="'32' or 'bf16', not 'fp16'"):
        LiveTeacher(net, precision="fp16")  # type: ignore[arg-type]


def test_renormalised_batches_reach_the_teacher_as_it_was_trained(net: Net) -> None:
    pixels = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    data, own = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]), ([0.1, 0.0, 0.5], [0.5, 1.0, 0.25])

    def normalised(statistics: tuple[list[float], list[float]]) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
        return (pixels - mean) / std

    teacher = LiveTeacher(net, renormalise=renormalisation(*data, *own))
    batch = make_batch(4)
    answer = teacher.signals(batch._replace(images=normalised(data))).logits
    torch.testing.assert_close(answer, net(normalised(own)).logits)


def test_equal_normalisation_needs_no_correction_and_other_channels_are_refused() -> None:
    assert renormalisation([0.5], [0.2], [0.5], [0.2]) is None
    with pytest.raises(InputError, match=r"over 1 channel\(s\) and the teacher's over 3"):
        renormalisation([0.5], [0.2], [0.5] * 3, [0.2] * 3)


def test_equal_classes_need_no_map() -> None:
    assert match_classes(["a", "b"], ["a", "b"]) is None
    assert match_classes(["a", "b"], ["a", "c"], {"c": "b"}) is None


def test_classes_in_another_order_or_among_more_are_selected_by_name(net: Net) -> None:
    chosen = match_classes(["v", "w", "x", "y", "z"], ["z", "why", "v"], {"why": "y"})
    assert chosen is not None
    assert chosen.tolist() == [4, 3, 0]
    batch = make_batch()
    teacher = LiveTeacher(net, class_map=chosen)
    torch.testing.assert_close(teacher.signals(batch).logits, net(batch.images).logits[:, [4, 3, 0]])


def test_the_first_class_that_differs_is_named_with_the_mend() -> None:
    with pytest.raises(
        InputError, match=r"class 1 of the student, 'catt', .* 'cat'\?.*--label_map \{\"catt\": \"\.\.\.\"\}"
    ):
        match_classes(["cat", "dog"], ["dog", "catt", "cow"])
    with pytest.raises(InputError, match="names 'dogg', which is no class of the data; did you mean 'dog'"):
        match_classes(["cat", "dog"], ["cat", "dog"], {"dogg": "dog"})
    with pytest.raises(InputError, match="'cat' and 'lion' of the student both meet the teacher's 'cat'"):
        match_classes(["cat", "dog"], ["cat", "lion"], {"lion": "cat"})
    with pytest.raises(InputError, match="several classes named 'crane'"):
        match_classes(["crane", "dog", "crane"], ["crane", "dog"])


@pytest.mark.parametrize("bias", [True, False])
def test_a_reused_classifier_answers_in_the_order_of_the_student(bias: bool) -> None:
    torch.manual_seed(0)
    classifier, features = nn.Linear(8, 5, bias=bias).requires_grad_(False), torch.randn(3, 8)
    chosen = torch.tensor([4, 0])
    selected = select_classes(classifier, chosen)
    torch.testing.assert_close(selected(features), classifier(features)[:, chosen])
    assert not any(p.requires_grad for p in selected.parameters())
    assert select_classes(classifier, None) is classifier


def test_a_step_with_a_live_teacher_compiles_whole_and_gives_the_same_loss(net: Net) -> None:
    teacher = LiveTeacher(
        net,
        precision="bf16",
        renormalise=renormalisation([0.5] * 3, [0.5] * 3, [0.4] * 3, [0.6] * 3),
        class_map=torch.tensor([1, 0, 2, 4, 3]),
    )
    task = Task(teacher).eval()
    counter = CompileCounter()
    compiled = torch.compile(task, backend=counter, fullgraph=True)
    for epoch in (1, 2):
        teacher.start_epoch(epoch)
        torch.testing.assert_close(compiled(make_batch(seed=epoch)), task(make_batch(seed=epoch)))
    assert counter.frame_count == 1


def test_a_moved_teacher_takes_its_constants_along(net: Net) -> None:
    teacher = LiveTeacher(
        net, renormalise=renormalisation([0.5], [0.5], [0.4], [0.6]), class_map=torch.tensor([1, 0])
    ).to("meta")
    assert teacher.renormalise is not None
    assert teacher.class_map is not None
    moved = [*net.parameters(), *net.buffers(), *teacher.renormalise, teacher.class_map]
    assert {tensor.device.type for tensor in moved} == {"meta"}
