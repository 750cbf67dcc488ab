"""The one table of distillation methods: name -> where its class lives, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, Literal, Protocol

from stillroom.cards import Card
from stillroom.errors import unknown_name

__all__ = ["FAMILIES", "METHODS", "AnyMethod", "Family", "family_of", "method_class"]

Family = Literal["offline", "online", "multi_teacher", "data_free", "translation"]


class AnyMethod(Protocol):
    """What every method is: a class with a card, whose keyword-only constructor takes its hyperparameters."""

    card: ClassVar[Card]
    warmup_epochs: int


FAMILIES: dict[Family, dict[str, str]] = {
    "offline": {
        "kd": "kd:KD",
        "lskd": "lskd:LSKD",
        "dkd": "dkd:DKD",
        "rld": "rld:RLD",
        "simkd": "simkd:SimKD",
        "semckd": "semckd:SemCKD",
        "dskd": "dskd:DSKD",
        "hkd": "hkd:HKD",
        "fitnet": "fitnet:FitNet",
        "at": "at:AT",
        "sp": "sp:SP",
        "pkt": "pkt:PKT",
        "rkd": "rkd:RKD",
        "vid": "vid:VID",
        "crd": "crd:CRD",
        "srrl": "srrl:SRRL",
        "reviewkd": "reviewkd:ReviewKD",
        "cc": "cc:CC",
    },
    "online": {
        "okddip": "okddip:OKDDip",
        "okdmde": "okdmde:OKDMDE",
        "dml": "dml:DML",
        "one": "one:ONE",
        "clilr": "clilr:CLILR",
        "independent": "independent:Independent",
    },
    "multi_teacher": {
        "camkd": "camkd:CAMKD",
        "mmkd": "mmkd:MMKD",
        "aver": "aver:AVER",
        "ebkd": "ebkd:EBKD",
        "aekd": "aekd:AEKD",
        "fitnet_mkd": "fitnet_mkd:FitNetMKD",
    },
    "data_free": {
        "csd": "csd:CSD",
        "cmi": "cmi:CMI",
        "deepinversion": "deepinversion:DeepInversion",
        "dafl": "dafl:DAFL",
        "zskt": "zskt:ZSKT",
    },
    "translation": {
        "kt": "kt:KT",
    },
}

METHODS: dict[str, str] = {
    name: f"stillroom.distillation.{family}.{place}"
    for family, table in FAMILIES.items()
    for name, place in table.items()
}


def method_class(name: str) -> type[Any]:
    """Return the class behind a method's short name.

    Raises:
        InputError: The name is not in the table; the nearest known name is suggested.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    module, attribute = METHODS[name].split(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def family_of(name: str) -> Family:
    """Return the family of a method's short name; methods of one's own are offline ones.

    Example:
        >>> family_of("okddip"), family_of("my_own")
        ('online', 'offline')
    """
    return next((family for family, table in FAMILIES.items() if name in table), "offline")
