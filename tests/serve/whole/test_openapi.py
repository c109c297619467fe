"""The whole server answers what its `/openapi.json` says, to right requests and to wrong ones."""

from __future__ import annotations

import pytest
from schemathesis import GenerationMode

from tests.makers.openapi_cases import check_route, routes_by_method
from tests.makers.server import RunningServer


@pytest.mark.full
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_right_and_wrong_are_answered_as_documented(server: RunningServer, mode: GenerationMode) -> None:
    document = server.client.get("/openapi.json").json()
    worker_pid = server.worker_pid
    for path in routes_by_method(document, "post"):
        found = check_route(document, path, mode, 60, base_url=server.url)
        assert found[400]
    for path in routes_by_method(document, "get"):
        assert check_route(document, path, GenerationMode.POSITIVE, 1, base_url=server.url) == {200: 1}
    assert server.worker_pid == worker_pid
