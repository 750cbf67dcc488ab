"""The real data sets, against what is published about them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from stillroom.data.cifar import CIFAR10, read_cifar
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data

pytestmark = pytest.mark.shared_data


def test_mnist_has_its_published_counts_and_statistics(shared_data: Path) -> None:
    data = load_data(DataOptions(name=f"mnist:{shared_data / 'mnist'}"))
    assert (data.shape, len(data.train), len(data.test), data.augment) == ((1, 28, 28), 60_000, 10_000, "crop")
    assert data.mean == pytest.approx((0.1307,), abs=5e-5)
    assert data.std == pytest.approx((0.3081,), abs=5e-5)
    assert torch.bincount(data.test.target).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.target[:5].tolist() == [5, 0, 4, 1, 9]


def test_few_label_mnist_is_drawn_from_all_of_it(shared_data: Path) -> None:
    data = load_data(DataOptions(name=f"mnist:{shared_data / 'mnist'}", per_class=10))
    assert data.describe()["splits"]["train"] == {"images": 100, "per_class": [10] * 10}
    assert data.mean == pytest.approx((0.1307,), abs=5e-5)


def test_the_fashion_subset_is_split_class_by_class(shared_data: Path) -> None:
    data = load_data(DataOptions(name=f"fashion-mnist:{shared_data / 'fashion-mnist'}"))
    assert torch.bincount(data.train.target).tolist() == [72] * 10
    assert torch.bincount(data.test.target).tolist() == [18] * 10


def test_cifar_from_parquet_decodes_to_the_published_bytes(shared_data: Path) -> None:
    source = read_cifar(shared_data / "cifar10", CIFAR10, image_size=None, allow_pickle=False)
    assert source.test is not None
    assert (source.train.shape, len(source.train), len(source.test)) == ((3, 32, 32), 50_000, 10_000)
    assert torch.bincount(source.train.target).tolist() == [5000] * 10
    assert source.test.target.tolist() == sorted(source.test.target.tolist())
    # The README's sum holds for libjpeg-turbo's arithmetic; a decoder that rounds otherwise differs by one grey level.
    rows = source.test.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    assert hashlib.sha256(rows).hexdigest() == "5a6aa8185204d80b65d3dfb540696dadd5f10d185ded226a96665d3e0fc6259f"
    means = source.train.pixels.float().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4913, 0.4821, 0.4465], abs=1e-4)


def test_a_folder_of_photographs_is_read_and_resized(shared_data: Path) -> None:
    folder = shared_data / "pacs-small" / "photo"
    data = load_data(DataOptions(name=f"folder:{folder}", image_size=32))
    assert data.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert (data.shape, len(data.train), len(data.test)) == ((3, 32, 32), 336, 84)
