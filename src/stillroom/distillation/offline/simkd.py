"""SimKD: reuse the teacher's classifier, match its last feature map, and nothing else."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._align import frozen_linear, pool_to, require_stages, side
from stillroom.distillation.offline._method import Convention, DryRun, Method, Signal, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision
from stillroom.models.composed import Projector, ReusedClassifier
from stillroom.models.signals import Signals, TapPaths

__all__ = ["SimKD", "simkd_loss"]


def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the projected student map and the teacher's last map.

    D. Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022:
    ``L = MSE(P(F_S), F_T)``, with ``F_T`` average-pooled to the size of ``P(F_S)`` where it is larger.

    Args:
        projected: The student's last map behind the projector ``P``; where it was larger than the teacher's, it was
            pooled to the teacher's size before the projector.
        teacher: The teacher's last map; no gradient flows into it.

    Shapes:
        projected: [B, C, h, h].
        teacher: [B, C, h', h'], h' >= h.

    Returns:
        The mean over samples, channels and positions, a scalar.

    Example:
        >>> simkd_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 8, 8))
        tensor(1.)
    """
    target = pool_to(teacher.detach(), projected.shape[-1])
    return F.mse_loss(full_precision(projected), full_precision(target))


def check_reusable(dry_run: DryRun, classifier: nn.Linear) -> None:
    """Refuse teachers whose classifier does not sit directly on the pooled last map, or whose map is negative.

    Raises:
        InputError: ``classifier(avgpool(map)) == logits`` does not hold, or the map has negative entries.
    """
    feature_map, logits = dry_run.teacher.stages[-1], dry_run.teacher.logits
    reason = ""
    if feature_map.shape[1] != classifier.in_features:
        reason = f"the map has {feature_map.shape[1]} channels, the classifier takes {classifier.in_features}"
    elif logits.shape[1] != classifier.out_features:
        reason = f"the classifier answers {classifier.out_features} classes, the teacher {logits.shape[1]}"
    else:
        pooled = feature_map.to(classifier.weight.dtype).mean((2, 3))
        offset = 0 if classifier.bias is None else classifier.bias
        expected = logits.to(pooled.dtype) - offset
        gap = (F.linear(pooled, classifier.weight) - expected).abs().max()
        # Half precision rounds to about 1 %; a layer between tap and pooling changes the logits entirely.
        allowed = 0.1 if logits.dtype in (torch.float16, torch.bfloat16) else 0.01
        if not bool(gap <= allowed * expected.abs().max() + 1e-6):
            reason = "classifier(average pool of the map) differs from the teacher's logits"
    if reason:
        raise InputError(
            "simkd needs a teacher whose classifier sits directly on its average-pooled last feature map, but "
            f"{reason}; this is so for pre-activation WRN (a BN and ReLU in between), MobileNetV2 and ShuffleNetV2 "
            "(a 1×1 convolution in between) and transformers: name a tap behind the layer in between, or take "
            "another teacher (resnet38x2 stands in for wrn_40_2)"
        )
    if bool((feature_map < 0).any()):
        raise InputError(
            "simkd's projector ends in a ReLU and can never match the negative entries of this teacher's last feature "
            "map; name a tap behind a ReLU or take another teacher"
        )


class SimKD(Method):
    """Knowledge distillation with the reused teacher classifier.

    The student's last map passes a projector and is matched to the teacher's; the deployed model answers with
    ``W_T · avgpool(P(F_S)) + b_T`` through the teacher's frozen classifier. Labels and the student's own head are
    not used. Not to be confused with SRRL, which matches pooled vectors and deploys the student's own head.

    Args:
        factor: Channel reduction of the projector, ``m = C_T // factor``.
    """

    card: ClassVar[Card] = Card(
        name="simkd",
        summary="Reuses the teacher's classifier and trains the student by matching the last feature map alone.",
        papers=(
            Paper(
                title="Knowledge Distillation with the Reused Teacher Classifier",
                authors="D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen",
                venue="CVPR, 11933–11942",
                year=2022,
                identifier="arXiv:2203.14001",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The feature loss is the only term.",
                code="Adds cross-entropy and KD of the student's own head with weight 0: weight decay shrinks the "
                "unused head, and an overflow gives NaN.",
                default="paper",
            ),
            Quirk(
                paper="Deploys student, projector and the teacher's classifier.",
                code="The best checkpoint leaves the classifier out; the stored backbone alone answers at chance.",
                default="paper",
            ),
            Quirk(
                paper="The teacher's classifier sits on the pooled last map.",
                code="Does not check it; WRN, MobileNetV2 and ShuffleNetV2 teachers train to nonsense.",
                default="paper",
            ),
            Quirk(
                paper="Reports a student accuracy.",
                code="Reports the best test accuracy over epochs.",
                default="neither",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=0.0, kd=0.0, method=1.0),
        "crd": Weights(ce=0.0, kd=0.0, method=1.0),
    }

    projector: Projector
    classifier: nn.Linear

    def __init__(self, *, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise InputError(f"factor must be at least 1, got {factor}")
        self.factor = factor
        self.pooled_size: int | None = None

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"factor={self.factor}"

    def build(self, dry_run: DryRun) -> None:
        """Check that the teacher's classifier can be reused, and create the projector and a frozen copy of it."""
        student = require_stages(dry_run.student, "student", "simkd")[-1]
        teacher = require_stages(dry_run.teacher, "teacher", "simkd")[-1]
        classifier = frozen_linear(dry_run.teacher_classifier, "simkd")
        check_reusable(dry_run, classifier)
        self.projector = Projector(student.shape[1], teacher.shape[1], factor=self.factor)
        self.classifier = classifier
        teacher_side = side(teacher, "teacher")
        self.pooled_size = teacher_side if side(student, "student") > teacher_side else None

    def deploy(self, student: nn.Module, taps: TapPaths, sample: Tensor) -> ReusedClassifier:
        """Return the composed model: the student up to its last map, the projector, the teacher's classifier."""
        return ReusedClassifier(
            student, taps.stages[-1], self.projector, self.classifier, sample=sample, pool_size=self.pooled_size
        )

    def _project(self, student: Signals) -> Tensor:
        feature_map = student.stages[-1]
        if self.pooled_size is not None:
            feature_map = pool_to(feature_map, self.pooled_size)
        projected: Tensor = self.projector(feature_map)
        return projected

    def _answer(self, projected: Tensor) -> Tensor:
        logits: Tensor = self.classifier(projected.mean((2, 3)))
        return logits

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, and as ``output`` the logits of the composed model, so that the projector runs once."""
        projected = self._project(student)
        with torch.no_grad():
            output = self._answer(projected.detach())
        return {"loss": simkd_loss(projected, teacher.stages[-1]), "output": output}

    def predict(self, student: Signals) -> Tensor:
        """Return the logits of the teacher's classifier on the projected student map."""
        return self._answer(self._project(student))
