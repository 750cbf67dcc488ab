"""The data set of pairs: weights of a large block and of a small block trained in its place."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from stillroom.data.images import ImageData, TensorImages
from stillroom.distillation.translation.group import Job, PairOptions, Split, train_group
from stillroom.distillation.translation.many import State, part
from stillroom.errors import InputError, TrainingDivergedError
from stillroom.files import output_errors, plain, write_bytes_atomic, write_json_atomic
from stillroom.models.weights import read_weights
from stillroom.training.progress import counting
from stillroom.training.run import first_difference

__all__ = ["PairOptions", "Pairs", "check_pairs", "in_memory", "make_pairs"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """What :func:`make_pairs` made.

    ``large`` and ``small`` hold the blocks' convolutions of the pairs, ``conv1`` and ``conv2`` [N, out, in, 3, 3];
    ``networks`` and ``trained`` are the validation networks with their large blocks and the small blocks trained in
    their place.
    """

    large: tuple[Tensor, Tensor]
    small: tuple[Tensor, Tensor]
    networks: State
    trained: State


def in_memory(data: ImageData) -> TensorImages:
    """Return the training images.

    Raises:
        InputError: They do not fit in memory.
    """
    if not isinstance(data.train, TensorImages) or not isinstance(data.test, TensorImages):
        raise InputError(f"{data.name} does not fit in memory, but many networks are trained on it; take smaller data")
    return data.train


def check_pairs(data: ImageData, options: PairOptions, folder: Path, *, seed: int, jobs: int = 1) -> dict[str, Any]:
    """Refuse what :func:`make_pairs` cannot do; nothing is written.

    Returns:
        What the weights depend on: not how many networks there are, nor where they lie.

    Raises:
        InputError: An option does not fit the data, or the folder holds something else.
    """
    images = in_memory(data)
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    if options.images is not None and options.images > len(images):
        raise InputError(f"pairs.images is {options.images}, but there are {len(images)} training images")
    about = {name: value for name, value in asdict(options).items() if name not in ("count", "validation", "folder")}
    identity: dict[str, Any] = plain(
        {"data": images.fingerprint(), "classes": len(data.classes), "seed": seed, **about}
    )
    file = folder / "pairs.json"
    if not file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} holds files, but no pairs.json that says what they are; name another folder")
        return identity
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged or not readable: {error}") from None
    if not isinstance(found, dict) or (difference := first_difference(found, identity)) is not None:
        what = f": {difference}" if isinstance(found, dict) else ""
        raise InputError(f"{folder} holds pairs of another kind{what}; name another folder in pairs.folder")
    return identity


def make_pairs(
    data: ImageData,
    options: PairOptions,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    jobs: int = 1,
    show_progress: bool = True,
) -> Pairs:
    """Make the data set, or what is missing of it, and read it.

    Each group of networks is one file, written atomically when it is trained: a killed run loses the groups under way
    only, and a larger data set takes the files of a smaller one.

    Args:
        data: Supplies the training images.
        options: How many networks, and how each is trained.
        folder: Where the files lie.
        seed: Seed of all networks.
        device: Where to train.
        jobs: Processes to train in, on a CPU. More than one need a ``__main__`` that can be imported.
        show_progress: Whether to show progress on standard error.

    Raises:
        InputError: The folder holds another data set or a damaged file.
        OutputError: A file could not be written.
        TrainingDivergedError: A network's weights became NaN or infinite.
    """
    images = in_memory(data)
    identity = check_pairs(data, options, folder, seed=seed, jobs=jobs)
    if not (folder / "pairs.json").exists():
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(folder / "pairs.json", identity)
    counts: dict[Split, int] = {"validation": options.validation, "train": options.count}
    wanted = [(split, number) for split, count in counts.items() for number in range(-(-count // options.group))]
    missing = [(split, number) for split, number in wanted if not _shard(folder, split, number).exists()]
    job = Job(images.pixels, images.target, len(data.classes), options, seed, device)
    done = (len(wanted) - len(missing)) * options.group
    with counting("networks and small blocks", len(wanted) * options.group, done=done, show=show_progress) as tell:
        for ready, _ in enumerate(_train_all(job, folder, missing, jobs), 1):
            tell(done + ready * options.group)
    validation = _read(folder, "validation", options)
    pairs = _read(folder, "train", options)
    return Pairs(
        large=(pairs["large.conv1.weight"], pairs["large.conv2.weight"]),
        small=(pairs["small.conv1.weight"], pairs["small.conv2.weight"]),
        networks={
            name.replace("large.", "block."): value
            for name, value in validation.items()
            if not name.startswith("small.")
        },
        trained={f"block.{name}": value for name, value in part(validation, "small.").items()},
    )


def _shard(folder: Path, split: Split, number: int) -> Path:
    return folder / f"{split}-{number:06d}.safetensors"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: results are then the same in any number of processes, and small networks no slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_job: Job | None = None  # of a worker process


def _start_worker(pixels: NDArray[np.uint8], target: NDArray[np.int64], *others: Any) -> None:
    global _job
    _job = Job(torch.from_numpy(pixels), torch.from_numpy(target), *others)


def _work(folder: Path, split: Split, number: int, job: Job | None = None) -> None:
    job = job or _job
    assert job is not None
    with _one_thread():
        trained = train_group(job, split, number)
    if not all(bool(value.isfinite().all()) for value in trained.values()):
        raise TrainingDivergedError(
            f"a network of group {number} became nan or infinite; lower --pairs.lr, now {job.options.lr:g}"
        )
    kept = {name: value.detach().cpu().contiguous() for name, value in trained.items()}
    write_bytes_atomic(_shard(folder, split, number), save(kept))


def _train_all(job: Job, folder: Path, missing: Sequence[tuple[Split, int]], jobs: int) -> Iterator[None]:
    """Train the missing groups and yield after each."""
    if jobs == 1 or len(missing) < 2 or job.device.type != "cpu":
        for split, number in missing:
            _work(folder, split, number, job)
            yield
        return
    # Forked processes would inherit locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    workers = min(jobs, len(missing))
    # Arrays: tensors would be shared between the processes through file descriptors.
    known = (job.pixels.numpy(), job.target.numpy(), job.classes, job.options, job.seed, job.device)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=known) as pool:
        futures = [pool.submit(_work, folder, split, number) for split, number in missing]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _read(folder: Path, split: Split, options: PairOptions) -> State:
    """Read the files of a split and cut the last group to what was asked for."""
    count = options.count if split == "train" else options.validation
    shards = [read_weights(_shard(folder, split, number)) for number in range(-(-count // options.group))]
    try:
        return {name: torch.cat([shard[name] for shard in shards])[:count] for name in shards[0]}
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{folder} holds files that do not belong together ({error}); name another folder") from None
