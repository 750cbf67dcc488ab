"""The data set of pairs: weights of a large block and of a small block trained in its place."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from stillroom.data.images import ImageData, TensorImages
from stillroom.data.split import random_stream
from stillroom.distillation.translation.blocks import PLANES, BlockNet
from stillroom.distillation.translation.many import State, images_for, part, sgd, stack, train
from stillroom.errors import InputError, TrainingDivergedError
from stillroom.files import output_errors, plain, write_bytes_atomic, write_json_atomic
from stillroom.models.weights import read_weights
from stillroom.training.progress import counting
from stillroom.training.run import first_difference

__all__ = ["PairOptions", "Pairs", "check_pairs", "in_memory", "make_pairs", "orders", "train_group"]

Split = Literal["train", "validation"]

# Purposes of the random streams of one network.
_LARGE, _SMALL = 0, 1


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How many networks the data set is made of, and how each is trained.

    The paper trains 300,000 pairs and 100 validation triples of 10 epochs on all 60,000 images.

    Args:
        count: Pairs to train the translator on.
        validation: Networks whose blocks are translated to judge it; none of them is among the pairs.
        epochs: Epochs of each network, and again of its small block.
        images: Training images a network is shown in an epoch, drawn anew; all when not given.
        batch_size: Images per step.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        flip: Mirror every other image from left to right; digits too, as the released code does.
        planes: Channels of the blocks, even.
        group: Networks trained as one computation.
        folder: Where the pairs lie; those that are there already are taken. ``out``/pairs when not given.

    Raises:
        InputError: A value is out of its range.
    """

    count: int = 96
    validation: int = 20
    epochs: int = 10
    images: int | None = None
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    flip: bool = True
    planes: int = PLANES
    group: int = 4
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("count", "validation", "epochs", "batch_size", "group"):
            if getattr(self, name) < 1:
                raise InputError(f"pairs.{name} is {getattr(self, name)}; it must be at least 1")
        if self.images is not None and self.images < 2:
            raise InputError(f"pairs.images is {self.images}; it must be at least 2")
        if not 0 < self.lr < math.inf:
            raise InputError(f"pairs.lr is {self.lr}; it must be positive and finite")
        if not 0 <= self.momentum < 1:
            raise InputError(f"pairs.momentum is {self.momentum}; it must be at least 0 and below 1")
        if self.planes < 2 or self.planes % 2:
            raise InputError(f"pairs.planes is {self.planes}; it must be even and at least 2")


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


@dataclass(frozen=True)
class _Job:
    """What every worker process needs to know."""

    pixels: Tensor
    target: Tensor
    classes: int
    options: PairOptions
    seed: int
    device: torch.device


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


def orders(
    key: Sequence[int], count: int, options: PairOptions, epochs: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, step by step, which images a network is shown and which of them are mirrored.

    Args:
        key: What the random numbers depend on; the epoch is added.
        count: Images there are.
        options: Images an epoch, batch size, mirroring.
        epochs: Epochs; endless when not given.

    Shapes:
        Yields [B], int64, and [B], bool.
    """
    epoch = 0
    while epochs is None or epoch < epochs:
        generator = random_stream(*key, epoch)
        order = torch.randperm(count, generator=generator)[: options.images]
        mirrored = torch.rand(len(order), generator=generator) < (0.5 if options.flip else 0.0)
        yield from zip(*(torch.split(drawn, options.batch_size) for drawn in (order, mirrored)), strict=True)
        epoch += 1


def batches(
    pixels: Tensor, target: Tensor, streams: Sequence[Iterator[tuple[Tensor, Tensor]]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of several networks, each with its own order.

    Shapes:
        pixels: [N, C, H, W], uint8. target: [N]. Yields [B, G·C, H, W] and [G, B].
    """
    for steps in zip(*streams, strict=True):
        index = torch.stack([order for order, _ in steps], 1)  # [B, G]
        mirrored = torch.stack([flags for _, flags in steps], 1)
        yield images_for(pixels[index].to(device), mirrored.to(device)), target[index.t()].to(device)


def train_group(job: _Job, split: Split, number: int) -> State:
    """Train one group of networks, then a small block in the place of each large one.

    A network's initial weights and images depend on the seed, the split and its index only; its weights depend on its
    neighbours by rounding alone.

    Returns:
        ``large.*`` and ``small.*``, for validation with ``begin.*`` and ``last.*`` too; each with a first dimension of
        the group.
    """
    options = job.options
    indices = range(number * options.group, (number + 1) * options.group)
    keys = [(job.seed, 0 if split == "train" else 1, index) for index in indices]
    shape: tuple[int, int, int] = tuple(job.pixels.shape[1:])  # type: ignore[assignment]

    def fresh(size: Literal["large", "small"], purpose: int) -> State:
        networks = []
        with torch.random.fork_rng(devices=[]):
            for key in keys:
                torch.manual_seed(random_stream(*key, purpose).initial_seed())
                networks.append(BlockNet(size, shape=shape, classes=job.classes, planes=options.planes))
        return {name: value.to(job.device) for name, value in stack(networks).items()}

    def steps(purpose: int) -> Iterator[tuple[Tensor, Tensor]]:
        streams = [orders((*key, 2 + purpose), len(job.pixels), options, options.epochs) for key in keys]
        return batches(job.pixels, job.target, streams, job.device)

    state = fresh("large", _LARGE)
    trained = [name for name in state if "running" not in name]
    train(state, sgd(state, trained, lr=options.lr, momentum=options.momentum), steps(_LARGE))
    state = {name: value.detach() for name, value in state.items()}
    frozen = {name: value for name, value in state.items() if not name.startswith("block.")}
    small = {name: value for name, value in fresh("small", _SMALL).items() if name.startswith("block.")}
    train(frozen | small, sgd(small, small, lr=options.lr, momentum=options.momentum), steps(_SMALL))
    kept = {f"large.{name}": value for name, value in part(state, "block.").items()}
    kept |= {f"small.{name}": value for name, value in part(small, "block.").items()}
    return kept if split == "train" else kept | frozen


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
    job = _Job(images.pixels, images.target, len(data.classes), options, seed, device)
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


_job: _Job | None = None  # of a worker process


def _start_worker(pixels: NDArray[np.uint8], target: NDArray[np.int64], *others: Any) -> None:
    global _job
    _job = _Job(torch.from_numpy(pixels), torch.from_numpy(target), *others)


def _work(folder: Path, split: Split, number: int, job: _Job | None = None) -> None:
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


def _train_all(job: _Job, folder: Path, missing: Sequence[tuple[Split, int]], jobs: int) -> Iterator[None]:
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
