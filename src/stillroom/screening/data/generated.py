"""A made-up set of drugs and targets, so that everything can be tried without any file."""

from __future__ import annotations

import numpy as np

from stillroom.screening._checks import in_range
from stillroom.screening.interactions import Interactions

__all__ = ["LEAST_DRUGS", "LEAST_TARGETS", "MOST_DRUGS", "draw_interactions"]

# Cores of well-known families of medicines, with two places for substituents.
SCAFFOLDS = {
    "quinazoline": "c1c({0})cc2ncnc(Nc3cccc({1})c3)c2c1",
    "benzodiazepine": "O=C1CN=C(c2ccccc2({1}))c2cc({0})ccc2N1",
    "tryptamine": "CN(C)CCc1c[nH]c2cc({0})cc({1})c12",
    "steroid": "CC12CCC3C(CC({1})C4=CC(=O)CCC34C)C1CCC2({0})",
    "sulphonamide": "NS(=O)(=O)c1cc({0})c(NCc2ccc({1})cc2)cc1",
    "propanolamine": "CC(C)NCC(O)COc1ccc({0})cc1({1})",
}
# Each is bound by its first atom; ring 9 is free in every scaffold.
SUBSTITUENTS = (
    *("F", "Cl", "Br", "C", "CC", "C(C)C", "O", "OC", "OCC", "N", "N(C)C", "C#N"),
    *("C(F)(F)F", "C(N)=O", "S(C)(=O)=O", "N9CCOCC9"),
)
RESIDUES = tuple("ACDEFGHIKLMNPQRSTVWY")

LENGTH = 120  # residues of a sequence
MUTATED = 0.3  # share of them that is drawn anew, next to the family's ancestor
WITHIN = 0.6  # probability that a drug and a target of matching families interact
NOISE = 0.02  # share of the pairs whose label is turned over
NEW = 0.1  # share of the drugs, and of the targets, without any interaction

VARIANTS = len(SUBSTITUENTS) ** 2
MOST_DRUGS = len(SCAFFOLDS) * VARIANTS
LEAST_DRUGS, LEAST_TARGETS = 12, 6


def draw_interactions(*, drugs: int = 60, targets: int = 30, generator: np.random.Generator) -> Interactions:
    """Draw drugs of six scaffolds, targets of six families, and which of them interact.

    A target of a family is bound by the drugs of one scaffold with probability 0.6, by others only through noise, which
    turns 2% of all labels over. A tenth of the drugs and of the targets, at least one each, have no interaction: they
    are new. Sequences of a family share an ancestor of 120 residues, of which each draws 30% anew.

    Args:
        drugs: Their number, 12 to 1536.
        targets: Their number, at least 6.
        generator: Source of everything drawn.

    Raises:
        InputError: A number is outside its range.

    Example:
        >>> data = draw_interactions(generator=np.random.default_rng(0))
        >>> data.shape, len(data.new_drugs) >= 6
        ((60, 30), True)
    """
    in_range("drugs", drugs, LEAST_DRUGS, MOST_DRUGS, whole=True)
    in_range("targets", targets, LEAST_TARGETS, whole=True)
    families = len(SCAFFOLDS)
    orders = [generator.permutation(VARIANTS) for _ in SCAFFOLDS]
    smiles, drug_names = [], []
    for i in range(drugs):
        round_, family = divmod(i, families)
        scaffold = list(SCAFFOLDS)[family]
        first, second = divmod(int(orders[family][round_]), len(SUBSTITUENTS))
        smiles.append(SCAFFOLDS[scaffold].format(SUBSTITUENTS[first], SUBSTITUENTS[second]))
        drug_names.append(f"{scaffold}-{round_ + 1}")
    ancestors = generator.integers(len(RESIDUES), size=(families, LENGTH))
    residues = ancestors[np.arange(targets) % families]
    anew = generator.random(residues.shape) < MUTATED
    residues = np.where(anew, generator.integers(len(RESIDUES), size=residues.shape), residues)
    matching = np.arange(drugs)[:, None] % families == np.arange(targets) % families
    labels = matching & (generator.random((drugs, targets)) < WITHIN)
    labels ^= generator.random((drugs, targets)) < NOISE
    # The first pair stays, so that something interacts whatever is drawn.
    labels[0, 0] = True
    labels[1 + generator.permutation(drugs - 1)[: max(1, round(NEW * drugs))]] = False
    labels[:, 1 + generator.permutation(targets - 1)[: max(1, round(NEW * targets))]] = False
    return Interactions(
        name="generated",
        labels=labels.astype(np.float64),
        drugs=drug_names,
        targets=[f"family{i % families + 1}-{i // families + 1}" for i in range(targets)],
        smiles=smiles,
        sequences=["".join(RESIDUES[residue] for residue in row) for row in residues],
        notes=["made up: drugs, targets and interactions are drawn at random and mean nothing"],
    )
