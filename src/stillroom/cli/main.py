"""The ``stillroom`` command: finds the verb, runs it, turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from stillroom import __version__
from stillroom.errors import FailureError, InputError, unknown_name

VERBS = {
    "distill": "train a small classifier from a large one and compare the two",
    "bench": "methods × seeds: a table with confidence intervals and paired differences",
    "methods": "list the methods with their papers, defaults and ledgers",
    "export": "write a trained model as safetensors, ONNX or torch.export and check each file",
    "doctor": "show versions, devices, extras and data found",
}

HELP = f"""stillroom {__version__} - trained models made small, few-step, robust and safe to ship

usage: stillroom VERB [options]        stillroom VERB --help lists the options of a verb

{chr(10).join(f"  {verb:<10} {text}" for verb, text in VERBS.items())}

Every verb runs offline on embedded data without any option. Start with: stillroom distill
exit codes: 0 success, 1 failure, 2 usage or bad input"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 success, 2 usage or bad input (one line), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"stillroom {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            raise unknown_name("verb", verb, VERBS)
        return int(import_module(f"stillroom.cli.{verb}").run(rest))
    except InputError as error:
        print(f"stillroom {verb if verb in VERBS else ''}".rstrip() + f": {error}", file=sys.stderr)
        return 2
    except FailureError as error:
        print(f"stillroom {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stillroom {verb}: interrupted; what was written is intact, --resume continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
