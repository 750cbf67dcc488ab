"""Dry runs: choose the stages of an unknown network, find its classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models._layout import layout_of
from stillroom.models.signals import TapPaths

__all__ = ["evaluating", "linear_of_logits", "logits_of", "trace"]

Grid = tuple[int, int]


class _Event(NamedTuple):
    """One module that ran exactly once."""

    path: str
    order: int  # of completion
    before: Grid | None  # resolution of its first input
    after: Grid | None  # resolution of its output
    weighted: int  # convolutions and linear layers completed so far


class _Run:
    """What a dry run saw: the events of all modules called exactly once, by path."""

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        self.model = model
        self.batch = sample.shape[0]
        self.image: Grid = (sample.shape[-2], sample.shape[-1])
        self.events: dict[str, _Event] = {}
        self.calls: dict[str, int] = {}
        self._before: dict[str, Grid | None] = {}
        self._order = self._weighted = 0
        handles = []
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_pre_hook(lambda _, args, path=path: self._start(path, args)))
                handles.append(module.register_forward_hook(lambda m, _, out, path=path: self._end(path, m, out)))
        try:
            with evaluating(model):
                model(sample)
        finally:
            for handle in handles:
                handle.remove()
        self.events = {path: event for path, event in self.events.items() if self.calls[path] == 1}

    def _grid(self, value: object) -> Grid | None:
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != self.batch:
            return None  # attention windows, for one, are folded into the batch
        layout = layout_of(self.model, value.shape, self.image)
        return layout.grid if layout else None

    def _start(self, path: str, args: tuple[Any, ...]) -> None:
        self.calls[path] = self.calls.get(path, 0) + 1
        self._before[path] = self._grid(args[0]) if args else None

    def _end(self, path: str, module: nn.Module, output: object) -> None:
        self._order += 1
        self._weighted += isinstance(module, nn.Conv2d | nn.Linear)
        self.events[path] = _Event(path, self._order, self._before[path], self._grid(output), self._weighted)

    def trunk(self) -> list[_Event]:
        """List the outermost modules that lie one after the other between image and logits."""
        events: list[_Event] = []
        self._walk("", self.model, events)
        return sorted(events, key=lambda event: event.order)

    def _walk(self, path: str, module: nn.Module, events: list[_Event]) -> None:
        for name, child in module.named_children():
            at = f"{path}.{name}" if path else name
            event = self.events.get(at)
            if at in self.calls and not self._spans_stages(at, child):
                if event is not None:
                    events.append(event)
            else:
                self._walk(at, child, events)

    def strides_to_one(self, event: _Event) -> bool:
        """Tell whether a module comes from a larger map to 1×1 by its layers, not by a global pool at its end."""
        inside = [inner for at, inner in self.events.items() if at.startswith(event.path + ".")]
        last = max(inside, key=lambda inner: inner.order, default=event)
        pools = "Adaptive" in type(self.model.get_submodule(last.path)).__name__
        return event.before not in (None, (1, 1)) and not pools

    def _spans_stages(self, path: str, module: nn.Module) -> bool:
        """Tell a container of several stages (walk into it) from a stage, block or layer (take it whole)."""
        if type(module) is nn.Sequential:
            learned = (self.events.get(f"{path}.{name}") for name, child in module.named_children() if _learns(child))
            return len({event.after for event in learned if event and event.after}) > 1
        inside = {event.after for at, event in self.events.items() if at.startswith(path + ".")}
        own = self.events.get(path)
        # A block that changes the resolution knows two; 1×1 is the squeeze of squeeze-and-excitation.
        return len((inside | {own.before if own else None}) - {None, (1, 1)}) > 2


def _learns(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules())


def trace(model: nn.Module, sample: Tensor) -> TapPaths:
    """Return stages, stem and classifier of a network; ``stages`` is empty when there is none."""
    run = _Run(model, sample)
    trunk = run.trunk()
    stages = _pyramid(run, trunk)
    stem: _Event | None = None
    if len(stages) > 1 and _is_stem(model, stages):
        stem, *stages = stages
    if len(stages) == 1:
        stages = _blocks(run, stages[0]) or stages
    if stages and stem is None:
        early = [
            e for e in trunk if e.after and e.weighted <= 1 and e.order < stages[0].order and e.path != stages[0].path
        ]
        stem = early[-1] if early else None
    return TapPaths(
        stages=tuple(event.path for event in stages),
        classifier=linear_of_logits(model, sample),
        stem=stem.path if stem else None,
    )


def _pyramid(run: _Run, trunk: list[_Event]) -> list[_Event]:
    """Take the last event at each resolution, as long as resolutions fall; pooling to a vector ends the pyramid."""
    last: dict[Grid, _Event] = {}
    learned: set[Grid] = set()  # resolutions at which a layer with parameters worked: a pool alone makes no stage
    for event in trunk:
        module = run.model.get_submodule(event.path)
        has_parameters = any(True for _ in module.parameters())
        if event.after is None or isinstance(module, nn.Identity):
            continue
        if event.after == (1, 1):
            if "Adaptive" in type(module).__name__:
                break
            if (1, 1) not in last and not (has_parameters and run.strides_to_one(event)):
                continue
        if last and event.after[0] * event.after[1] > min(h * w for h, w in last):
            continue
        last[event.after] = event
        if has_parameters:
            learned.add(event.after)
    return [event for grid, event in last.items() if grid in learned]


def _is_stem(model: nn.Module, stages: list[_Event]) -> bool:
    """Tell whether the first resolution holds one convolution, or single layers only where the others hold blocks."""
    has_children = [any(True for _ in model.get_submodule(event.path).children()) for event in stages]
    return stages[0].weighted <= 1 or (not has_children[0] and all(has_children[1:]))


def _blocks(run: _Run, only: _Event) -> list[_Event]:
    """Space up to four taps evenly over the longest row of alike blocks at the one resolution."""
    rows: dict[tuple[str, type[nn.Module]], list[_Event]] = {}
    for event in run.events.values():
        module = run.model.get_submodule(event.path)
        parent, _, name = event.path.rpartition(".")
        if name[-1].isdigit() and event.after == only.after and any(True for _ in module.children()):
            rows.setdefault((parent, type(module)), []).append(event)
    longest: list[_Event] = max(rows.values(), key=lambda row: len(row), default=[])
    row = sorted(longest, key=lambda event: event.order)
    count = min(4, len(row))
    return [row[-((i + 1) * -len(row) // count) - 1] for i in range(count)] if count > 1 else []


def linear_of_logits(model: nn.Module, sample: Tensor) -> str | None:
    """Return the path of the last ``nn.Linear`` whose output is the logits, or ``None``."""
    outputs: dict[str, tuple[Tensor, int]] = {}

    def record(path: str, output: Tensor) -> None:
        outputs.pop(path, None)  # keep the order of the last calls
        outputs[path] = (output, output._version)

    handles = [
        module.register_forward_hook(lambda _, __, output, path=path: record(path, output))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with evaluating(model):
            logits = logits_of(model(sample))
    finally:
        for handle in handles:
            handle.remove()
    for path, (output, version) in reversed(outputs.items()):
        # The same memory, never written since: equal values could be chance (all zero, for one).
        if output.data_ptr() == logits.data_ptr() and output.shape == logits.shape and logits._version == version:
            return path
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode without gradients, then give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def logits_of(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise InputError(
            f"the network returns a {type(output).__name__}; it must return the logits as one tensor [B, K]"
        )
    return output
