"""What a user can say about the data: which set, how much of it, how it is augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stillroom.errors import InputError, unknown_name

__all__ = ["Augment", "DataOptions"]

Augment = Literal["crop-flip", "crop", "none"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of one image data set, as ``load_data`` takes them.

    Args:
        name: digits, mnist, fashion-mnist, cifar10 or cifar100 (each but digits also as NAME:PATH), idx:PATH,
            folder:PATH, or hf:DATASET for a data set of the Hugging Face hub or a local folder of its formats.
        fraction: Share of the training images to use; the same share of every class, drawn with the seed.
        per_class: Use exactly this many labelled training images of every class (few-label training).
        holdout: Share of the chosen training images set aside, class by class, to choose a best epoch on.
        image_size: Resize every image to a square of this side; unequal images are first cropped around the centre.
        seed: Seed of the subset and of the held-out split; the test set never depends on it.
        augment: Random crop and mirror of the training images; auto mirrors colour images and fashion-mnist,
            and only crops other grey sets, where a mirrored character is another one.
        views: Repeat the augmentations with a period of so many epochs, so that a teacher cache can hold every
            view; 0 draws new ones each epoch.
        allow_pickle: Read CIFAR's Python layout, whose files are pickles and can run code when opened.

    Raises:
        InputError: A value is outside its range, or two values contradict each other.

    Example:
        >>> DataOptions(name="mnist", per_class=10).fraction
        1.0
    """

    name: str = "digits"
    fraction: float = 1.0
    per_class: int | None = None
    holdout: float = 0.0
    image_size: int | None = None
    seed: int = 0
    augment: Literal["auto", "crop-flip", "crop", "none"] = "auto"
    views: int = 0
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse values no data set could honour."""
        if not 0.0 < self.fraction <= 1.0:
            raise InputError(f"data.fraction is {self.fraction}; it must be above 0 and at most 1")
        if self.per_class is not None and self.per_class < 1:
            raise InputError(f"data.per_class is {self.per_class}; it must be at least 1")
        if self.per_class is not None and self.fraction != 1.0:
            raise InputError("data.fraction and data.per_class both choose a subset; give one of them")
        if not 0.0 <= self.holdout < 1.0:
            raise InputError(f"data.holdout is {self.holdout}; it must be at least 0 and below 1")
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"data.image_size is {self.image_size}; it must be at least 1")
        if self.seed < 0:
            raise InputError(f"data.seed is {self.seed}; it must not be negative")
        if self.views < 0:
            raise InputError(f"data.views is {self.views}; it must not be negative")
        choices = ("auto", *get_args(Augment))
        if self.augment not in choices:
            raise unknown_name("data.augment", self.augment, choices)
