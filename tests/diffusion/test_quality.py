"""Distances of samples and of distributions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.diffusion.quality import classifier_features, frechet_distance, inception_features, rmse
from stillroom.errors import InputError
from stillroom.models.create import create_model
from stillroom.models.store import ModelCard, save_model


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_frechet_distance_of_gaussians_with_commuting_covariances_is_the_textbook_one(seed: int, d: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(60, d, generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.atleast_2d(base.T.cov()))
    white = (base - base.mean(0)) @ vectors / values.sqrt()  # covariance exactly I
    a, b = torch.rand(2, d, generator=generator, dtype=torch.float64) + 0.1
    shift = torch.randn(d, generator=generator, dtype=torch.float64)
    expected = shift.square().sum() + (a - b).square().sum()
    assert frechet_distance(white * a, white * b + shift) == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


def test_the_distance_of_a_set_to_itself_is_zero_even_with_fewer_samples_than_dimensions() -> None:
    features = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


def test_bad_features_are_refused() -> None:
    with pytest.raises(InputError, match="n at least 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match="3 dimensions, generated ones 2"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="not finite"):
        frechet_distance(torch.full((4, 3), torch.nan), torch.zeros(4, 3))


def test_features_of_a_stored_classifier_are_the_input_of_its_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create_model("resnet8", num_classes=3, in_channels=1, image_size=8).eval()
    card = ModelCard(
        architecture="resnet8", num_classes=3, classes=("a", "b", "c"), mean=(0.4,), std=(0.2,), input_shape=(1, 8, 8)
    )
    save_model(tmp_path, net, card)
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    features = classifier_features(tmp_path)(images)
    head = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.testing.assert_close(head(features), net((images / 2 + 0.5 - 0.4) / 0.2))
    assert classifier_features(tmp_path)(torch.zeros(2, 1, 16, 16)).shape == features[:2].shape
    with pytest.raises(InputError, match="3 channels"):
        classifier_features(tmp_path)(torch.zeros(2, 3, 8, 8))


def test_missing_inception_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"pt_inception-2015-12-05|pytorch-fid is not installed"):
        inception_features()


def test_rmse_counts_every_element() -> None:
    assert rmse(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)) == pytest.approx((25 / 2) ** 0.5)
