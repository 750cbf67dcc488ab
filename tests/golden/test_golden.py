"""Run every golden file through the adapter of its function.

The folder is named by ``STILLROOM_GOLDEN`` (default: the copies in ``tests/golden/data``). One adapter per
(system, function) turns a case's inputs and hyperparameters into the outputs of the same names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("STILLROOM_GOLDEN", HERE / "data"))
NOT_BUILT = frozenset((HERE / "not_built.txt").read_text().split())
FILES = sorted(FOLDER.glob("*/*.safetensors"))


@dataclass(frozen=True)
class Case:
    """One golden file: inputs without their ``in.`` prefix, expected outputs without ``out.``."""

    system: str
    function: str
    hyperparameters: dict[str, Any]
    rtol: float
    atol: float
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


Adapter = Callable[[Case], dict[str, Tensor]]


def load_case(file: Path) -> Case:
    with safe_open(file, "pt") as handle:
        about = json.loads(handle.metadata()["case"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    return Case(
        system=about["system"],
        function=about["function"],
        hyperparameters=about["hyperparameters"],
        rtol=about["rtol"],
        atol=about["atol"],
        inputs={name.removeprefix("in."): value for name, value in tensors.items() if name.startswith("in.")},
        outputs={name.removeprefix("out."): value for name, value in tensors.items() if name.startswith("out.")},
    )


def load_adapters() -> dict[tuple[str, str], Adapter]:
    """Collect ``ADAPTERS`` (function -> adapter) of every module in ``adapters/``, keyed by its ``SYSTEM``."""
    adapters: dict[tuple[str, str], Adapter] = {}
    for file in sorted((HERE / "adapters").glob("[a-z]*.py")):
        name = f"golden_adapters_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for function, adapter in module.ADAPTERS.items():
            assert (module.SYSTEM, function) not in adapters, f"two adapters for {module.SYSTEM}/{function}"
            adapters[module.SYSTEM, function] = adapter
    return adapters


ADAPTERS = load_adapters()


def test_the_golden_folder_holds_files() -> None:
    assert FILES, f"no golden files under {FOLDER}"


def test_systems_marked_not_built_have_no_adapter() -> None:
    built = {system for system, _ in ADAPTERS}
    assert not built & NOT_BUILT, "take these out of not_built.txt"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_golden(file: Path) -> None:
    case = load_case(file)
    if case.system in NOT_BUILT:
        pytest.skip(f"{case.system} is listed in not_built.txt")
    adapter = ADAPTERS.get((case.system, case.function))
    assert adapter is not None, f"no adapter for {case.system}/{case.function}"
    results = adapter(case)
    missing = sorted(set(case.outputs) - set(results))
    assert not missing, f"the adapter returned no {missing}"
    for name, expected in case.outputs.items():
        result = results[name].detach()
        assert result.shape == expected.shape, f"{name}: {tuple(result.shape)} instead of {tuple(expected.shape)}"
        torch.testing.assert_close(
            result.to(torch.float64),
            expected.to(torch.float64),
            rtol=case.rtol,
            atol=case.atol,
            equal_nan=True,  # the contract's; NaN where a number is expected still fails
            msg=lambda text, name=name: f"{name}: {text}",
        )
