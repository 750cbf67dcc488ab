"""The student's side of data-free distillation: one objective for all methods, and CSD's second optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stillroom.data.batch import Batch
from stillroom.distillation.data_free.align import AlignHead, student_loss
from stillroom.distillation.data_free.auxiliary import Auxiliary
from stillroom.distillation.data_free.player import Player
from stillroom.models.taps import Tapped
from stillroom.training.loop import supervised_step
from stillroom.training.recipe import Recipe
from stillroom.training.teacher import LiveTeacher

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["DataFreeTask"]


class DataFreeTask(nn.Module):
    """Student and align head, with the teacher and the trainable helpers of the synthesis held beside the module tree.

    Neither optimiser nor ``train()`` reaches those; checkpoints do, through the extra state.

    Args:
        student: The student, tapped.
        teacher: The frozen teacher.
        temperature: T of the soft targets.
        feature_weight: Weight of the last map.
        uses_labels: Whether the labels of the synthesis count.
        align: Shapes the student's last map; None leaves the map out.
        auxiliary: CSD's head with its optimiser.
        player: The generator trained across rounds (DAFL, ZSKT).
    """

    def __init__(
        self,
        student: Tapped,
        teacher: LiveTeacher,
        *,
        temperature: float,
        feature_weight: float = 0.0,
        uses_labels: bool = False,
        align: AlignHead | None = None,
        auxiliary: Auxiliary | None = None,
        player: Player | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.align = align
        self.teacher = teacher
        self.temperature, self.feature_weight, self.uses_labels = temperature, feature_weight, uses_labels
        self.auxiliary = auxiliary
        self.player = player
        self.synthesis: dict[str, Tensor] = {}  # parts of the newest round's loss, for the log

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: a round begins when its images are there, which is the loader's to say."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        teacher = self.teacher.signals(batch)
        student = self.student(batch.images)
        aligned = teacher_map = None
        if self.align is not None:
            teacher_map = teacher.stages[-1]
            aligned = self.align(student.stages[-1], teacher_map.shape[-1])
        loss = student_loss(
            student.logits,
            teacher.logits,
            batch.target if self.uses_labels else None,
            aligned,
            teacher_map,
            temperature=self.temperature,
            feature_weight=self.feature_weight,
        )
        return {"loss": loss, "output": student.logits.detach()}

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images).logits
        return logits

    def step(
        self, task: nn.Module, optimizer: Optimizer, batch: Batch, fabric: Fabric, recipe: Recipe
    ) -> dict[str, Tensor]:
        """Do the student's update, then that of the auxiliary head."""
        parts = supervised_step(task, optimizer, batch, fabric, recipe)
        if self.auxiliary is not None:
            parts = parts | {"auxiliary": self.auxiliary.step(self.student, batch.images, batch.target)}
        return parts | self.synthesis

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of what is trained beside the student."""
        state: dict[str, Any] = {"synthesis": self.synthesis}
        if self.auxiliary is not None:
            state["auxiliary"] = self.auxiliary.state()
        if self.player is not None:
            state["player"] = self.player.state()
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`get_extra_state` returned."""
        device = next(self.parameters()).device
        self.synthesis = {name: part.to(device) for name, part in state["synthesis"].items()}
        if self.auxiliary is not None:
            self.auxiliary.load(state["auxiliary"])
        if self.player is not None:
            self.player.load(state["player"])

    def told(self, parts: Mapping[str, Tensor]) -> None:
        """Remember the parts of the newest synthesis for the log."""
        self.synthesis = {f"synthesis_{name}": part.detach() for name, part in parts.items()}
