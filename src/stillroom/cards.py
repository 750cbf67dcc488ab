"""Method cards: where a method comes from and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Card", "Paper", "Quirk"]

Standing = Literal["verified", "derived", "reconstructed"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The publication a method comes from."""

    title: str
    authors: str
    venue: str
    year: int
    identifier: str  # "arXiv:2203.14001", "doi:10...", or the pages


@dataclass(frozen=True, kw_only=True)
class Quirk:
    """One line of the ledger: where the released code does something else than the paper says."""

    paper: str
    code: str
    default: Literal["paper", "code", "neither"]  # which of the two stillroom does out of the box
    option: str = ""  # how to get the other one; empty when it is a plain defect nobody wants back


@dataclass(frozen=True, kw_only=True)
class Card:
    """What every method class carries as ``card``.

    ``standing`` is *verified* (agrees with the released code on golden numbers), *derived* (from published
    equations, not compared with code) or *reconstructed* (from the abstract only).
    """

    name: str  # lower case short name, the one the command line takes
    summary: str  # one sentence
    papers: tuple[Paper, ...]
    standing: Standing
    ledger: tuple[Quirk, ...] = ()
