from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from defense.service.application import MakeService, Service


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    """Make applications over one store, with other settings."""
    made: list[Service] = []

    def make(**changes: object) -> Service:
        made.append(Service(tmp_path, **changes))
        return made[-1]

    yield make
    for service in made:
        service.store.close()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()
