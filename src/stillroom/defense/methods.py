"""The one table of what defends and what attacks: name -> where its class lives, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

__all__ = ["KINDS", "METHODS", "Kind", "kind_of", "method_class"]

Kind = Literal["defence", "attack"]

KINDS: dict[Kind, dict[str, str]] = {
    "defence": {
        "add": "dadd:ADD",
        "linked": "linking:Linked",
        "prada": "prada:PRADA",
        "energy": "energy:Energy",
        "adaptive_misinformation": "adaptive_misinformation:AdaptiveMisinformation",
        "edm": "edm:EDM",
        "mad": "mad:MAD",
        "reverse_sigmoid": "reverse_sigmoid:ReverseSigmoid",
        "gaussian_noise": "noise:GaussianNoise",
        "logit_noise": "noise:LogitNoise",
        "rounding": "labels_only:Rounding",
        "top_k": "labels_only:TopK",
    },
    "attack": {
        "knockoff": "attacks.knockoff:Knockoff",
        "jbda": "attacks.jbda:JBDA",
        "dfme": "attacks.dfme:DFME",
        "maze": "attacks.maze:MAZE",
        "disguide": "attacks.disguide:DisGUIDE",
    },
}

METHODS: dict[str, str] = {
    name: f"stillroom.defense.{place}" for table in KINDS.values() for name, place in table.items()
}


def method_class(name: str) -> type[Any]:
    """Return the class behind a name of :data:`METHODS`.

    Example:
        >>> method_class("add").card.standing
        'verified'
    """
    module, attribute = METHODS[name].split(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def kind_of(name: str) -> Kind:
    """Say whether a name of :data:`METHODS` defends or attacks."""
    return "defence" if name in KINDS["defence"] else "attack"
