"""Which claims of the geometric papers hold for which model: one study a model, as Markdown tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from stillroom.diffusion.geometry.claims import Claim
from stillroom.diffusion.geometry.report import study_trajectories
from stillroom.diffusion.load import load_denoiser
from stillroom.reports.tables import Cell, Column, Table, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    text = "models as for stillroom diffusion trajectory; optimal:DATA#N takes the first N training images"
    parser.add_argument(
        "models", nargs="*", default=["optimal:mnist#5000", "optimal:cifar10#5000", "digits"], help=text
    )
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default=None, help="training data of the models, where they do not name it")
    parser.add_argument("--data_images", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/geometry"))
    options = parser.parse_args()

    studies: dict[str, list[Claim]] = {}
    for number, spec in enumerate(options.models):
        name, _, images = spec.partition("#")
        model = load_denoiser(name, device=options.device, images=int(images) if images else None)
        closed = name.startswith("optimal:")
        studies[spec] = study_trajectories(
            model,
            samples=options.samples,
            steps=options.steps,
            data=None if closed else options.data,
            data_images=None if closed else options.data_images,
            seed=options.seed,
            device=options.device,
            config={"model": name, "images": int(images) if images else None},
            out=options.out / f"{number}-{Path(name).name.replace(':', '-')}",
            overwrite=True,
        ).claims
    statements = {claim.name: claim.statement for claims in studies.values() for claim in claims}
    held = {spec: {claim.name: claim.holds for claim in claims} for spec, claims in studies.items()}
    said = {True: "holds", False: "**does not**", None: None}
    rows: list[list[Cell]] = [
        [statement, *(said[held[spec].get(name)] for spec in studies)] for name, statement in statements.items()
    ]
    print(markdown(Table([Column("claim"), *(Column(spec) for spec in studies)], rows)))
    for spec, claims in studies.items():
        print(f"\n## {spec}\n")
        columns = [Column("claim"), Column("measured"), Column("counts as holding if"), Column("holds")]
        yes = {True: "yes", False: "**no**"}
        print(markdown(Table(columns, [[c.name, c.measured, c.bound, yes[c.holds]] for c in claims])))


if __name__ == "__main__":
    main()
