"""Whatever the schema allows or forbids is answered as the schema says, and nothing breaks the service."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from defense.service.application import ADMIN, Service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
bounded = settings(
    max_examples=12,  # per endpoint and mode
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_endpoint_keeps_to_the_schema(mode: GenerationMode, tmp_path: Path) -> None:
    service = Service(tmp_path)
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 14
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
            continue  # nothing that could be wrong
        bounded(given(operation.as_strategy(generation_mode=mode))(keeps(service)))()
    service.store.close()


def keeps(service: Service):  # type: ignore[no-untyped-def]
    def check(case: schemathesis.Case) -> None:
        admin = case.path.startswith("/v1/admin") or case.path == "/metrics"
        response = case.call(headers={"Authorization": f"Bearer {ADMIN if admin else service.key}"})
        case.validate_response(response, checks=CHECKS)
        assert "Traceback" not in response.text

    return check
