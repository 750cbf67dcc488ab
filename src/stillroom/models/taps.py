"""Read intermediate features of any network by module path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillroom.errors import InputError, nearest, unknown_name
from stillroom.models._layout import Layout, layouts_of, to_map
from stillroom.models._trace import evaluating, linear_of_logits, logits_of, trace
from stillroom.models.signals import Signals, TapPaths

__all__ = ["Tapped", "find_taps", "user_taps"]

SIGNALS = ("stages", "preact", "pooled")


class _Sink:
    """What one forward pass caught; ``None`` outside a tapped forward pass, so that nothing is kept alive."""

    def __init__(self) -> None:
        self.values: list[object] | None = None


class _Catch:
    """The hook of one tap."""

    # A class instead of a closure: copying a tapped network must copy the link to the sink with it.
    def __init__(self, sink: _Sink, slot: int) -> None:
        self.sink = sink
        self.slot = slot

    def output(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if self.sink.values is not None:
            self.sink.values[self.slot] = output

    def input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.sink.values is not None and args:
            self.sink.values[self.slot] = args[0]


class Tapped(nn.Module):
    """A network that returns its intermediate features beside its logits.

    Hooks are registered here, once, and only for the signals asked for; with none asked the network is called as it
    is. A module that runs several times in one forward pass gives what it saw last. Tensors are kept during the forward
    pass only. Tapping follows ``copy.deepcopy`` and works inside ``torch.compile(fullgraph=True)`` and DDP.

    Args:
        model: The network; ``model(images)`` returns logits [B, K].
        paths: Where to read; see :func:`find_taps` and :func:`user_taps`.
        signals: Which of ``"stages"``, ``"preact"`` and ``"pooled"`` to read.
        sample: Images of one batch [B, C, H, W] to decide now how token sequences and channels-last maps become
            [B, C, H, W]; without it the first forward pass decides.

    Returns:
        ``forward(images)`` returns :class:`~stillroom.models.signals.Signals`.

    Raises:
        InputError: An unknown signal or path, a signal the paths do not define, or (in ``forward``) a tap whose module
            was not called or gave no tensor.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> signals = Tapped(net, TapPaths(("1",), ("1:input",), classifier="3"), {"stages", "pooled"})(
        ...     torch.zeros(5, 1, 8, 8))
        >>> signals.logits.shape, signals.stages[0].shape, signals.pooled.shape
        (torch.Size([5, 2]), torch.Size([5, 4, 6, 6]), torch.Size([5, 144]))
    """

    def __init__(
        self,
        model: nn.Module,
        paths: TapPaths,
        signals: Iterable[str] = frozenset(),
        *,
        sample: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.paths = paths
        self.signals = frozenset(signals)
        self._taps = _wanted(model, paths, self.signals)
        self._sink = _Sink()
        self._layouts: tuple[Layout, ...] | None = None
        self._handles = [_hook(model, tap, _Catch(self._sink, slot)) for slot, tap in enumerate(self._taps)]
        if sample is not None and self._taps:
            with evaluating(model):
                self(sample)

    def forward(self, images: Tensor) -> Signals:
        """Return logits and the tapped features of the images [B, C, H, W]."""
        if not self._taps:
            return Signals(logits_of(self.model(images)))
        caught: list[object] = [None] * len(self._taps)
        self._sink.values = caught
        try:
            logits = logits_of(self.model(images))
        finally:
            self._sink.values = None
        tensors = [_tensor(value, tap) for value, tap in zip(caught, self._taps, strict=True)]
        pooled = tensors.pop() if "pooled" in self.signals else None
        if self._layouts is None:
            self._layouts = layouts_of(self.model, tensors, self._taps, images)
        maps = tuple(to_map(x, how) for x, how in zip(tensors, self._layouts, strict=True))
        split = len(self.paths.stages) if "stages" in self.signals else 0
        return Signals(logits, maps[:split], maps[split:], pooled)

    def release(self) -> nn.Module:
        """Take the hooks off and return the network as it was handed over."""
        for handle in self._handles:
            handle.remove()
        return self.model


def find_taps(model: nn.Module, sample: Tensor) -> TapPaths:
    """Choose where to tap a network.

    A network that defines ``tap_paths()`` is believed. Otherwise one dry run decides: for convolutional and other
    pyramids the last, outermost module at each resolution (at 1×1 only when a layer with parameters got there, not a
    pooling); for networks of one resolution up to four evenly spaced blocks. What stands before the first stage with no
    more than one convolution is the stem. The classifier is the last linear layer whose output is the logits.

    Args:
        model: The network.
        sample: Images [B, C, H, W] it accepts; B = 1 is enough.

    Raises:
        InputError: No feature map was found, or the network cannot run on the sample.
    """
    own = getattr(model, "tap_paths", None)
    if callable(own):
        paths = own()
        if not isinstance(paths, TapPaths):
            raise InputError(f"{type(model).__name__}.tap_paths() must return TapPaths, not {type(paths).__name__}")
        return paths
    found = trace(model, sample)
    if not found.stages:
        raise InputError(
            f"no feature map found in {type(model).__name__}; name the taps, e.g. stages=['layer1', 'layer2']"
        )
    return found


def user_taps(model: nn.Module, sample: Tensor, stages: Sequence[str], preact: Sequence[str] = ()) -> TapPaths:
    """Build the paths from names the user gives; the classifier is found as in :func:`find_taps`.

    Args:
        model: The network.
        sample: Images [B, C, H, W] it accepts; B = 1 is enough.
        stages: Module paths, shallow to deep; ``path:input`` reads a module's first input.
        preact: Empty, or one path for each stage: the map before its last activation.

    Raises:
        InputError: An unknown path, a tap that gives no feature map, or one that a later layer overwrites in place.
    """
    paths = TapPaths(tuple(stages), tuple(preact), classifier=linear_of_logits(model, sample))
    sink = _Sink()
    taps = _wanted(model, paths, frozenset({"stages", "preact"} if preact else {"stages"}))
    sink.values = [None] * len(taps)
    versions: dict[int, int] = {}

    class _Versioned(_Catch):
        def output(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            super().output(module, args, output)
            versions[self.slot] = output._version if isinstance(output, Tensor) else 0

        def input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
            super().input(module, args)
            versions[self.slot] = args[0]._version if args and isinstance(args[0], Tensor) else 0

    handles = [_hook(model, tap, _Versioned(sink, slot)) for slot, tap in enumerate(taps)]
    try:
        with evaluating(model):
            model(sample)
    finally:
        for handle in handles:
            handle.remove()
    tensors = [_tensor(value, tap) for value, tap in zip(sink.values, taps, strict=True)]
    for slot, (tensor, tap) in enumerate(zip(tensors, taps, strict=True)):
        if tensor._version != versions[slot]:
            raise InputError(
                f"tap {tap!r} is overwritten in place by a later layer; tap that layer or set inplace=False"
            )
    layouts_of(model, tensors, taps, sample)
    return paths


def _wanted(model: nn.Module, paths: TapPaths, signals: frozenset[str]) -> tuple[str, ...]:
    """List the taps of the signals (stages, preact, pooled) and check that their modules exist."""
    name = type(model).__name__
    for signal in sorted(signals):
        if signal not in SIGNALS:
            raise unknown_name("signal", signal, SIGNALS)
    if paths.preact and len(paths.preact) != len(paths.stages):
        raise InputError(
            f"{name} has {len(paths.preact)} preact taps for {len(paths.stages)} stages; give one for each"
        )
    taps: list[str] = []
    if "stages" in signals:
        if not paths.stages:
            raise InputError(f"stages are asked of {name}, but no stage is tapped; name them, e.g. stages=['layer1']")
        taps += paths.stages
    if "preact" in signals:
        if not paths.preact:
            raise InputError(f"maps before the activation are asked of {name}, which defines none; name them as preact")
        taps += paths.preact
    if "pooled" in signals:
        if paths.classifier is None:
            raise InputError(f"the pooled vector is asked of {name}, which has no final linear layer")
        taps.append(f"{paths.classifier}:input")
    known = {path for path, _ in model.named_modules(remove_duplicate=False) if path}
    for tap in taps:
        path = tap.removesuffix(":input")
        if path not in known:
            raise InputError(f"{name} has no module {path!r} to tap{nearest(path, known)}")
    return tuple(taps)


def _hook(model: nn.Module, tap: str, catch: _Catch) -> RemovableHandle:
    if tap.endswith(":input"):
        return model.get_submodule(tap.removesuffix(":input")).register_forward_pre_hook(catch.input)
    return model.get_submodule(tap).register_forward_hook(catch.output)


def _tensor(value: object, tap: str) -> Tensor:
    if value is None:
        raise InputError(f"tap {tap!r} stayed empty: its module was not called in the forward pass")
    if not isinstance(value, Tensor):
        raise InputError(f"tap {tap!r} gives a {type(value).__name__}, not a tensor; tap a module inside it")
    return value
