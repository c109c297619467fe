"""schemathesis makes requests of `/openapi.json`, right and wrong ones: no 5xx, no undocumented status or body."""

from __future__ import annotations

import pytest
from schemathesis import GenerationMode

from tests.doubles.front import front
from tests.doubles.model import PICTURE, ScriptedModel, answer
from tests.makers.openapi_cases import check_route, routes_by_method
from varco_serve.front.app import Front
from varco_serve.front.openapi import openapi

DOCUMENT = openapi("0", has_keys=False)
ASKING = routes_by_method(DOCUMENT, "post")


def served() -> Front:
    return front(ScriptedModel(answer("Hello", picture=PICTURE)), allowed_hosts=("testserver",))


def test_routes_that_are_only_asked_say_what_is_documented() -> None:
    for path in routes_by_method(DOCUMENT, "get"):
        assert check_route(DOCUMENT, path, GenerationMode.POSITIVE, 1, app=served()) == {200: 1}


@pytest.mark.parametrize("path", ASKING)
def test_requests_right_and_wrong_are_answered_as_documented(path: str) -> None:
    app = served()
    found = check_route(DOCUMENT, path, GenerationMode.NEGATIVE, 4, app=app)
    found += check_route(DOCUMENT, path, GenerationMode.POSITIVE, 4, app=app)
    assert found.total() >= 5


@pytest.mark.full
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", ASKING)
def test_many_requests_right_and_wrong_are_answered_as_documented(path: str, mode: GenerationMode) -> None:
    found = check_route(DOCUMENT, path, mode, 100, app=served())
    assert found[400] if mode is GenerationMode.NEGATIVE else found[200] or path == "/v1/refer"
