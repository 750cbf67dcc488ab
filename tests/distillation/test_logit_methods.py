"""The contract of the methods that read logits only."""

from __future__ import annotations

from distillation.method_case import MethodCase
from stillroom.distillation.offline._method import Method
from stillroom.distillation.offline.dkd import DKD
from stillroom.distillation.offline.kd import KD
from stillroom.distillation.offline.lskd import LSKD
from stillroom.distillation.offline.rld import RLD

BAD_TEMPERATURES = ({"temperature": 0.0}, {"temperature": -1.0}, {"temperature": float("nan")})
BAD_WEIGHTS = ({"alpha": -1.0}, {"beta": float("inf")}, {"alpha": 0.0, "beta": 0.0}, {"warmup_epochs": -1})


class TestKD(MethodCase):
    bad_arguments = BAD_TEMPERATURES

    def make(self) -> Method:
        return KD()


class TestLSKD(MethodCase):
    bad_arguments = BAD_TEMPERATURES

    def make(self) -> Method:
        return LSKD()


class TestDKD(MethodCase):
    bad_arguments = BAD_TEMPERATURES + BAD_WEIGHTS

    def make(self) -> Method:
        return DKD()


class TestStandardisedDKD(TestDKD):
    def make(self) -> Method:
        return DKD(alpha=9.0, beta=72.0, temperature=2.0, standardise=True)


class TestRLD(MethodCase):
    bad_arguments = (*BAD_TEMPERATURES, *BAD_WEIGHTS, {"alpha_temperature": 0.0})

    def make(self) -> Method:
        return RLD()


class TestStandardisedRLD(TestRLD):
    def make(self) -> Method:
        return RLD(alpha=9.0, beta=72.0, temperature=2.0, alpha_temperature=2.0, standardise=True)


class TestTwoClasses(TestRLD):
    num_classes = 2
