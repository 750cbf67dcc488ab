"""Teacher and student while images are made: fixed, yet gradients pass through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from stillroom.models.signals import Signals
from stillroom.training.teacher import LiveTeacher

__all__ = ["fixed", "through"]


@contextmanager
def fixed(*modules: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode with no gradient for their weights; afterwards all is as before."""
    modes = [(inner, inner.training) for module in modules for inner in module.modules()]
    wanted = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training
        for weight, was in wanted:
            weight.requires_grad_(was)


def through(teacher: LiveTeacher, images: Tensor) -> Signals:
    """Return the teacher's signals with the graph to the images, its logits in the student's class order."""
    signals: Signals = teacher.model(images)
    if teacher.class_map is None:
        return signals
    return signals._replace(logits=signals.logits.index_select(1, teacher.class_map))
