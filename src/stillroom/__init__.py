"""stillroom: trained models made small, few-step, robust and safe to ship.

The names below load what they need on first use, so that importing the package costs nothing beyond Python itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.data.options import DataOptions as DataOptions
    from stillroom.distillation.bench import bench as bench
    from stillroom.distillation.distill import distill as distill
    from stillroom.models.store import load_model as load_model
    from stillroom.training.recipe import Recipe as Recipe

__version__ = "0.1.0"
__all__ = ["DataOptions", "Recipe", "bench", "distill", "load_model"]

_HOMES = {
    "DataOptions": "stillroom.data.options",
    "Recipe": "stillroom.training.recipe",
    "bench": "stillroom.distillation.bench",
    "distill": "stillroom.distillation.distill",
    "load_model": "stillroom.models.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stillroom' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
