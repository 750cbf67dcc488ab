"""The job of ``stillroom defense bench``: detection, what honest users notice, and what clones are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from stillroom.data.images import ImageData, TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.defense.add import Reference, fit_reference
from stillroom.defense.arena import Arena, Seen, deal, first_detection, honest_answers, watched
from stillroom.defense.armoury import DEFENCES, DETECTORS, Armoury
from stillroom.defense.attacks.target import Labels, Target
from stillroom.defense.bench_report import detection_table, honest_table, theft_table, write_bench_report
from stillroom.defense.detection import separate
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.fit import ARCHITECTURE, Victim, observe_set, pixels_of, train_victim
from stillroom.defense.theft import ATTACKS, DATA_FREE, Thief, accuracy_on
from stillroom.defense.traffic import OWN, Traffic, halves, load_traffic
from stillroom.errors import InputError, unknown_name
from stillroom.reports.tables import Table
from stillroom.training.fabric import Device, make_fabric, torch_device
from stillroom.training.jobs import kept
from stillroom.training.progress import counting
from stillroom.training.run import RunDirectory

__all__ = ["Bench", "bench"]

SEVERITIES = (2, 4)


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` returns: its tables by title, and the result."""

    tables: dict[str, Table]
    result: dict[str, Any]
    out: Path


