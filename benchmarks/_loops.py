"""The networks that are timed and the loops several benchmarks share: the bare sum, written by hand, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from _rounds import Contender, TimedLoader
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.distillation.methods import method_class
from stillroom.distillation.offline.task import OfflineTask
from stillroom.models import zoo
from stillroom.models.composed import Projector
from stillroom.models.signals import TapPaths
from stillroom.models.taps import Tapped
from stillroom.training.contracts import Teacher
from stillroom.training.fabric import make_fabric
from stillroom.training.loop import fit
from stillroom.training.recipe import Recipe
from stillroom.training.teacher import LiveTeacher

LR = 1e-3  # small: the batches are noise and the same few ones again and again
RECIPE = Recipe(epochs=1, lr=LR, schedule="constant")
TEMPERATURE = 4.0


class SmallNet(nn.Module):
    """Three convolutions with batch norm, each halving the size, and a linear classifier."""

    def __init__(self, widths: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels = 3
        for stage, width in enumerate(widths, start=1):
            convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
            self.add_module(f"stage{stage}", nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        self.linear = nn.Linear(channels, classes)

    def tap_paths(self) -> TapPaths:
        return TapPaths(("stage1", "stage2", "stage3"), classifier="linear")

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stage3(self.stage2(self.stage1(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.forward_features(images).mean((2, 3)))


class MLP(nn.Module):
    """One hidden layer: a network so small that it is nothing but the cost of calling operations."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.linear = nn.Linear(192, width), nn.Linear(width, classes)

    def tap_paths(self) -> TapPaths:
        return TapPaths((), classifier="linear")

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(F.relu(self.hidden(images.flatten(1))))


class Pair(NamedTuple):
    """A teacher and a student, fresh, and what they take."""

    teacher: nn.Module
    student: nn.Module
    shape: tuple[int, int, int]
    classes: int


def _resnet() -> Pair:
    teacher, student = (zoo.create(name, num_classes=100) for name in ("resnet32x4", "resnet8x4"))
    return Pair(teacher, student, (3, 32, 32), 100)


def _toy() -> Pair:
    return Pair(SmallNet((64, 128, 256), 10), SmallNet((32, 64, 128), 10), (3, 32, 32), 10)


def _tiny() -> Pair:
    return Pair(SmallNet((32, 64, 128), 10), SmallNet((16, 32, 64), 10), (3, 8, 8), 10)


def _mlp() -> Pair:
    return Pair(MLP(256, 10), MLP(64, 10), (3, 8, 8), 10)


PAIRS: dict[str, Callable[[], Pair]] = {"resnet": _resnet, "toy": _toy, "tiny": _tiny, "mlp": _mlp}


def make_pair(name: str, device: torch.device) -> Pair:
    """Create the pair; every call gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair = PAIRS[name]()
    return pair._replace(teacher=pair.teacher.to(device), student=pair.student.to(device))


def sgd(parameters: Iterable[nn.Parameter], *, fused: bool = False) -> torch.optim.SGD:
    """Return SGD with the recipe's numbers; without ``fused`` it is what torch chooses by itself."""
    return torch.optim.SGD(
        parameters, lr=LR, momentum=RECIPE.momentum, weight_decay=RECIPE.weight_decay, fused=fused or None
    )


def bare_sum(pair: Pair, method: str, sample: Batch, *, fused: bool) -> Contender:
    """Return the lower bound: teacher forward without graph, student forward and backward, optimiser step.

    No loss is computed: the backward pass starts from a fixed gradient of what the loss would be a function of (the
    student's logits; for SimKD the projector's output, and then the student's own head is not run either). Nothing is
    logged, counted or checked.
    """
    teacher, student = pair.teacher.eval().requires_grad_(False), pair.student.train()
    trained = list(student.parameters())
    forward: Callable[[Tensor], Tensor] = student
    if method == "simkd":
        with torch.no_grad():
            student_map, teacher_map = student.forward_features(sample.images), teacher.forward_features(sample.images)
        projector = Projector(student_map.shape[1], teacher_map.shape[1]).to(sample.images.device)
        head = set(student.linear.parameters())
        trained = [parameter for parameter in trained if parameter not in head] + list(projector.parameters())

        def forward(images: Tensor) -> Tensor:
            return projector(student.forward_features(images))

    gradient = torch.randn_like(forward(sample.images).detach()).div_(sample.images.shape[0])

    def run(loader: TimedLoader) -> None:
        optimizer = sgd(trained, fused=fused)  # a new one each round, as in every call of fit
        for batch in loader.epoch():
            with torch.no_grad():
                teacher(batch.images)
            forward(batch.images).backward(gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def plain_kd(pair: Pair, *, fused: bool) -> Contender:
    """Return KD as a short loop of one's own: the bare sum with the loss that it is for, and nothing else."""
    teacher, student = pair.teacher.eval().requires_grad_(False), pair.student.train()

    def run(loader: TimedLoader) -> None:
        optimizer = sgd(student.parameters(), fused=fused)
        for images, target, _ in loader.epoch():
            with torch.no_grad():
                answer = teacher(images)
            logits = student(images)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(answer / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            (F.cross_entropy(logits, target) + TEMPERATURE**2 * soft).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def ours(task: nn.Module, device: torch.device) -> Contender:
    """Return our training loop, the one behind ``stillroom distill``, without run directory and progress display."""
    fabric = make_fabric("cuda" if device.type == "cuda" else "cpu")

    def run(loader: TimedLoader) -> None:
        fit(task, loader, RECIPE, seed=0, fabric=fabric, show_progress=False)

    return run


def distillation(pair: Pair, method: str, sample: Batch, *, teacher: Teacher | None = None) -> OfflineTask:
    """Return the task of a method with its default hyperparameters and weights, behind a live teacher unless given."""
    made = method_class(method)()
    if teacher is None:
        teacher = LiveTeacher(Tapped(pair.teacher, pair.teacher.tap_paths(), made.signals)).to(sample.images.device)
    return OfflineTask.build(
        Tapped(pair.student, pair.student.tap_paths(), made.signals).to(sample.images.device),
        teacher,
        made,
        made.presets["simkd"],
        sample,
        teacher_classifier=pair.teacher.linear,
        train_target=sample.target,
        num_classes=pair.classes,
        seed=0,
        temperature=TEMPERATURE,
    )
