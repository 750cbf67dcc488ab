"""Measure thieves that split their queries over accounts, and what can be done about them.

    python benchmarks/collusion.py --features collusion.npz

The data sets lie where STILLROOM_DATA says (default ../shared/data); the victim is resnet20-jpeg of cifar10-resnets.
4,000 CIFAR-10 test images calibrate the detectors, honest accounts ask 4,000 others, each once, and 2,000 more are
those of a thief who holds images of the victim's own kind. The network's features are kept in --features, so that a
second run starts at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from stillroom.data.images import TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import data_root, load_data
from stillroom.defense.add import Reference, fit_reference
from stillroom.defense.calibrate import draw_windows, quantile_threshold, window_scores
from stillroom.defense.contracts import Floats, Ints, Queries
from stillroom.defense.corruptions import CORRUPTIONS, corrupt
from stillroom.defense.dadd import ADD
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.linking import Linked
from stillroom.defense.traffic import SURROGATES, load_traffic
from stillroom.defense.windows import MemoryWindows, Window
from stillroom.models.create import create_model
from stillroom.models.store import ModelCard
from stillroom.reports.tables import Column, Table, markdown

W, BUDGET = 16, 4096
HONEST, EACH = 120, 32  # honest accounts, and queries of each
MIX = 1.0  # concentration of the honest accounts' class mixes
TARGET = 0.01  # false-positive rate the thresholds are chosen for
ATTACKS = (*SURROGATES, "own data")


class Seen(NamedTuple):
    """Features, predictions and, for the data's own images, labels."""

    z: Floats
    p: Ints
    y: Ints


class Query(NamedTuple):
    """One query of a stream."""

    account: str
    source: str  # whose features
    index: int
    stolen: bool


def observe(file: Path | None, train: int) -> dict[str, Seen]:
    """Return what the victim makes of every set, from the file when it is there."""
    if file is not None and file.exists():
        with np.load(file, allow_pickle=False) as stored:
            return {n[2:]: Seen(*(stored[f"{k}_{n[2:]}"] for k in "zpy")) for n in stored if n.startswith("z_")}
    root = data_root()
    if root is None:
        sys.exit("no data sets here: name their folder in STILLROOM_DATA")
    data = load_data(DataOptions(name="cifar10"))
    model = create_model(
        f"resnet20_a@{root / 'cifar10-resnets' / 'resnet20-jpeg'}.safetensors",
        num_classes=10,
        in_channels=3,
        image_size=32,
    )
    card = ModelCard(
        architecture="resnet20_a",
        num_classes=10,
        classes=data.classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        input_shape=(3, 32, 32),
    )
    endpoint = Endpoint(model, card)
    assert isinstance(data.train, TensorImages)
    assert isinstance(data.test, TensorImages)
    chosen = data.train.subset(torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:train])
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(1))
    calibration, honest, own = (data.test.subset(part) for part in order.split((4000, 4000, 2000)))
    sets = {"train": chosen, "calibration": calibration, "honest": honest, "own data": own}
    sets["corrupted"] = spoil(honest)
    sets["corrupted calibration"] = spoil(calibration)
    sets["blurred"] = TensorImages(torch.from_numpy(corrupt(honest.pixels.numpy(), "blur", 3)), honest.target)
    for name in SURROGATES:
        images = torch.from_numpy(load_traffic(name, (3, 32, 32), BUDGET).images)
        sets[name] = TensorImages(images, torch.zeros(len(images), dtype=torch.int64))
    found = {}
    for name, images in sets.items():
        print(f"{name}: {len(images)} images", file=sys.stderr, flush=True)
        seen = endpoint.observe(images.pixels.numpy())
        found[name] = Seen(seen.features.astype(np.float64), seen.logits.argmax(1), images.target.numpy())
    if file is not None:
        np.savez(file, **{f"{k}_{n}": getattr(s, k) for n, s in found.items() for k in "zpy"})
    return found


