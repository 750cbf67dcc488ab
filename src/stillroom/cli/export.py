"""``stillroom export``: load a stored model, write it in other formats, print what was checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from stillroom.cli._output import print_result, show_table
from stillroom.cli._parser import expand, new_parser, parse
from stillroom.models.export import export_model
from stillroom.models.store import load_model
from stillroom.reports.tables import Column, Table

__all__ = ["build_parser", "run"]


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser(
        "export", "Write a trained model in other formats, and check that each answers as the model.", "RUN_DIR "
    )
    parser.add_argument(
        "run_dir", type=str, metavar="RUN_DIR", help="directory of a run, or the model.json of a stored model"
    )
    parser.add_argument(
        "--formats",
        type=list[str],
        default=["safetensors", "onnx", "torch"],
        help="what to write: safetensors with model.json, onnx, torch (a torch.export program)",
    )
    parser.add_argument("--out", type=str, metavar="DIR", default="export", help="folder for the files")
    parser.add_argument(
        "--allow_import",
        action="store_true",
        help="import the model's own code when its architecture is a function of yours (this runs the code)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    return parser


def run(argv: Sequence[str]) -> int:
    """Export and print format, file, size and the largest difference of a logit."""
    options = parse(build_parser(), expand(argv, {}, ("--formats",)))
    loaded = load_model(options.run_dir, allow_import=options.allow_import)
    done = export_model(loaded.model, loaded.card, Path(options.out), options.formats)
    if options.json:
        files = [
            {
                "format": file.format,
                "path": str(file.path),
                "size_mb": file.size_mb,
                "max_difference": file.max_difference,
            }
            for file in done
        ]
        print_result({"source": options.run_dir, "classes": loaded.card.classes, "files": files})
    table = Table(
        [Column("format"), Column("file"), Column("size [MB]", ".2f"), Column("max difference", ".1e")],
        [[file.format, str(file.path), file.size_mb, file.max_difference] for file in done],
    )
    stream = sys.stderr if options.json else sys.stdout
    show_table(table, stream)
    print("\nEach file was loaded again and answered as the model does, up to the difference shown.", file=stream)
    return 0
