"""No method without its contract case."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest

from distillation.method_case import MethodCase
from stillroom.distillation.methods import FAMILIES, METHODS, method_class
from stillroom.distillation.offline._method import Method


@cache
def methods_with_a_case() -> frozenset[type[Method]]:
    """The method classes that the ``Test...`` subclasses of MethodCase in this folder make."""
    found = set()
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if file == Path(__file__):
            continue
        name = f"cases_of_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for attribute, value in vars(module).items():
            if attribute.startswith("Test") and isinstance(value, type) and issubclass(value, MethodCase):
                found.add(type(value().make()))
    return frozenset(found)


@pytest.mark.parametrize("name", sorted(FAMILIES["offline"]))
def test_the_method_keeps_the_contract_in_a_test(name: str) -> None:
    method = method_class(name)
    assert method in methods_with_a_case(), f"{method.__name__} has no MethodCase subclass named Test..."


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_card_bears_the_name_in_the_table(name: str) -> None:
    assert method_class(name).card.name == name
