"""How good samples are: distance to a reference, and distances of distributions in the features of a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.errors import InputError, MissingExtraError
from stillroom.models.signals import Signals
from stillroom.models.store import load_model
from stillroom.models.taps import Tapped, find_taps

__all__ = ["Features", "classifier_features", "frechet_distance", "inception_features", "rmse"]

Features = Callable[[Tensor], Tensor]

# What pytorch-fid looks for in the cache of torch.hub before it would download.
INCEPTION_WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


def rmse(x: Tensor, reference: Tensor) -> float:
    """Return the root of the mean squared difference over all samples and elements, computed in float64.

    Example:
        >>> rmse(torch.ones(2, 3), torch.zeros(2, 3))
        1.0
    """
    return (x.double() - reference.double()).square().mean().sqrt().item()


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, each described by mean and covariance.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^{1/2} C2 C1^{1/2})^{1/2})``: the squared 2-Wasserstein distance of two Gaussians
    (Heusel et al., NeurIPS 2017, eq. 6), with unbiased covariances; round-off below 0 is clipped.

    Shapes:
        real: [n, d]; generated: [m, d]; n, m at least 2.

    Raises:
        InputError: The sets are too small or of different widths, or hold a value that is not finite.

    Example:
        >>> round(frechet_distance(torch.eye(3), torch.eye(3) + 1), 6)
        3.0
    """
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"the {name} features must be [n, d] with n at least 2, got {tuple(features.shape)}")
        if not bool(features.isfinite().all()):
            raise InputError(f"the {name} features hold a value that is not finite")
    if real.shape[1] != generated.shape[1]:
        raise InputError(f"real features have {real.shape[1]} dimensions, generated ones {generated.shape[1]}")
    real, generated = real.double(), generated.double()
    values, vectors = torch.linalg.eigh(_covariance(real))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    other = _covariance(generated)
    mixed = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    apart = (real.mean(0) - generated.mean(0)).square().sum()
    return float(apart + values.sum() + other.trace() - 2 * mixed)


def _covariance(features: Tensor) -> Tensor:
    width = features.shape[1]
    return features.T.cov().reshape(width, width)


def classifier_features(run: str | Path) -> Features:
    """Return the features before the last layer of a classifier that stillroom trained.

    Args:
        run: The classifier's run directory.

    Returns:
        A function of images [B, C, H, W] in -1..1 that returns [B, d]; other sizes are resized to the classifier's,
        grey images repeated for a colour classifier.

    Raises:
        InputError: There is no stored classifier, or the images do not fit it.
    """
    model, card = load_model(run)
    channels, height, width = card.input_shape
    tapped = Tapped(model, find_taps(model, torch.zeros(1, *card.input_shape)), {"pooled"}).eval()
    mean = torch.tensor(card.mean).view(1, -1, 1, 1)
    std = torch.tensor(card.std).view(1, -1, 1, 1)

    def features(images: Tensor) -> Tensor:
        images = _fit(images, channels, (height, width))
        unit = images.clamp(-1, 1) / 2 + 0.5
        with torch.no_grad():
            signals: Signals = tapped((unit - mean.to(unit)) / std.to(unit))
        assert signals.pooled is not None  # asked for
        return signals.pooled.flatten(1)

    return features


def inception_features() -> Features:
    """Return the 2,048 features of the Inception network that FID is defined on, through pytorch-fid.

    Its weights must lie in the cache of ``torch.hub`` already; nothing is downloaded.

    Returns:
        A function of images [B, C, H, W] in -1..1 that returns [B, 2048].

    Raises:
        MissingExtraError: pytorch-fid is not installed.
        InputError: The weights are not there.
    """
    try:
        from pytorch_fid.inception import InceptionV3
    except ImportError as error:
        raise MissingExtraError("pytorch-fid", "fid") from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    if not weights.is_file():
        raise InputError(f"FID needs the Inception weights at {weights}; put the file of pytorch-fid's releases there")
    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()

    def features(images: Tensor) -> Tensor:
        images = _fit(images, 3, None)
        with torch.no_grad():  # pixels as a PNG would hold them, as FID is computed from files
            (pooled,) = network(((images.clamp(-1, 1) * 127.5 + 127.5).round() / 255).float())
        flat: Tensor = pooled.flatten(1)
        return flat

    return features


def _fit(images: Tensor, channels: int, size: tuple[int, int] | None) -> Tensor:
    if images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    if images.shape[1] != channels:
        raise InputError(f"the images have {images.shape[1]} channels, the feature network takes {channels}")
    if size is not None and tuple(images.shape[2:]) != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images.float()
