"""The ``stillroom`` command: finds the verb, runs it, turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from stillroom import __version__
from stillroom.errors import FailureError, InputError, unknown_name

VERBS = {
    "distill": "train a small classifier from a teacher, several, peers or no data, and compare",
    "bench": "methods × seeds: a table with confidence intervals and paired differences",
    "methods": "list the methods with their papers, defaults and ledgers",
    "export": "write a trained model as safetensors, ONNX or torch.export and check each file",
    "doctor": "show versions, devices, extras and data found",
}

# Each field has a group of verbs, named after its package.
GROUPS = {
    "diffusion": {
        "train": "train a small diffusion model of images",
        "sample": "draw samples from a diffusion model in a few evaluations",
        "schedule": "search noise levels and solver for a model and a budget",
        "trajectory": "measure and draw the geometry of sampling trajectories",
        "bench": "quality against evaluations: solvers x schedules",
    },
    "graphs": {
        "distill": "train graph neural networks that teach each other, beside the same ones alone",
        "bench": "methods x seeds on one graph: mean, confidence interval, paired differences",
    },
    "screening": {
        "evaluate": "cross-validate drug-target methods for new pairs, new drugs and new targets",
        "predict": "rank the pairs not known to interact, with what supports each",
        "tune": "choose a method's options by nested cross-validation",
    },
    "defense": {
        "fit": "fit a guard against model stealing and calibrate its threshold",
        "serve": "serve a classifier over HTTP with its guard in front",
        "attack": "steal a classifier of one's own, to see what the guard is worth",
        "bench": "defences x attacks: detection, clone accuracy, what honest users notice",
    },
}

HELP = f"""stillroom {__version__} - trained models made small, few-step, robust and safe to ship

usage: stillroom VERB [options]        stillroom VERB --help lists the options of a verb

{chr(10).join(f"  {verb:<10} {text}" for verb, text in VERBS.items())}

{chr(10).join(f"  {group:<10} {' | '.join(verbs)}" for group, verbs in GROUPS.items())}

Every verb runs offline on embedded data without any option. Start with: stillroom distill
exit codes: 0 success, 1 failure, 2 usage or bad input"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 success, 2 usage or bad input (one line), 1 failure, 130 interrupted."""
    # OpenMP threads spin long while they wait for each other: beside one busy process, or with fewer cores than threads
    # (a container's quota), small networks trained many times slower. Torch's OpenMP reads this when it is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a reader that went away shows only here
        return code
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        return _end(arguments, error, 2)
    except (FailureError, OSError) as error:
        return _end(arguments, error, 1)
    except KeyboardInterrupt:
        return _end(arguments, "interrupted; what was written is intact, --resume continues a run", 130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        return _end(arguments, "the device has too little memory; lower --recipe.batch_size", 1)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-V", "--version"):
        print(f"stillroom {__version__}")
        return 0
    if verb in GROUPS:
        return _run_in_group(verb, rest)
    if verb not in VERBS:
        raise unknown_name("verb", verb, [*VERBS, *GROUPS])
    return int(import_module(f"stillroom.cli.{verb}").run(rest))


def _run_in_group(group: str, arguments: list[str]) -> int:
    verbs = GROUPS[group]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(f"usage: stillroom {group} VERB [options]\n")
        print("\n".join(f"  {verb:<10} {text}" for verb, text in verbs.items()))
        return 0 if arguments else 2
    if arguments[0] not in verbs:
        raise unknown_name(f"verb of {group}", arguments[0], verbs)
    return int(import_module(f"stillroom.cli.{group}.{arguments[0]}").run(arguments[1:]))


def _end(arguments: list[str], why: object, code: int) -> int:
    known = 1 if arguments and arguments[0] in VERBS else 0
    if len(arguments) > 1 and arguments[1] in GROUPS.get(arguments[0], ()):
        known = 2
    name = " ".join(["stillroom", *arguments[:known]])
    print(f"{name}: {' '.join(str(why).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
