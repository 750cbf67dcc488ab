"""Structures as inline SVG."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from stillroom.errors import InputError
from stillroom.screening.structures import ATOM_COLOURS, structure_svg

DRUGS = ("CCO", "CN1CCN(CC1)Cc2ccc(cc2)C(=O)Nc3ccc(C)c(c3)Nc4nccc(n4)c5cccnc5", "[Na+].[Cl-]", "F/C(Br)=C(\\I)P[Se]S")


@pytest.mark.parametrize("smiles", DRUGS)
def test_a_picture_is_one_svg_element_that_needs_nothing_from_outside(smiles: str) -> None:
    drawn = structure_svg(smiles, width=200, height=100)
    root = ElementTree.fromstring(drawn)
    assert root.tag == "svg"
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("200", "100", "0 0 200 100")
    assert {element.tag for element in root.iter()} == {"svg", "path"}
    assert root.get("aria-label") == f"structure of {smiles}"
    assert not any({"id", "class", "href"} & set(element.keys()) for element in root.iter())


@pytest.mark.parametrize("smiles", DRUGS)
def test_a_picture_has_only_the_colours_of_the_page_and_of_the_atoms(smiles: str) -> None:
    found = set()
    for element in ElementTree.fromstring(structure_svg(smiles)).iter("path"):
        style = dict(part.split(":") for part in element.get("style", "").split(";") if ":" in part)
        found |= {style.get("stroke"), style.get("fill"), element.get("fill")}
    assert found - {None, "none"} <= {"currentColor", *ATOM_COLOURS.values()}
    assert "currentColor" in found


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#15181c"])
@pytest.mark.parametrize("colour", sorted(set(ATOM_COLOURS.values())))
def test_atoms_stand_out_from_light_and_dark_pages(page: str, colour: str) -> None:
    lighter, darker = sorted((luminance(page) + 0.05, luminance(colour) + 0.05), reverse=True)
    assert lighter / darker >= 3.5


def test_the_same_structure_gives_the_same_bytes() -> None:
    assert structure_svg(DRUGS[1]) == structure_svg(DRUGS[1])


@pytest.mark.parametrize(
    ("smiles", "options", "message"),
    [
        ("C1CC", {}, "'C1CC' is no SMILES"),
        ("", {}, "'' is no SMILES"),
        ('C"><script>', {}, "is no SMILES"),
        ("CCO", {"width": 0}, "width"),
        ("CCO", {"height": 1.5}, "height"),
    ],
)
def test_what_cannot_be_drawn_is_refused(smiles: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        structure_svg(smiles, **options)
