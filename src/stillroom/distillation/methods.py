"""The one table of distillation methods: name -> where its class lives, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stillroom.errors import unknown_name

if TYPE_CHECKING:
    from stillroom.distillation.offline._method import Method

__all__ = ["METHODS", "method_class"]

_OFFLINE = "stillroom.distillation.offline"

METHODS: dict[str, str] = {
    "kd": f"{_OFFLINE}.kd:KD",
    "lskd": f"{_OFFLINE}.lskd:LSKD",
    "dkd": f"{_OFFLINE}.dkd:DKD",
    "rld": f"{_OFFLINE}.rld:RLD",
    "simkd": f"{_OFFLINE}.simkd:SimKD",
    "semckd": f"{_OFFLINE}.semckd:SemCKD",
    "dskd": f"{_OFFLINE}.dskd:DSKD",
    "hkd": f"{_OFFLINE}.hkd:HKD",
    "fitnet": f"{_OFFLINE}.fitnet:FitNet",
    "at": f"{_OFFLINE}.at:AT",
    "sp": f"{_OFFLINE}.sp:SP",
    "pkt": f"{_OFFLINE}.pkt:PKT",
    "rkd": f"{_OFFLINE}.rkd:RKD",
    "vid": f"{_OFFLINE}.vid:VID",
    "crd": f"{_OFFLINE}.crd:CRD",
    "srrl": f"{_OFFLINE}.srrl:SRRL",
    "reviewkd": f"{_OFFLINE}.reviewkd:ReviewKD",
    "cc": f"{_OFFLINE}.cc:CC",
}


def method_class(name: str) -> type[Method]:
    """Return the class behind a method's short name.

    Raises:
        InputError: The name is not in the table; the nearest known name is suggested.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    module, attribute = METHODS[name].split(":")
    found: type[Method] = getattr(import_module(module), attribute)
    return found
