"""Cut a network in two at a tap: what comes before, and what comes after."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from stillroom.errors import InputError, nearest
from stillroom.models._trace import evaluating, logits_of
from stillroom.models.weights import first_line

__all__ = ["Split", "split"]

_REQUIRED = inspect.Parameter.empty


class Split(NamedTuple):
    """Two parts with ``branch(trunk(images))`` equal to ``model(images)``."""

    trunk: fx.GraphModule
    branch: fx.GraphModule


def split(model: nn.Module, at: str, sample: Tensor) -> Split:
    """Cut a network behind a module, or in front of it.

    Both parts hold the network's own submodules under their own paths, not copies: training a part trains the network,
    and the state of both together is the network's. Only the forward functions of the modules that contain the cut are
    traced, so whatever stands inside the others is of no concern.

    Args:
        model: The network.
        at: Path of the module whose output passes from trunk to branch; ``path:input`` cuts in front of it.
        sample: Images [B, C, H, W] it accepts, to compare the two halves with the whole; B = 1 is enough.

    Raises:
        InputError: There is no such module, the network's forward function cannot be traced, or the layers behind the
            cut also read what lies before it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> trunk, branch = split(net, "1", torch.zeros(1, 1, 8, 8))
        >>> trunk(torch.zeros(2, 1, 8, 8)).shape, list(branch.state_dict())
        (torch.Size([2, 4, 6, 6]), ['3.weight', '3.bias'])
    """
    path = at.removesuffix(":input")
    known = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    if path not in known:
        raise InputError(f"{type(model).__name__} has no module {path!r} to be cut at{nearest(path, known)}")
    graph = _traced(model, path)
    called = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
    if not called:
        raise InputError(f"{type(model).__name__} cannot be cut at {at!r}: that module is not called")
    cut = called[-1].args[0] if at.endswith(":input") else called[-1]
    if not isinstance(cut, fx.Node):
        raise InputError(f"{type(model).__name__} cannot be cut at {at!r}: it takes no tensor there")
    result = Split(_part(model, graph, None, cut), _part(model, graph, cut, None))
    with evaluating(model):
        whole, again = logits_of(model(sample)), logits_of(result.branch(result.trunk(sample)))
    # Without a cut that all information passes, the two could only agree by accident.
    if whole.shape != again.shape or not torch.allclose(whole, again, rtol=1e-4, atol=1e-5):
        raise InputError(f"{type(model).__name__} cannot be cut at {at!r}: its halves answer otherwise than the whole")
    return result


class _Tracer(fx.Tracer):
    """Looks only into modules that contain the cut."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.path.startswith(module_qualified_name + ".")


def _traced(model: nn.Module, path: str) -> fx.Graph:
    before = [(module, module.training) for module in model.modules()]
    graphs: list[fx.Graph] = []
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.default is not _REQUIRED}
    try:
        for training in (True, False):
            model.train(training)
            graphs.append(_Tracer(path).trace(model, concrete_args=dict(defaults)))
    except Exception as error:  # whatever the network's own code raises when it meets a placeholder
        raise InputError(
            f"{type(model).__name__} cannot be cut at {path!r}: its forward function cannot be traced "
            f"({first_line(error)})"
        ) from error
    finally:
        for module, training in before:
            module.training = training
    if graphs[0].python_code("self").src != graphs[1].python_code("self").src:
        raise InputError(
            f"{type(model).__name__} cannot be cut at {path!r}: around it, its forward function does something else in "
            "training than in evaluation"
        )
    return graphs[0]


def _part(model: nn.Module, graph: fx.Graph, start: fx.Node | None, end: fx.Node | None) -> fx.GraphModule:
    """Return the nodes from ``start`` (the input when None) that ``end`` (the output when None) needs."""
    output = next(node for node in graph.nodes if node.op == "output")
    needed: set[fx.Node] = set()
    waiting: list[fx.Node] = [end] if end is not None else list(output.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [] if node is start else node.all_input_nodes
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if start is not None:
        copies[start] = part.placeholder("features")
    for node in graph.nodes:
        if node not in needed or node is start:
            continue
        if node.op == "placeholder" and start is not None:
            raise InputError(
                f"{type(model).__name__} cannot be cut behind {start.target!r}: later layers also read what lies "
                "before; cut at the end of a stage"
            )
        copies[node] = part.node_copy(node, lambda old: copies[old])
    result: Any = copies[end] if end is not None else fx.map_arg(output.args[0], lambda old: copies[old])
    part.output(result)
    part.lint()
    return fx.GraphModule(model, part, class_name=type(model).__name__)
