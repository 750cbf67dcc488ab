"""The defences a bench compares, by name, each ready to stand in front of a victim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillroom.data.loaders import TrainLoader
from stillroom.defense.adaptive_misinformation import AdaptiveMisinformation, train_misinformation
from stillroom.defense.arena import Arena, Seen, Undefended, threshold_for
from stillroom.defense.contracts import Defence, Detector, Floats, Images, softmax
from stillroom.defense.dadd import ADD, DetectAndPoison
from stillroom.defense.edm import EDM, Ensemble, train_diverse
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.energy import Energy
from stillroom.defense.expected import fit_expected
from stillroom.defense.labels_only import Rounding, TopK
from stillroom.defense.mad import MAD
from stillroom.defense.noise import GaussianNoise
from stillroom.defense.outliers import Training
from stillroom.defense.poison import KeyedPoison
from stillroom.defense.prada import PRADA
from stillroom.defense.reverse_sigmoid import ReverseSigmoid
from stillroom.defense.traffic import generated_images
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import InputError, unknown_name
from stillroom.models.create import create_model
from stillroom.models.store import load_model, save_model
from stillroom.training.recipe import PRESETS
from stillroom.training.run import RunDirectory

__all__ = ["DEFENCES", "DETECTORS", "Armoury"]

DEFENCES = (
    "none",
    "d-add",
    "d-add-paper",
    "prada",
    "energy",
    "reverse-sigmoid",
    "noise",
    "rounding",
    "top-1",
    "mad",
    "am",
    "edm",
)
DETECTORS = ("d-add", "d-add-paper", "energy", "prada")
OUTLIERS = 2000  # generated images that the trained defences learn to treat as strange
MEMBERS = 3


class Armoury:
    """Makes defences for one arena; thresholds are chosen, and networks trained, once for each name.

    Every defence that has a threshold gets one by which as few honest answers are altered as by the others.

    Args:
        arena: The victim and who asks.
        window: W of the detectors with windows.
        target_fpr: Share of honest answers a threshold may alter.
        accounts: Honest accounts that thresholds are chosen on.
        asked: Queries of each.
        seed: Of everything drawn, and of the secret.
        folder: Where trained networks are kept.
        epochs: Of those networks.
    """

    def __init__(
        self,
        arena: Arena,
        *,
        window: int,
        target_fpr: float,
        accounts: int,
        asked: int,
        seed: int,
        folder: Path,
        epochs: int = 3,
        show_progress: bool = True,
    ) -> None:
        self.arena, self.window, self.target_fpr = arena, window, target_fpr
        self.accounts, self.asked, self.seed = accounts, asked, seed
        self.folder, self.epochs, self.show_progress = folder, epochs, show_progress
        self._thresholds: dict[str, float] = {}
        self._expected: Floats | None = None
        self._secret = b"a bench has no secrets " + str(seed).encode()

    def detector(self, name: str) -> Detector:
        """Return a detector that has seen nobody yet."""
        if name == "d-add-paper":
            return ADD(self.arena.reference, MemoryWindows(self.window))
        if name == "d-add":
            if self._expected is None:
                seen = self.arena.calibration
                predicted = seen.logits.argmax(1).astype(np.int64)
                self._expected = fit_expected(
                    self.arena.reference, seen.features, predicted, window=self.window, seed=self.seed
                )
            return ADD(self.arena.reference, MemoryWindows(self.window), expected=self._expected)
        if name == "energy":
            return Energy(MemoryWindows(self.window))
        if name == "prada":
            return PRADA()
        raise unknown_name("detector", name, DETECTORS)

    def threshold(self, name: str) -> float:
        """Return the threshold of a detector."""
        if name not in self._thresholds:
            self._thresholds[name] = threshold_for(
                lambda: self.detector(name),
                self.arena.calibration,
                accounts=self.accounts,
                asked=self.asked,
                target_fpr=self.target_fpr,
                seed=self.seed,
            )
        return self._thresholds[name]

    def make(self, name: str) -> Defence:
        """Return a defence that has seen nobody yet.

        Raises:
            InputError: There is none of that name.
        """
        poison = KeyedPoison(self._secret)
        match name:
            case "none":
                return Undefended()
            case "d-add" | "d-add-paper" | "energy" | "prada":
                return DetectAndPoison(self.detector(name), self.threshold(name), poison)
            case "reverse-sigmoid":
                return ReverseSigmoid()
            case "noise":
                return GaussianNoise(poison)
            case "rounding":
                return Rounding(decimals=1)
            case "top-1":
                return TopK(k=1)
            case "mad":
                return MAD(lambda images: self.arena.endpoint(images).logits)
            case "am":
                confidence = _confidence(self.arena.calibration)
                tau = float(np.quantile(confidence, self.target_fpr))
                return AdaptiveMisinformation(self._trained("misinformation", self._misinformation), tau=tau)
            case "edm":
                members = [self._trained(f"member-{number}", self._members) for number in range(MEMBERS)]
                return EDM(members, secret=self._secret)
        raise unknown_name("defence", name, DEFENCES)

    def _trained(self, name: str, train: Callable[[], None]) -> Callable[[Images], NDArray[np.float32]]:
        """Load a network of a defence, or train it first."""
        place = self.folder / name
        if not (place / "model.json").is_file():
            train()
        model, card = load_model(place)
        endpoint = Endpoint(model, card, device=self.arena.endpoint.device)
        return lambda images: endpoint(images).logits

    def _misinformation(self) -> None:
        """Train the network that is wrong, a small one."""
        data = self.arena.data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = create_model(
                "resnet8", num_classes=len(data.classes), in_channels=data.shape[0], image_size=data.shape[1:]
            )
        outliers = self._outliers()
        strange = torch.from_numpy(self.arena.endpoint.observe(outliers.numpy()).logits.argmax(1))
        train_misinformation(model, self._loader(), outliers, strange, self._training("misinformation"))
        card = replace(self.arena.endpoint.card, architecture="resnet8")
        save_model(self.folder / "misinformation", model, replace(card, mean=data.mean, std=data.std))

    def _members(self) -> None:
        """Train the ensemble: copies of the victim that begin their last stage anew, each with other weights."""
        members = []
        for number in range(MEMBERS):
            model = copy.deepcopy(self.arena.endpoint.model).requires_grad_(True)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * self.seed + number)
                _restart(model, self.arena.endpoint.taps.stages[-1])
            members.append(model)
        card = self.arena.endpoint.card
        loader = self._loader(card.mean, card.std)
        train_diverse(Ensemble(members), loader, self._outliers(), self._training("ensemble", card.mean, card.std))
        for number, model in enumerate(members):
            save_model(self.folder / f"member-{number}", model, card)

    def _outliers(self) -> torch.Tensor:
        # Of another seed than the thief's generated images, but of the same kind: in favour of the defence.
        return torch.from_numpy(generated_images(self.arena.data.shape, OUTLIERS, seed=10_000 + self.seed))

    def _training(
        self, name: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> Training:
        data = self.arena.data
        return Training(
            recipe=replace(PRESETS["quick"], epochs=self.epochs, lr=0.02),
            mean=mean or data.mean,
            std=std or data.std,
            seed=self.seed,
            run=RunDirectory(self.folder / f"{name}-training"),
            resume=True,
            show_progress=self.show_progress,
        )

    def _loader(self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> TrainLoader:
        data = self.arena.data
        return TrainLoader(
            data.train,
            batch_size=64,
            seed=self.seed,
            augment=data.augment,
            mean=mean or data.mean,
            std=std or data.std,
            device=self.arena.endpoint.device,
        )


def _confidence(seen: Seen) -> NDArray[np.floating]:
    highest: NDArray[np.floating] = softmax(seen.logits).max(1)
    return highest


def _restart(model: nn.Module, stage: str) -> None:
    """Draw the weights of a stage, and of what follows it, anew."""
    names = [name for name, _ in model.named_modules()]
    if stage not in names:
        raise InputError(f"the victim has no module {stage!r}")
    first = names.index(stage)
    for module in list(model.modules())[first:]:
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
