"""Run as a script: runs ``stillroom`` commands in forked children, so that torch is imported once for all of them.

Each line on standard input is one job as JSON: ``argv``, ``cwd``, where ``stdout`` and ``stderr`` go, and what happens
to the command on its way. Each answer is the exit status as ``os.waitpid`` gives it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from importlib import import_module
from typing import Any

SIGNAL, STEP = "STILLROOM_TEST_SIGNAL", "STILLROOM_TEST_STEP"


def signal_at_step(name: str, last: int, process: int) -> None:
    """Send a signal to a process right after an optimiser's step of this one."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def hook(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(process, signal.Signals[name])

    register_optimizer_step_post_hook(hook)


def signal_before_file(name: str, suffix: str, count: int) -> None:
    """Send a signal to this process when a file of this kind is about to be put in place, after so many others."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "os.rename" and str(args[1]).endswith(suffix):
            seen += 1
            if seen > count:
                os.kill(os.getpid(), signal.Signals[name])

    sys.addaudithook(hook)


def run(job: dict[str, Any]) -> None:
    """Become the command; never returns."""
    from stillroom.cli.main import main

    os.chdir(job["cwd"])
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    if job["closed_stdout"]:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    if job["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"],) * 2)
    if job["step"]:
        signal_at_step(job["signal"], job["step"], os.getpid())
    if job["files"]:
        signal_before_file(job["signal"], job["suffix"], job["files"])
    if job["step_of_worker"]:
        os.environ |= {SIGNAL: job["signal"], STEP: str(job["step_of_worker"])}
    try:
        code = main(job["argv"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    # A shell that starts the tests in the background makes them ignore interrupts; a user's terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    verbs = ("bench", "distill", "export", "methods", "diffusion.train", "diffusion.sample")
    groups = ("graphs.distill", "graphs.bench", "screening.evaluate", "screening.predict", "screening.tune")
    for verb in (*verbs, *groups):
        import_module(f"stillroom.cli.{verb}")
    for package in (
        "lightning_fabric",
        "matplotlib.figure",
        "sklearn.datasets",
        "torchvision.utils",
    ):  # imported on use otherwise
        import_module(package)
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(json.loads(line))
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
elif SIGNAL in os.environ:  # a worker of a bench, which imports its parent's script; the first one hits its parent
    signal_at_step(os.environ[SIGNAL], int(os.environ[STEP]), os.getppid())
