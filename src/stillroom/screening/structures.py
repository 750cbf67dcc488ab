"""Pictures of drugs for pages: structures as inline SVG, readable in the light and in the dark."""

from __future__ import annotations

import html
import re
import reprlib
from typing import Any

from stillroom.errors import InputError
from stillroom.screening._checks import in_range
from stillroom.screening.kernels.chemical import parsed_smiles

__all__ = ["structure_svg"]

# Atomic number -> colour in the customary hue, of a lightness that stands out from white and from near black alike.
# All other atoms and the bonds take the colour of the page's text.
ATOM_COLOURS = {
    7: "#4477DD",
    8: "#DD4433",
    9: "#1F8F4D",
    15: "#B86A14",
    16: "#94791A",
    17: "#1F8F4D",
    35: "#B0603A",
    53: "#9B59C9",
}


def structure_svg(smiles: str, *, width: int = 220, height: int = 160) -> str:
    """Draw a structure as an ``<svg>`` element for a self-contained page.

    The background is transparent, carbon and bonds take the colour of the text around, and nothing in the element has
    a name, so that any number of them fit on a page. Drawn by RDKit.

    Args:
        smiles: The structure.
        width: Pixels.
        height: Pixels.

    Raises:
        InputError: It is no SMILES, or a side is outside its range.
        MissingExtraError: RDKit is not installed.

    Example:
        >>> structure_svg("CCO")[:44]
        '<svg width="220" height="160" viewBox="0 0 2'
    """
    in_range("width", width, 20, 10_000, whole=True)
    in_range("height", height, 20, 10_000, whole=True)
    molecule = parsed_smiles([smiles])[0]
    if molecule is None:
        raise InputError(f"{reprlib.repr(smiles)} is no SMILES; mend it")
    from rdkit.Chem.Draw import rdMolDraw2D

    drawer = rdMolDraw2D.MolDraw2DSVG(int(width), int(height))
    options: Any = drawer.drawOptions()  # RDKit's stubs take its properties for read-only
    options.clearBackground = False
    options.fixedBondLength = 28.0  # small molecules are not blown up
    options.bondLineWidth = 1.4
    options.useBWAtomPalette()
    options.updateAtomPalette(
        {number: tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)) for number, colour in ATOM_COLOURS.items()}
    )
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, molecule)
    drawer.FinishDrawing()
    drawn = drawer.GetDrawingText().partition("<!-- END OF HEADER -->")[2]
    drawn = re.sub(r" class='[^']*'", "", drawn).replace("#000000", "currentColor")
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{html.escape(f"structure of {smiles}")}">{drawn.strip()}'
