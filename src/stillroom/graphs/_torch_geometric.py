"""The classes of PyTorch Geometric the graph data are made of, or the line that says how to install it."""

from __future__ import annotations

import warnings

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it uses torch.jit while it is imported; no user can mend that
        import torch_geometric.nn as layers
        from torch_geometric.data import Data
        from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput
except ModuleNotFoundError as error:
    from stillroom.errors import MissingExtraError

    if error.name != "torch_geometric":
        raise
    raise MissingExtraError("torch-geometric", "graphs") from None

__all__ = ["BaseSampler", "Data", "NodeSamplerInput", "SamplerOutput", "layers"]
