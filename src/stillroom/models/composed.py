"""The deployed SimKD student: trained backbone, projector and the teacher's own classifier in one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models._layout import Layout, layouts_of, to_map
from stillroom.models._trace import evaluating, linear_of_logits
from stillroom.models.signals import Signals, TapPaths
from stillroom.models.taps import Tapped

__all__ = ["Projector", "ReusedClassifier"]


class Projector(nn.Module):
    """Map the student's last feature map to the teacher's width (SimKD).

    D. Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, section 3.2:
    ``conv1×1(C_S → m) – BN – ReLU – conv3×3(m → m) – BN – ReLU – conv1×1(m → C_T) – BN – ReLU`` with
    ``m = C_T // factor`` and no convolution bias.

    Args:
        student_channels: C_S.
        teacher_channels: C_T.
        factor: Reduction of the inner width.

    Shapes:
        [B, C_S, H, W] -> [B, C_T, H, W], non-negative.

    Raises:
        InputError: The inner width would be zero.

    Example:
        >>> sum(p.numel() for p in Projector(256, 256).parameters())
        214016
    """

    def __init__(self, student_channels: int, teacher_channels: int, factor: int = 2) -> None:
        super().__init__()
        if not 1 <= factor <= teacher_channels:
            raise InputError(f"the projector factor must lie in 1..{teacher_channels} (teacher channels), not {factor}")
        inner = teacher_channels // factor
        self.student_channels, self.teacher_channels, self.factor = student_channels, teacher_channels, factor
        self.conv1 = nn.Conv2d(student_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, teacher_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(teacher_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the projected map."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)))


class ReusedClassifier(nn.Module):
    """The student SimKD deploys: ``W_T · avgpool(P(F_S)) + b_T`` with the student's last map F_S and projector P.

    D. Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, section 3.2. The three
    parts are copied; what the backbone computes after the tap (its final convolution, its own classifier) is taken
    out and leaves no parameter behind. A student map larger than the teacher's is pooled to the teacher's size first.

    Args:
        backbone: The trained student.
        tap: Path of its last feature map.
        projector: The trained projector.
        classifier: The teacher's final linear layer.
        sample: Images [B, C, H, W] for the dry run that finds what to take out; B = 1 is enough.
        pool_size: Height and width of the teacher's map (square); only used where the student's is larger.

    Shapes:
        images [B, C, H, W] -> logits [B, K].

    Raises:
        InputError: The parts do not fit together.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> whole = ReusedClassifier(net, "1", Projector(4, 8), nn.Linear(8, 3), sample=torch.zeros(1, 1, 8, 8))
        >>> whole(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 3])
        >>> any(name.startswith("backbone.model.3") for name in whole.state_dict())
        False
    """

    def __init__(
        self,
        backbone: nn.Module,
        tap: str,
        projector: Projector,
        classifier: nn.Linear,
        *,
        sample: Tensor,
        pool_size: int | None = None,
    ) -> None:
        super().__init__()
        if classifier.in_features != projector.teacher_channels:
            raise InputError(
                f"the classifier takes {classifier.in_features} features, the projector gives "
                f"{projector.teacher_channels}; size the projector for the teacher's last map"
            )
        self.tap = tap
        self.backbone = _cut(copy.deepcopy(backbone), tap, sample)
        with evaluating(self.backbone):
            features = self._features(sample)
        if features.shape[1] != projector.student_channels:
            raise InputError(
                f"tap {tap!r} gives {features.shape[1]} channels, the projector takes {projector.student_channels}"
            )
        larger = pool_size is not None and features.shape[2] > pool_size
        self.pool_size = pool_size if larger else None
        self.projector = copy.deepcopy(projector)
        self.classifier = copy.deepcopy(classifier)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor | Signals = self.backbone(images)
        return features.stages[0] if isinstance(features, Signals) else features

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of images [B, C, H, W]."""
        features = self._features(images)
        if self.pool_size is not None:
            features = F.adaptive_avg_pool2d(features, self.pool_size)
        logits: Tensor = self.classifier(self.projector(features).mean((2, 3)))
        return logits

    def tap_paths(self) -> TapPaths:
        """Return the projector's output as the one stage: what the classifier sees."""
        return TapPaths(stages=("projector",), classifier="classifier")

    def architecture(self, backbone: str) -> Mapping[str, object]:
        """Describe this network for ``model.json``.

        Args:
            backbone: The specification the student was created from, without weights.
        """
        return {
            "kind": "reused_classifier",
            "backbone": backbone,
            "tap": self.tap,
            "student_channels": self.projector.student_channels,
            "teacher_channels": self.projector.teacher_channels,
            "factor": self.projector.factor,
            "pool_size": self.pool_size,
        }


