"""``stillroom doctor``: what this environment has, and what is missing for which extra."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from stillroom import __version__
from stillroom.cli._output import print_result
from stillroom.cli._parser import new_parser, parse

__all__ = ["examine", "run"]


def extras() -> dict[str, dict[str, str | None]]:
    """Return, per extra of the installed distribution, its packages with their installed version or ``None``."""
    found: dict[str, dict[str, str | None]] = {"core": {}}
    for requirement in metadata.requires("stillroom") or []:
        name, _, marker = requirement.partition(";")
        package = name.split("[")[0].split(">")[0].split("<")[0].split("=")[0].split("!")[0].strip()
        if package == "stillroom":
            continue
        extra = marker.partition("==")[2].strip().strip("'\"") if "extra" in marker else "core"
        try:
            found.setdefault(extra, {})[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found.setdefault(extra, {})[package] = None
    return found


def examine() -> dict[str, Any]:
    """Collect versions, devices, extras and data folders."""
    import torch

    from stillroom.data.sources import data_root

    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    root = data_root()
    folders = sorted(entry.name for entry in Path(root).iterdir() if entry.is_dir()) if root else []
    return {
        "stillroom": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "devices": devices,
        "extras": extras(),
        "data": {"digits": "embedded", "folder": str(root) if root else None, "found": folders},
    }


def run(argv: Sequence[str]) -> int:
    """Print what was found; the exit code is 0 even if extras are missing, for none of them is required."""
    parser = new_parser("doctor", "Show versions, devices, extras and data found.")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    options = parse(parser, argv)
    found = examine()
    if options.json:
        print_result(found)
        return 0
    console = Console(highlight=False)
    for key in ("stillroom", "python", "platform", "torch"):
        console.print(f"{key:<10} {found[key]}")
    console.print(f"{'devices':<10} {', '.join(found['devices'])}")
    for extra, packages in found["extras"].items():
        missing = [package for package, version in packages.items() if version is None]
        state = (
            f"[yellow]missing {', '.join(missing)}: pip install 'stillroom\\[{extra}]'"
            if missing
            else "[green]complete"
        )
        console.print(f"{extra:<10} {state}")
    data = found["data"]
    console.print(f"{'data':<10} digits (embedded)", end="")
    console.print(
        f"; in {data['folder']}: {', '.join(data['found'])}" if data["folder"] else "; set STILLROOM_DATA for more"
    )
    return 0
