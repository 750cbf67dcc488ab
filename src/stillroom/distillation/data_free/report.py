"""What the report shows of a training without data: the images, and the synthesis over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stillroom.data.images import TensorImages
from stillroom.distillation.data_free._networks import through
from stillroom.distillation.data_free.views import Views
from stillroom.reports.page import Figure, Section, picture
from stillroom.reports.plots import training_curves
from stillroom.training.teacher import LiveTeacher

__all__ = ["confidence", "curves", "pictures"]

_PER_CLASS, _ROWS = 10, 10


@torch.no_grad()
def confidence(teacher: LiveTeacher, images: TensorImages, views: Views, device: torch.device) -> tuple[float, float]:
    """Return the teacher's mean probability of the images' classes, and how often they are its first choice."""
    answers = torch.cat(
        [
            through(teacher, views.normalise(part.to(device).float() / 255)).logits.softmax(1).cpu()
            for part in torch.split(images.pixels, 250)
        ]
    )
    own = answers.gather(1, images.target[:, None]).mean().item()
    return own, (answers.argmax(1) == images.target).float().mean().item()


def pictures(images: TensorImages, classes: tuple[str, ...], sure: float, hits: float) -> Section:
    """Show up to ten images of up to ten classes, one class a row."""
    channels, height, width = images.shape
    present = torch.unique(images.target).tolist()[:_ROWS]
    sheet = torch.zeros(len(present), _PER_CLASS, channels, height + 1, width + 1, dtype=torch.uint8)
    for row, label in enumerate(present):
        chosen = images.pixels[images.target == label][:_PER_CLASS]
        sheet[row, : len(chosen), :, :height, :width] = chosen
    whole = sheet.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    pixels = np.ascontiguousarray(whole[..., 0] if channels == 1 else whole[..., :3])
    names = ", ".join(classes[label] for label in present)
    return Section(
        title="Synthesised images",
        text=f"The teacher gives the class an image was made for {100 * sure:.1f} % on average, and it is its "
        f"first choice for {100 * hits:.1f} %.",
        parts=[picture(pixels, f"Images of the last round; rows from the top: {names}.")],
    )


def curves(history: Sequence[Mapping[str, Any]]) -> tuple[Section, ...]:
    prefix = "train_synthesis_"
    names = [name.removeprefix(prefix) for name in history[-1] if name.startswith(prefix)]
    panels = {name: {name: [float(record[prefix + name]) for record in history]} for name in names if name != "loss"}
    if not panels:
        return ()
    caption = "Parts of the loss of the synthesis, unweighted, at the images kept of each round."
    return (Section(title="Synthesis over the rounds", parts=[Figure(training_curves(panels), caption)]),)
