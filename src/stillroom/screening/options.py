"""What a user can say about drug-target data: which set, what counts as an interaction, how similarities are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from stillroom.screening._checks import in_range, one_of
from stillroom.screening.data.generated import LEAST_DRUGS, LEAST_TARGETS, MOST_DRUGS

__all__ = ["DrugKernel", "Interacts", "OnBadRows", "ScreeningDataOptions", "TargetKernel"]

DrugKernel = Literal["auto", "given", "morgan", "maccs"]
TargetKernel = Literal["auto", "given", "smith-waterman", "spectrum", "mismatch"]
Interacts = Literal["at-most", "at-least"]
OnBadRows = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class ScreeningDataOptions:
    """Options of one set of drug-target pairs, as ``load_interactions`` and ``with_similarities`` take them.

    Args:
        name: generated (made up, needs no file), nr, gpcr, ic or e (the gold standard, in the folder dti-gold-standard
            among the data sets), gold:FOLDER/PREFIX for files of its layout elsewhere, davis:FOLDER, kiba:FOLDER,
            chembl:FILE, bindingdb:FILE, or the path of an own table, .csv or .tsv, with columns smiles, sequence and
            label (0, 1, or empty for pairs to be predicted), and perhaps drug and target with their names.
        target_similarity_file: Similarities of the targets in the gold standard's layout: tab-separated, names in the
            first row and column; for e, which comes without.
        fasta: Sequences of the targets, in place of those the data bring; the first word of a header is the target's
            name, KEGG's colon left out or not.
        threshold: Affinity from which a pair interacts: at most 30 nM for davis, at most 1000 nM for chembl and
            bindingdb (a pChEMBL value of at least 6), at least 12.1 for kiba unless given. An own table with a column
            affinity in place of label needs it.
        interacts: Whether affinities of an own table interact at-most the threshold (Kd, Ki, IC50) or at-least (pKd).
        columns: Where an own table names its columns differently: smiles=NAME, and so on.
        on_bad_rows: What happens to rows of an own table that cannot be used: refuse the table, or skip and count them.
        drug_kernel: Similarity of drugs: given by the data, or computed from fingerprints, morgan or maccs; auto takes
            the given one where there is one, else morgan.
        target_kernel: Similarity of targets: given by the data, or computed from sequences, smith-waterman, spectrum or
            mismatch; auto takes the given one where there is one, else smith-waterman.
        allow_pickle: Let davis and kiba read the affinities from the file Y, which is a pickle; only arrays of numbers
            are built from it.
        seed: Seed of the generated set.
        drugs: Drugs of the generated set.
        targets: Targets of the generated set.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> ScreeningDataOptions(name="nr").drug_kernel
        'auto'
    """

    name: str = "generated"
    target_similarity_file: Path | None = None
    fasta: Path | None = None
    threshold: float | None = None
    interacts: Interacts = "at-most"
    columns: tuple[str, ...] = ()
    on_bad_rows: OnBadRows = "refuse"
    drug_kernel: DrugKernel = "auto"
    target_kernel: TargetKernel = "auto"
    allow_pickle: bool = False
    seed: int = 0
    drugs: int = 60
    targets: int = 30

    def __post_init__(self) -> None:
        """Refuse values no data set could honour."""
        one_of("data.interacts", self.interacts, get_args(Interacts))
        one_of("data.on_bad_rows", self.on_bad_rows, get_args(OnBadRows))
        one_of("data.drug_kernel", self.drug_kernel, get_args(DrugKernel))
        one_of("data.target_kernel", self.target_kernel, get_args(TargetKernel))
        if self.threshold is not None:
            in_range("data.threshold", self.threshold)
        in_range("data.seed", self.seed, 0, whole=True)
        in_range("data.drugs", self.drugs, LEAST_DRUGS, MOST_DRUGS, whole=True)
        in_range("data.targets", self.targets, LEAST_TARGETS, whole=True)