def spoil(images: TensorImages) -> TensorImages:
    """Corrupt every image in one of all ways and severities."""
    order = np.random.default_rng(2).permutation(len(images))
    pixels = images.pixels.numpy().copy()
    for i, part in enumerate(np.array_split(order, 5 * len(CORRUPTIONS))):
        pixels[part] = corrupt(pixels[part], CORRUPTIONS[i % len(CORRUPTIONS)], 1 + i // len(CORRUPTIONS))
    return TensorImages(torch.from_numpy(pixels), images.target)


class EveryScore(ADD):
    """ADD, which also keeps the scores of windows that are not full yet."""

    def score(self, window: Window, new: int) -> Floats:
        self.raw = super().score(window, new)
        asked = window.total - new + 1 + np.arange(new)
        return np.where(asked >= W, self.raw, np.nan)


class Lab:
    """The detectors, calibrated once, and the streams they watch."""

    def __init__(self, seen: dict[str, Seen], seeds: int) -> None:
        self.seen, self.seeds = seen, range(seeds)
        train, held = seen["train"], seen["calibration"]
        self.reference: Reference = fit_reference(train.z, train.y, 10)
        stream = np.random.default_rng(0)
        self.windows = draw_windows(len(held.z), W, 4000, stream, labels=held.y, concentration=MIX)
        # A threshold for every number of queries: the first approach.
        self.early = [
            quantile_threshold(window_scores(self.reference, held.z, held.p, self.windows[:, :n]), TARGET)
            for n in range(1, W + 1)
        ]
        self.threshold = self.early[-1]

    def linked(self, *, gate: float = 3.0, tolerant: bool = False) -> tuple[EveryScore, Linked]:
        """Return both detectors; a tolerant one was shown what honest but spoilt images look like."""
        held, windows = self.seen["calibration"], self.windows
        z, p = held.z, held.p
        if tolerant:
            other = self.seen["corrupted calibration"]
            z, p = np.concatenate([z, other.z]), np.concatenate([p, other.p])
            windows = np.concatenate([windows, windows + len(held.z)])
        add = EveryScore(self.reference, MemoryWindows(W), min_queries=1)
        return add, Linked(add, z, p, windows, gate=gate)

    def honest(self, rng: np.random.Generator, *, spoilt: float = 0.0, by: str = "corrupted") -> list[Query]:
        """Honest accounts, a share of which sends images that are not clean."""
        left = [list(rng.permutation(np.flatnonzero(self.seen["honest"].y == c))) for c in range(10)]
        dealt: list[list[int]] = [[] for _ in range(HONEST)]
        for account in dealt:
            wanted = rng.multinomial(EACH, rng.dirichlet(np.full(10, MIX)))
            for c in np.repeat(np.arange(10), wanted):
                # No image is asked twice; who comes when a class is used up gets the one with most images left.
                account.append(int((left[c] or max(left, key=len)).pop()))
        queries = [
            Query(f"user-{a}", by if a < spoilt * HONEST else "honest", int(i), False)
            for a, indices in enumerate(dealt)
            for i in indices
        ]
        return [queries[i] for i in rng.permutation(len(queries))]

    def thief(
        self, name: str, accounts: int, rng: np.random.Generator, *, budget: int = BUDGET, share: float = 0.0
    ) -> list[Query]:
        """An attack whose accounts take turns; a share of what each asks is honest."""
        order = rng.permutation(len(self.seen[name].z))
        mixed = rng.random(budget) < share
        cover = rng.integers(len(self.seen["honest"].z), size=budget)
        return [
            Query(f"{name}-{t % accounts}", "honest", int(cover[t]), True)
            if mixed[t]
            else Query(f"{name}-{t % accounts}", name, int(order[t % len(order)]), True)
            for t in range(budget)
        ]

    def ask(self, query: Query, account: str | None = None) -> Queries:
        seen = self.seen[query.source]
        logits = np.eye(10)[[seen.p[query.index]]]
        return Queries(account or query.account, np.zeros((1, 1, 1, 1), np.uint8), seen.z[[query.index]], logits)


def merge(streams: Sequence[list[Query]], rng: np.random.Generator) -> list[Query]:
    """Interleave streams at random, each in its own order."""
    turns = rng.permutation(np.repeat(np.arange(len(streams)), [len(s) for s in streams]))
    sources: list[Iterator[Query]] = [iter(s) for s in streams]
    return [next(sources[turn]) for turn in turns]


class Outcome(NamedTuple):
    """What a detector did to a stream, in percent where not counted."""

    poisoned: float  # of the attack's queries
    clean: float  # answers the attack got that were not poisoned
    before: float  # queries of the attack before the first flagged one
    honest: float  # of the honest queries that were poisoned
    auroc: float  # of the scores of those queries that had one


def outcome(stream: Sequence[Query], flagged: np.ndarray, scores: Floats) -> Outcome:
    stolen = np.array([query.stolen for query in stream])
    hits, scored = flagged[stolen], np.isfinite(scores)
    return Outcome(
        100 * hits.mean() if len(hits) else float("nan"),
        float((~hits).sum()),
        float(hits.argmax() if hits.any() else len(hits)),
        100 * flagged[~stolen].mean(),
        float(roc_auc_score(stolen[scored], scores[scored])) if (stolen & scored).any() else float("nan"),
    )


def watch(
    lab: Lab, stream: Sequence[Query], *, gate: float = 3.0, tolerant: bool = False
) -> tuple[dict[str, Outcome], float]:
    """Run ADD, ADD with thresholds from the first query on, and linking; also return when the pooled test alarmed."""
    add, linked = lab.linked(gate=gate, tolerant=tolerant)
    asked: dict[str, int] = {}
    raw, limits, linking = np.empty(len(stream)), np.empty(len(stream)), np.empty(len(stream))
    alarm = float("nan")
    for t, query in enumerate(stream):
        queries = lab.ask(query)
        count = asked[query.account] = min(asked.get(query.account, 0) + 1, W)
        linking[t] = linked.watch(queries)[0]
        raw[t], limits[t] = add.raw[0], lab.early[count - 1]
        if alarm != alarm and t % 32 == 0 and linked.significance > 3.0:
            alarm = t
    full = np.where(limits == lab.threshold, raw, np.nan)
    return {
        "ADD": outcome(stream, full > lab.threshold, full),
        "early": outcome(stream, raw > limits, raw / limits),
        "linked": outcome(stream, linking > lab.threshold, linking),
    }, alarm


def say(*what: object) -> None:
    """Show how far it is."""
    print(*what, file=sys.stderr, flush=True)


def average(runs: Sequence[Outcome]) -> Outcome:
    return Outcome(*np.mean(np.array(runs), 0))


def split_attack(lab: Lab) -> Table:
    rows: list[list[object]] = []
    for name in ATTACKS:
        for accounts in (1, 4, 16, 64, 1024):
            found = []
            for seed in lab.seeds:
                rng = np.random.default_rng((seed, accounts))
                found.append(watch(lab, merge([lab.honest(rng), lab.thief(name, accounts, rng)], rng))[0])
            say(name, accounts, found)
            for method in ("ADD", "early", "linked"):
                rows.append([name, accounts, method, *average([f[method] for f in found])])
    return Table([Column("surrogate"), Column("accounts"), Column("detector"), *MEASURES], rows)


MEASURES = (
    Column("attack poisoned [%]", ".1f"),
    Column("clean answers", ".0f"),
    Column("before the first flag", ".0f"),
    Column("honest poisoned [%]", ".2f"),
    Column("AUROC", ".3f"),
)


def small_share(lab: Lab) -> Table:
    rows: list[list[object]] = []
    for name in ("digits-dg", "pacs-small"):
        for budget in (1024, 256, 64):
            found = []
            for seed in lab.seeds:
                rng = np.random.default_rng((seed, budget))
                stream = merge([lab.honest(rng), lab.thief(name, budget // 4, rng, budget=budget)], rng)
                found.append(watch(lab, stream)[0])
            for method in ("early", "linked"):
                rows.append([name, budget, method, *average([f[method] for f in found])])
    return Table([Column("surrogate"), Column("budget"), Column("detector"), *MEASURES], rows)


def mixing(lab: Lab) -> Table:
    rows: list[list[object]] = []
    for name in ("digits-dg", "pacs-small"):
        for accounts in (1, 1024):
            for share in (0.0, 0.25, 0.5, 0.75):
                found = []
                for seed in lab.seeds:
                    rng = np.random.default_rng((seed, accounts))
                    stream = merge([lab.honest(rng), lab.thief(name, accounts, rng, share=share)], rng)
                    found.append(watch(lab, stream)[0])
                say(name, accounts, share, found)
                for method in ("ADD", "linked"):
                    rows.append([name, accounts, 100 * share, method, *average([f[method] for f in found])])
    head = [Column("surrogate"), Column("accounts"), Column("honest cover [%]", ".0f"), Column("detector")]
    return Table([*head, *MEASURES], rows)


def groups(lab: Lab) -> Table:
    """ADD over groups of accounts: the thief alone in a group, or its accounts spread over the honest of 16."""
    rows: list[list[object]] = []
    for name in ("digits-dg", "pacs-small"):
        for case in ("own group", "60 groups, each 2 honest", "15 groups, each 8 honest", "1 group, all honest"):
            found = []
            for seed in lab.seeds:
                rng = np.random.default_rng(seed)
                stream = merge([lab.honest(rng), lab.thief(name, 1024, rng)], rng)
                size = int(case.split()[0]) if case[0].isdigit() else 0
                add, scores = ADD(lab.reference, MemoryWindows(W)), np.empty(len(stream))
                for t, query in enumerate(stream):
                    number = int(query.account.rsplit("-", 1)[1])
                    group = f"{number % size}" if size else f"{'thief' if query.stolen else number // 8}"
                    scores[t] = add.watch(lab.ask(query, group))[0]
                found.append(outcome(stream, scores > lab.threshold, scores))
            rows.append([name, case, *average(found)])
    return Table([Column("surrogate"), Column("1024 accounts in"), *MEASURES], rows)


def peace(lab: Lab) -> Table:
    """Honest users only, some of them with images that are not clean; and a loud attack that covers a quiet one."""
    rows: list[list[object]] = []
    cases: list[tuple[str, float, str, float, bool]] = [
        ("clean users", 0.0, "corrupted", 3.0, False),
        ("clean users, always linked", 0.0, "corrupted", -np.inf, False),
        ("10 % of users corrupted", 0.1, "corrupted", 3.0, False),
        ("50 % of users corrupted", 0.5, "corrupted", 3.0, False),
        ("10 % of users blurred alike", 0.1, "blurred", 3.0, False),
        ("50 % of users blurred alike", 0.5, "blurred", 3.0, False),
        ("10 % of users corrupted, tolerant", 0.1, "corrupted", 3.0, True),
        ("50 % of users corrupted, tolerant", 0.5, "corrupted", 3.0, True),
        ("10 % of users blurred alike, tolerant", 0.1, "blurred", 3.0, True),
        ("50 % of users blurred alike, tolerant", 0.5, "blurred", 3.0, True),
    ]
    for title, share, by, gate, tolerant in cases:
        cells: dict[str, list[tuple[float, float]]] = {}
        alarms = []
        for seed in lab.seeds:
            rng = np.random.default_rng(seed)
            stream = lab.honest(rng, spoilt=share, by=by)
            marked = [query._replace(stolen=query.source != "honest") for query in stream]
            found, alarm = watch(lab, marked, gate=gate, tolerant=tolerant)
            alarms.append(alarm)
            for method, result in found.items():
                cells.setdefault(method, []).append((result.honest, result.poisoned))
        clean = {m: np.mean([c for c, _ in v]) for m, v in cells.items()}
        spoilt = {m: np.mean([s for _, s in v]) for m, v in cells.items()}
        when = (
            f"{np.mean(alarms):.0f}"
            if np.isfinite(alarms).all()
            else f"{int(np.isfinite(alarms).sum())} of {len(lab.seeds)} seeds"
        )
        rows.append([title, *clean.values(), *spoilt.values(), when])
    head = [Column("traffic"), *(Column(f"clean users, {m} [%]", ".2f") for m in ("ADD", "early", "linked"))]
    head += [Column(f"other users, {m} [%]", ".2f") for m in ("ADD", "early", "linked")]
    return Table([*head, Column("pooled test alarms at query")], rows)


def decoys(lab: Lab) -> Table:
    rows: list[list[object]] = []
    for decoy, budget in (("noise", 1024), ("noise", 4096), ("generated", 4096)):
        found = []
        for seed in lab.seeds:
            rng = np.random.default_rng(seed)
            loud = lab.thief(decoy, budget // 4, rng, budget=budget)
            cover = [query._replace(stolen=False) for query in loud]
            quiet = lab.thief("pacs-small", 256, rng, budget=1024)
            stream = merge([lab.honest(rng), cover, quiet], rng)
            linked, scores = lab.linked()[1], np.empty(len(stream))
            for t, query in enumerate(stream):
                scores[t] = linked.watch(lab.ask(query))[0]
            keep = np.array([query.source != decoy for query in stream])
            kept = [query for query in stream if query.source != decoy]
            found.append(outcome(kept, (scores > lab.threshold)[keep], scores[keep]))
        rows.append([f"{budget} of {decoy}", *average(found)])
    return Table([Column("decoys"), *MEASURES], rows)


TABLES = {
    "split": split_attack,
    "share": small_share,
    "mixing": mixing,
    "groups": groups,
    "peace": peace,
    "decoys": decoys,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="npz file to keep the network's features in")
    parser.add_argument("--train", type=int, default=20000, help="training images of the reference (default: 20000)")
    parser.add_argument("--seeds", type=int, default=3, help="streams to average over (default: 3)")
    parser.add_argument("--table", choices=TABLES, nargs="*", default=list(TABLES), help="which tables (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab = Lab(observe(options.features, options.train), options.seeds)
    print("thresholds for 1..16 queries:", ", ".join(f"{t:.2f}" for t in lab.early))
    for name in options.table:
        print(f"\n{name}\n\n{markdown(TABLES[name](lab))}", flush=True)


if __name__ == "__main__":
    main()