def bench(
    data: ImageData,
    victim: Victim | None = None,
    *,
    defences: Sequence[str] = ("none", "d-add", "top-1"),
    attacks: Sequence[str] = ("knockoff",),
    queries: Sequence[str] = ("noise", "generated", OWN),
    labels: Sequence[str] = ("soft", "hard"),
    seeds: Sequence[int] = (0,),
    budget: int = 500,
    clone: str = "resnet8",
    clone_epochs: int = 10,
    window: int = 16,
    target_fpr: float = 0.01,
    accounts: int = 40,
    asked: int = 128,
    shifted: Sequence[str] = (),
    peer_epochs: int = 3,
    epochs: int = 15,
    device: Device = "auto",
    out: str | Path = "runs/defense-bench",
    config: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Bench:
    """Measure defences against model stealing: defences x attacks x query sets x labels x seeds.

    The test images are dealt, anew for each seed, to a thief (half), to the choice of thresholds and to honest users (a
    quarter each). Every threshold alters the same share of honest answers. Only victims of the caller's own are asked,
    in this process.

    Args:
        data: What the victim was trained on.
        victim: The classifier; a small one is trained on the data when not given.
        defences: Defences to compare; see ``DEFENCES``.
        attacks: Attacks; see ``ATTACKS``.
        queries: What attacks with images ask: own (half of the test images), or what ``load_traffic`` knows.
        labels: What the victim answers: soft (probabilities), hard (the class alone).
        seeds: Repetitions, each with other images, thresholds and clones.
        budget: Queries of an attack.
        clone: Architecture of the clones.
        clone_epochs: Epochs of a clone's training on the answers.
        window: W of the detectors with windows.
        target_fpr: Share of honest answers a threshold may alter.
        accounts: Honest accounts of each kind, and thieves where only detection is measured.
        asked: Queries of each of them.
        shifted: Honest but shifted users: data sets that share class names with the victim's, such as folder:PATH.
        peer_epochs: Epochs of the networks that am and edm train.
        epochs: Epochs of the victim that is trained when none is given.
        device: Where to compute.
        out: The run directory.
        config: The options as the command line knows them, kept in ``config.yaml``.
        show_progress: Show progress on standard error.
        resume: Keep what the killed run in ``out`` measured and go on.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        OutputError: A result could not be written.
    """
    _check(defences, attacks, labels, seeds, {"budget": budget, "accounts": accounts, "asked": asked, "window": window})
    asked_for = {"budget": budget, "seeds": list(seeds), **(config or {}), "out": str(out)}
    run = RunDirectory.create(out, asked_for, overwrite=overwrite, resume=resume, may_change=("seeds", "defences"))
    if victim is None:
        part = run.part("victim")
        victim = train_victim(
            data, ARCHITECTURE, epochs, 0, device, run=part, resume=part.checkpoints.is_dir(),
            show_progress=show_progress,
        )  # fmt: skip
    endpoint = Endpoint(victim.model, victim.card, taps=victim.taps, device=torch_device(device))
    known = observe_set(endpoint, data.train)
    reference = fit_reference(known.features, data.train.target.numpy(), len(data.classes))
    honest_sets = {Path(name).name: _shifted(name, data) for name in shifted}
    cells: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed in seeds:
        stage = _Stage(
            data, endpoint, reference, seed, window, target_fpr, accounts, asked, run.path / "peers" / str(seed),
            peer_epochs, show_progress,
        )  # fmt: skip
        detectors = [name for name in DETECTORS if name in defences]
        thief = (budget, clone, clone_epochs)
        cells |= stage.detection_cells(detectors, queries)
        cells |= stage.honest_cells([name for name in defences if name != "none"], honest_sets)
        cells |= stage.theft_cells(defences, attacks, queries, labels, thief, device)
    done: dict[str, dict[str, Any]] = {}
    with counting("bench", len(cells), done=0, show=show_progress) as tell:
        for number, (name, measure) in enumerate(cells.items(), 1):
            done[name] = kept(run.path / "cells" / f"{name}.json", measure)
            tell(number)
    records = list(done.values())
    tables = {
        "Telling accounts apart": detection_table(records),
        "What honest users notice": honest_table(records),
        "What clones are worth": theft_table(records),
    }
    clean = endpoint.observe(pixels_of(data.test))
    result = {
        "data": data.describe(),
        "architecture": victim.card.architecture,
        "victim_accuracy": 100 * float((clean.logits.argmax(1) == data.test.target.numpy()).mean()),
        "records": records,
        "out": str(run.path),
    }
    run.write_result(result)
    write_bench_report(run, tables, result, asked_for)
    return Bench(tables, result, run.path)


class _Stage:
    """One seed: its arena, its armoury, and the cells that are measured there."""

    def __init__(
        self,
        data: ImageData,
        endpoint: Endpoint,
        reference: Reference,
        seed: int,
        window: int,
        target_fpr: float,
        accounts: int,
        asked: int,
        folder: Path,
        peer_epochs: int,
        show_progress: bool,
    ) -> None:
        self.data, self.endpoint, self.seed = data, endpoint, seed
        self.reference = reference
        self.accounts, self.asked, self.show_progress = accounts, asked, show_progress
        self.window, self.target_fpr, self.folder, self.peer_epochs = window, target_fpr, folder, peer_epochs
        self._arena: Arena | None = None
        self._armoury: Armoury | None = None
        self._seen: dict[str, Seen] = {}

    @property
    def arena(self) -> Arena:
        """The arena, made when it is first needed."""
        if self._arena is None:
            test = self.data.test
            if not isinstance(test, TensorImages):
                raise InputError("the test images do not fit in memory; take smaller ones with data.image_size")
            thief, others = halves(test, len(self.data.classes), seed=self.seed)
            calibration, honest = halves(others, len(self.data.classes), seed=self.seed + 1)
            seen = [
                Seen.of(self.endpoint, part.pixels.numpy(), part.target.numpy())
                for part in (thief, calibration, honest)
            ]
            self._arena = Arena(self.endpoint, self.data, self.reference, *seen)
        return self._arena

    @property
    def armoury(self) -> Armoury:
        """The defences."""
        if self._armoury is None:
            self._armoury = Armoury(
                self.arena,
                window=self.window,
                target_fpr=self.target_fpr,
                accounts=self.accounts,
                asked=self.asked,
                seed=self.seed,
                folder=self.folder,
                epochs=self.peer_epochs,
                show_progress=self.show_progress,
            )
        return self._armoury

    def strangers(self, name: str, count: int) -> Seen:
        """Return what a thief asks, seen by the model."""
        if name == OWN:
            return self.arena.thief
        if name not in self._seen:
            traffic = load_traffic(name, self.data.shape, count, seed=self.seed)
            self._seen[name] = Seen.of(self.endpoint, traffic.images)
        return self._seen[name]

    def detection_cells(
        self, detectors: Sequence[str], queries: Sequence[str]
    ) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        for detector in detectors:
            for name in queries:
                yield (
                    f"detection-{detector}-{_plain(name)}-{self.seed}",
                    partial(self._detection, detector, name),
                )

    def _detection(self, detector: str, name: str) -> dict[str, Any]:
        stream = np.random.default_rng((self.seed, 2))
        honest, strangers = self.arena.honest, self.strangers(name, self.accounts * self.asked)
        threshold = self.armoury.threshold(detector)
        good = watched(self.armoury.detector(detector), honest, deal(honest, self.accounts, self.asked, stream), "user")
        bad = watched(
            self.armoury.detector(detector), strangers, deal(strangers, self.accounts, self.asked, stream), "thief"
        )
        found = separate(good[np.isfinite(good)], bad[np.isfinite(bad)], threshold)
        first = first_detection(bad, threshold)
        caught = [number for number in first if number is not None]
        return {
            "kind": "detection",
            "defence": detector,
            "queries": name,
            "seed": self.seed,
            **asdict(found),
            "accounts_caught": len(caught) / len(first),
            "median_first": float(np.median(caught)) if caught else None,
            "honest_accounts_flagged": float((good > threshold).any(1).mean()),
            "threshold": threshold,
        }

    def honest_cells(
        self, defences: Sequence[str], shifted: Mapping[str, Traffic]
    ) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        for defence in defences:
            yield f"honest-{defence}-{self.seed}", partial(self._honest, defence, shifted)

    def _honest(self, defence: str, shifted: Mapping[str, Traffic]) -> dict[str, Any]:
        kinds = list(self.arena.honest_kinds(SEVERITIES))
        for name, traffic in shifted.items():
            kinds.append((f"shifted, {name}", Seen.of(self.endpoint, traffic.images, traffic.labels), None))
        rows = {}
        for name, seen, concentration in kinds:
            dealt = deal(seen, self.accounts, self.asked, np.random.default_rng((self.seed, 3)), concentration)
            rows[name] = asdict(honest_answers(self.armoury.make(defence), seen, dealt, name))
        return {"kind": "honest", "defence": defence, "seed": self.seed, "rows": rows}

    def theft_cells(
        self,
        defences: Sequence[str],
        attacks: Sequence[str],
        queries: Sequence[str],
        labels: Sequence[str],
        thief: tuple[int, str, int],
        device: Device,
    ) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        for attack in attacks:
            for name in ("-",) if attack in DATA_FREE else queries:
                for kind in labels:
                    for defence in defences:
                        yield (
                            f"theft-{attack}-{_plain(name)}-{kind}-{defence}-{self.seed}",
                            partial(self._theft, attack, name, kind, defence, thief, device),
                        )

    def _theft(
        self,
        attack: str,
        name: str,
        labels: str,
        defence: str,
        thief: tuple[int, str, int],
        device: Device,
    ) -> dict[str, Any]:
        budget, architecture, epochs = thief
        answers: Labels = "hard" if labels == "hard" else "soft"
        traffic = Traffic(np.zeros((0, *self.data.shape), np.uint8), None)
        if name == OWN:
            traffic = Traffic(self.arena.thief.images, self.arena.thief.labels)
        elif attack not in DATA_FREE:
            traffic = load_traffic(name, self.data.shape, budget, seed=self.seed)
        if attack == "knockoff":  # no other attack ends early when the images do
            budget = min(budget, len(traffic.images))
        target = Target(self.endpoint, self.armoury.make(defence), budget=budget, labels=answers)
        honest = self.arena.honest
        measure = accuracy_on(honest.images, honest.labels, honest.logits.argmax(1))
        stolen = Thief(attack, architecture, budget, epochs, self.seed).steal(
            target.ask, self.data, traffic, answers, fabric=make_fabric(device), show_progress=False
        )
        stolen.model.eval()
        with torch.inference_mode():
            worth = measure(stolen.model)
        victim = 100 * float((honest.logits.argmax(1) == honest.labels).mean())
        return {
            "kind": "theft",
            "attack": attack,
            "queries": name,
            "labels": labels,
            "defence": defence,
            "seed": self.seed,
            "clone_accuracy": worth["test_accuracy"],
            "agreement": worth["agreement"],
            "victim_accuracy": victim,
            "spent": target.spent,
            "altered": target.altered / max(target.spent, 1),
            "first_detected": target.first_detected,
        }


def _shifted(name: str, data: ImageData) -> Traffic:
    """Return the images of a data set whose classes have names the victim knows, with the victim's labels."""
    found = load_data(DataOptions(name=name, image_size=data.shape[1]))
    position = {label: number for number, label in enumerate(data.classes)}
    ours = np.array([position.get(label, -1) for label in found.classes])
    images, labels = [], []
    for part in (found.train, found.test):
        if not isinstance(part, TensorImages):
            raise InputError(f"{name} does not fit in memory; take a smaller set")
        own = ours[part.target.numpy()]
        images.append(part.pixels.numpy()[own >= 0])
        labels.append(own[own >= 0])
    pixels, target = np.concatenate(images), np.concatenate(labels).astype(np.int64)
    if len(target) == 0 or pixels.shape[1] != data.shape[0]:
        raise InputError(
            f"{name} shares no class with {data.name}, or its images have other colours; its classes must be among "
            f"{', '.join(data.classes)}"
        )
    return Traffic(pixels, target)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _check(
    defences: Sequence[str],
    attacks: Sequence[str],
    labels: Sequence[str],
    seeds: Sequence[int],
    counts: Mapping[str, int],
) -> None:
    known = {"defence": (defences, DEFENCES), "attack": (attacks, ATTACKS), "labels": (labels, get_args(Labels))}
    for kind, (asked, names) in known.items():
        for name in asked:
            if name not in names:
                raise unknown_name(kind, name, names)
    if not defences or not seeds:
        raise InputError("name at least one defence and one seed")
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1")
    if counts["asked"] < counts["window"]:
        raise InputError(
            f"accounts of {counts['asked']} queries never fill a window of {counts['window']}; raise asked"
        )
