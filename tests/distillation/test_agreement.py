"""Every golden function agrees, in value and gradient, with the specification written down a second time.

The golden files fix a few shapes and hyperparameters; here the adapters meet many others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from distillation import naive_logits, naive_maps, naive_relations
from distillation.agreement_cases import Example, examples
from golden.test_golden import ADAPTERS, Case

# Function -> the inputs whose gradients the golden files hold ("x." stands for all of x.0, x.1, ...).
TRAINED: dict[str, tuple[str, ...]] = {
    "kd_kl": ("logits_student",),
    "logits_matching": ("logits_student",),
    "output_regularisation": (),
    "dkd": ("logits_student",),
    "rld": ("logits_student",),
    "teacher_correction": ("logits_student",),
    "simkd": ("feat_student", "param.conv1.weight", "param.bn3.weight"),
    "semckd": ("feat_student.", "param.query.0.fc1.weight", "param.key.0.fc1.weight"),
    "dskd": ("logits_student", "aux_logits.", "aux_feat."),
    "fitnet": ("feat_student",),
    "attention_transfer": ("feat_student.",),
    "vid": ("feat_student", "param.log_scale"),
    "srrl": ("feat_student",),
    "reviewkd_hcl": ("feat_student.",),
    "reviewkd": ("feat_student.", "pooled_student"),
    "similarity_preserving": ("feat_student",),
    "pkt": ("feat_student",),
    "rkd": ("feat_student",),
    "correlation_congruence": ("embed_student",),
    "hkd": ("feat_student", "param.embed_teacher.weight", "param.gnn_student.weight"),
    "crd": ("feat_student", "param.embed_teacher.weight"),
}


def naive(function: str) -> Callable[..., dict[str, Tensor]]:
    for module in (naive_logits, naive_maps, naive_relations):
        if hasattr(module, function) and function in TRAINED:
            found: Callable[..., dict[str, Tensor]] = getattr(module, function)
            return found
    raise AssertionError(f"nothing to compare {function} with")


def expected(example: Example) -> dict[str, Tensor]:
    """What the second writing gives for the example, in float64."""
    function, inputs, options = example
    x = {name: value.clone() for name, value in inputs.items()}
    leaves = [
        name
        for name in x
        for start in TRAINED[function]
        if name == start or (start[-1] == "." and name.startswith(start))
    ]
    for name in leaves:
        x[name].requires_grad_()
    outputs = naive(function)(x, options)
    losses = {"loss": "grad"}
    if function == "teacher_correction":
        losses = {f"loss_{part}": f"grad_{part}" for part in ("swap", "rc", "revision")}
    results = {name: value.detach() for name, value in outputs.items()}
    for name in leaves:
        for loss, prefix in losses.items():
            gradient = torch.autograd.grad(outputs[loss], x[name], retain_graph=True, allow_unused=True)[0]
            if gradient is not None:  # HKD's graph layer, where a batch has no graph
                results[f"{prefix}.{name}"] = gradient
    return results


def compare(example: Example, dtype: torch.dtype, *, rtol: float, atol: float) -> None:
    function, inputs, options = example
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    wide = {name: value.double() if value.is_floating_point() else value for name, value in cast.items()}
    copies = {name: value.clone() for name, value in cast.items()}
    found = ADAPTERS["offline-kd", function](Case("offline-kd", function, dict(options), rtol, atol, copies, {}))
    shape = {name: tuple(value.shape) for name, value in inputs.items() if not name.startswith("param.")}
    for name, value in expected((function, wide, options)).items():
        assert name in found, f"{function} returns no {name} with {options}"
        result = found[name].detach()
        assert not result.is_floating_point() or result.dtype is dtype or name == "init_log_scale", name
        torch.testing.assert_close(
            result.double(), value.double(), rtol=rtol, atol=atol,
            msg=lambda text, name=name: f"{function}, {name}, {options}, {shape}: {text}",
        )  # fmt: skip


@cache
def by_function() -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for example in examples():
        found.setdefault(example[0], []).append(example)
    return found


def test_every_golden_function_of_the_methods_is_compared() -> None:
    functions = {function for system, function in ADAPTERS if system == "offline-kd"} - {"zoo", "schedule"}
    assert functions == set(TRAINED) == set(by_function())


@pytest.mark.parametrize("function", sorted(TRAINED))
def test_values_and_gradients_agree_in_double_precision(function: str) -> None:
    for example in by_function()[function]:
        compare(example, torch.float64, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("function", sorted(TRAINED))
def test_values_and_gradients_agree_in_single_precision(function: str) -> None:
    for example in by_function()[function]:
        compare(example, torch.float32, rtol=2e-4, atol=2e-5)
