"""A live teacher: a frozen network that answers every batch, in its own precision and the student's class order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.errors import InputError, nearest
from stillroom.models.signals import Signals

__all__ = [
    "Agreement",
    "LiveTeacher",
    "Precision",
    "match_classes",
    "renormalisation",
    "select_classes",
]

Precision = Literal["32", "bf16"]


class Agreement(NamedTuple):
    """How far a teacher in its own precision is from itself in float32."""

    top1: float  # fraction of images with the same most likely class
    max_difference: float  # largest absolute difference of a logit


class LiveTeacher:
    """A frozen network that answers every batch anew.

    It is a plain object and no ``nn.Module``: whatever encloses it, ``train()``, ``parameters()``, ``state_dict()``
    and DDP do not reach it. It takes over the model given to it, which is put in evaluation mode and frozen.

    Args:
        model: Returns :class:`Signals` of a batch of images (a tapped network).
        precision: ``"32"`` computes in float32 even where the student runs under autocast; ``"bf16"`` runs under
            bfloat16 autocast (see :meth:`agreement`). Signals are float32 either way.
        renormalise: Scale and shift per channel ([C, 1, 1] each) for batches normalised otherwise than the teacher
            was trained with; see :func:`renormalisation`.
        class_map: [K] int64, position of each student class among the teacher's; see :func:`match_classes`.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, images: Tensor) -> Signals:
        ...         return Signals(images.mean((2, 3)))
        >>> teacher = LiveTeacher(Net(), class_map=torch.tensor([2, 0]))
        >>> batch = Batch(torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.arange(4))
        >>> teacher.signals(batch).logits.shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: Precision = "32",
        renormalise: tuple[Tensor, Tensor] | None = None,
        class_map: Tensor | None = None,
    ) -> None:
        if precision not in ("32", "bf16"):
            raise InputError(f"the teacher's precision is '32' or 'bf16', not {precision!r}")
        self.model = model.eval().requires_grad_(False)
        self.precision = precision
        self.renormalise = renormalise
        self.class_map = class_map

    def to(self, device: torch.device | str) -> Self:
        """Move the network and its constants to a device."""
        self.model.to(device)
        if self.renormalise is not None:
            scale, shift = self.renormalise
            self.renormalise = scale.to(device), shift.to(device)
        if self.class_map is not None:
            self.class_map = self.class_map.to(device)
        return self

    def start_epoch(self, epoch: int) -> None:
        """Make sure of evaluation mode (a module that also holds the network may have been told to train)."""
        self.model.eval()

    def signals(self, batch: Batch) -> Signals:
        """Return the network's signals for the batch, without graph."""
        return self._answer(batch.images, self.precision)

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images [B, C, H, W]."""
        return self._answer(images, self.precision).logits

    def _answer(self, images: Tensor, precision: Precision) -> Signals:
        # The inner autocast also switches an enclosing one off: the teacher's precision is its own.
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            images = images.float()
            if self.renormalise is not None:
                scale, shift = self.renormalise
                images = images * scale + shift
            logits, stages, preact, pooled = self.model(images)
            if self.class_map is not None:
                logits = logits.index_select(1, self.class_map)
            return Signals(
                logits.float(),
                tuple(stage.float() for stage in stages),
                tuple(stage.float() for stage in preact),
                None if pooled is None else pooled.float(),
            )

    def agreement(self, images: Tensor) -> Agreement:
        """Compare the teacher in its own precision with float32, on normalised images [B, C, H, W]."""
        own = self._answer(images, self.precision).logits
        exact = self._answer(images, "32").logits
        return Agreement(
            top1=(own.argmax(1) == exact.argmax(1)).float().mean().item(),
            max_difference=(own - exact).abs().max().item(),
        )


def renormalisation(
    data_mean: Sequence[float],
    data_std: Sequence[float],
    teacher_mean: Sequence[float],
    teacher_std: Sequence[float],
) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift that turn the data's normalisation into the teacher's, or ``None`` if they are equal.

    ``(x - m_t) / s_t = scale · (x - m_d) / s_d + shift`` with ``scale = s_d / s_t`` and ``shift = (m_d - m_t) / s_t``.

    Shapes:
        Both results are [C, 1, 1].

    Raises:
        InputError: The numbers of channels differ.

    Example:
        >>> scale, shift = renormalisation([0.5], [0.5], [0.0], [1.0])
        >>> scale.item(), shift.item()
        (0.5, 0.5)
    """
    lengths = {len(values) for values in (data_mean, data_std, teacher_mean, teacher_std)}
    if len(lengths) > 1:
        raise InputError(
            f"the data are normalised over {len(data_mean)} channel(s) and the teacher's over {len(teacher_mean)}; "
            "the teacher was trained on images of another kind"
        )
    if (tuple(data_mean), tuple(data_std)) == (tuple(teacher_mean), tuple(teacher_std)):
        return None
    m_d, s_d, m_t, s_t = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (data_mean, data_std, teacher_mean, teacher_std)
    )
    return (s_d / s_t).float(), ((m_d - m_t) / s_t).float()


def match_classes(
    teacher_classes: Sequence[str], student_classes: Sequence[str], label_map: Mapping[str, str] | None = None
) -> Tensor | None:
    """Find each student class among the teacher's by name; ``None`` when both lists are the same.

    The teacher may know more classes than the student; those are left out.

    Args:
        teacher_classes: The teacher's class names, in the order of its logits.
        student_classes: The student's, in the order of the data set's labels.
        label_map: Student name -> teacher name, for names that differ.

    Returns:
        [K] int64, the teacher's position of each student class.

    Raises:
        InputError: A student class is not among the teacher's, or two meet in one.

    Example:
        >>> match_classes(["cat", "dog", "car"], ["automobile", "cat"], {"automobile": "car"})
        tensor([2, 0])
    """
    label_map = label_map or {}
    teacher_classes, student_classes = list(teacher_classes), list(student_classes)
    for name in label_map:
        if name not in student_classes:
            raise InputError(
                f"--label_map names {name!r}, which is no class of the data{nearest(name, student_classes)}"
            )
    wanted = [label_map.get(name, name) for name in student_classes]
    if wanted == teacher_classes:
        return None
    for position, (own, name) in enumerate(zip(student_classes, wanted, strict=True)):
        if name not in teacher_classes:
            raise InputError(
                f"class {position} of the student, {name!r}, is not among the teacher's {len(teacher_classes)} classes"
                f"{nearest(name, teacher_classes)}; name its counterpart with --label_map {json.dumps({own: '...'})}"
            )
        if teacher_classes.count(name) > 1:
            raise InputError(f"the teacher has several classes named {name!r}; give them different names")
        if wanted.index(name) < position:
            raise InputError(
                f"classes {student_classes[wanted.index(name)]!r} and {own!r} of the student both meet the teacher's "
                f"{name!r}; give each its own counterpart with --label_map"
            )
    return torch.tensor([teacher_classes.index(name) for name in wanted], dtype=torch.int64)


def select_classes(classifier: nn.Linear, class_map: Tensor | None) -> nn.Linear:
    """Return the teacher's classifier answering in the student's class order (methods that reuse it need this)."""
    if class_map is None:
        return classifier
    chosen = nn.Linear(classifier.in_features, len(class_map), bias=classifier.bias is not None)
    chosen = chosen.to(classifier.weight.device, classifier.weight.dtype).requires_grad_(False)
    rows = class_map.to(classifier.weight.device)
    with torch.no_grad():
        chosen.weight.copy_(classifier.weight[rows])
        if classifier.bias is not None:
            chosen.bias.copy_(classifier.bias[rows])
    return chosen.train(classifier.training)