class _Features(nn.Module):
    """The part of a network up to the map its ``forward_features`` returns."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        return to_map(self.model.forward_features(images), self.layout)  # type: ignore[operator]


class _Reach:
    """Which modules a forward pass had started and completed when it came by a tap."""

    def __init__(self, model: nn.Module, tap: str, run: Callable[[], object]) -> None:
        self.started: set[str] = {""}
        self.completed: set[str] = set()
        self.tensor: object = None
        self._at_tap = (set(self.started), set(self.completed))
        handles = []
        for path, module in model.named_modules(remove_duplicate=False):
            handles.append(module.register_forward_pre_hook(lambda _, args, path=path: self._start(path, tap, args)))
            handles.append(module.register_forward_hook(lambda _, __, out, path=path: self._end(path, tap, out)))
        try:
            with evaluating(model):
                self.output = run()
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, path: str, tap: str, args: tuple[Any, ...]) -> None:
        if tap == f"{path}:input":
            self._note(args[0] if args else None)
        self.started.add(path)

    def _end(self, path: str, tap: str, output: object) -> None:
        self.completed.add(path)
        if tap == path:
            self._note(output)

    def _note(self, value: object) -> None:
        self.tensor = value
        self._at_tap = (set(self.started), set(self.completed))

    def stop_at_tap(self) -> None:
        """Forget what ran after the tap."""
        self.started, self.completed = self._at_tap

    def beyond(self, module: nn.Module, prefix: str = "") -> list[str]:
        """List the outermost modules with a state that were not needed."""
        paths: list[str] = []
        for name, child in module.named_children():
            at = prefix + name
            if at in self.completed:
                continue  # with all it holds: attention reads weights of layers it never calls
            if any(path == at or path.startswith(at + ".") for path in self.started):
                paths += self.beyond(child, at + ".")
            elif child.state_dict():
                paths.append(at)
        return paths


def _cut(model: nn.Module, tap: str, sample: Tensor) -> nn.Module:
    """Return a module that gives the map at the tap, without the modules that run after it."""
    own = getattr(model, "forward_features", None)
    if callable(own):
        reach = _Reach(model, tap, lambda: own(sample))
        if isinstance(reach.output, Tensor) and reach.output is reach.tensor:
            features = _Features(model, layouts_of(model, [reach.output], [tap], sample)[0])
            _drop(features, model, [reach.beyond(model)], sample)
            return features
    tapped = Tapped(model, TapPaths((tap,)), {"stages"}, sample=sample)
    classifier = linear_of_logits(model, sample)
    reach = _Reach(model, tap, lambda: model(sample))
    reach.stop_at_tap()
    _drop(tapped, model, [reach.beyond(model), [classifier] if classifier else []], sample)
    return tapped


def _drop(features: nn.Module, model: nn.Module, choices: Sequence[Sequence[str]], sample: Tensor) -> None:
    """Put identities in place of the first choice of modules without which the network still runs."""
    for paths in choices:
        parts = {path: model.get_submodule(path) for path in paths}
        for path in parts:
            model.set_submodule(path, nn.Identity())
        try:
            with evaluating(features):
                features(sample)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            # Some networks reach for the layers they do not call, or cannot pass the map on unshaped.
            for path, part in parts.items():
                model.set_submodule(path, part)
        else:
            return
