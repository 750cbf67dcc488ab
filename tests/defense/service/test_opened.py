"""``open_service``: the store that is named, keys made once and shared by replicas, what cannot be served refused."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from defense.service.serving import served
from stillroom.defense.add import fit_reference
from stillroom.defense.calibrate import Calibration
from stillroom.defense.endpoint import Endpoint
from stillroom.defense.guard import Guard
from stillroom.defense.serve import ADMIN_KEY, SECRET, add_account, open_service, open_store
from stillroom.defense.service.redis_store import RedisStore
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.errors import InputError
from stillroom.models.create import create_model
from stillroom.models.store import ModelCard, save_model, weights_hash

CALIBRATION = Calibration(3.0, 0.01, 0.01, 0.005, 0.02, 1000, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as ``stillroom defense fit`` writes it, of a network that learnt nothing."""
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = create_model("resnet8", num_classes=2, in_channels=1, image_size=8)
    card = ModelCard(
        architecture="resnet8", num_classes=2, classes=("a", "b"), mean=(0.5,), std=(0.2,), input_shape=(1, 8, 8)
    )
    save_model(place, network, card)
    images = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8)).astype(np.uint8)
    features, logits = Endpoint(network, card).observe(images)
    Guard(
        reference=fit_reference(features, np.arange(300) % 2, 2),
        expected=None,
        window=4,
        calibration=CALIBRATION,
        linked=CALIBRATION,
        held_out=features,
        held_out_classes=logits.argmax(1),
        weights_sha256=weights_hash(network),
        classes=card.classes,
    ).save(place)
    return place


@pytest.fixture(autouse=True)
def no_keys_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADMIN_KEY, raising=False)
    monkeypatch.delenv(SECRET, raising=False)


def test_the_administrators_key_is_made_once_and_works_for_every_replica(model: Path, empty_redis: str) -> None:
    guard = Guard.load(model)
    stores = [open_store(empty_redis, guard, model) for _ in range(2)]
    assert all(isinstance(store, RedisStore) for store in stores)
    key = add_account(stores[0], "alice")
    first, second = (open_service(model, store, link=number == 1) for number, store in enumerate(stores))
    assert first.admin_key is not None
    assert second.admin_key is None
    assert stores[0].setting("secret") == stores[1].setting("secret")
    assert first.admin_key not in (stores[0].setting("admin_digest") or "")
    for opened in (first, second):
        with served(opened.app) as address:
            found = httpx.get(f"{address}/v1/admin/accounts", headers={"Authorization": f"Bearer {first.admin_key}"})
            assert found.status_code == 200
            refused = httpx.get(f"{address}/v1/admin/accounts", headers={"Authorization": f"Bearer {key}"})
            assert refused.status_code == 401


def test_accounts_lie_beside_the_model_unless_a_place_is_named(model: Path, tmp_path: Path) -> None:
    guard = Guard.load(model)
    for place, file in ((None, model / "accounts.sqlite"), (str(tmp_path / "here.db"), tmp_path / "here.db")):
        store = open_store(place, guard, model)
        assert isinstance(store, SQLiteStore)
        assert file.is_file()
        store.close()


def test_keys_from_the_environment_are_used_and_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "accounts"), Guard.load(model), model)
    monkeypatch.setenv(SECRET, "short")
    with pytest.raises(InputError, match="at least 16 bytes"):
        open_service(model, store)
    monkeypatch.setenv(SECRET, "a secret all the replicas share")
    monkeypatch.setenv(ADMIN_KEY, "guessable")
    with pytest.raises(InputError, match="at least 24 characters"):
        open_service(model, store)
    monkeypatch.setenv(ADMIN_KEY, "a key that is long enough for this")
    assert open_service(model, store).admin_key is None
    assert store.setting("secret") is None
    assert store.setting("admin_digest") is None
    store.close()


def test_a_store_of_another_guard_is_refused(model: Path, tmp_path: Path) -> None:
    guard = Guard.load(model)
    open_store(str(tmp_path / "accounts"), guard, model).close()
    other = Guard(**{**vars(guard), "weights_sha256": "f" * 64})
    with pytest.raises(InputError, match="another"):
        open_store(str(tmp_path / "accounts"), other, model)
