"""The contract of the methods that read logits only."""

from __future__ import annotations

from distillation.method_case import MethodCase
from stillroom.distillation.offline._method import Method
from stillroom.distillation.offline.kd import KD


class TestKD(MethodCase):
    bad_arguments = ({"temperature": 0.0}, {"temperature": -1.0}, {"temperature": float("nan")})

    def make(self) -> Method:
        return KD(temperature=4.0)
