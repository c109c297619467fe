"""schemathesis makes requests of `/openapi.json`, right and wrong ones: no 5xx, no undocumented status or body."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.doubles.front import front
from tests.doubles.model import PICTURE, ScriptedModel, answer
from varco_serve.front.app import Front
from varco_serve.front.openapi import openapi

load_all_checks()
SAID = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
DOCUMENT = openapi("0", has_keys=False)
ASKING = sorted(path for path, operations in DOCUMENT["paths"].items() if "post" in operations)
ASKED = sorted(path for path, operations in DOCUMENT["paths"].items() if "get" in operations)


def served() -> Front:
    return front(ScriptedModel(answer("Hello", picture=PICTURE)), allowed_hosts=("testserver",))


def statuses(path: str, mode: GenerationMode, num_cases: int) -> Counter[int]:
    """Send requests to a route, check what is answered, and count the statuses."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    method = "POST" if path in ASKING else "GET"
    checks = CHECKS.get_by_names(SAID)
    app, found = served(), Counter[int]()

    @settings(
        max_examples=num_cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(app=app)
        found[response.status_code] += 1
        case.validate_response(response, checks=checks)

    ask()
    return found


def test_routes_that_are_only_asked_say_what_is_documented() -> None:
    for path in ASKED:
        assert statuses(path, GenerationMode.POSITIVE, 1) == {200: 1}


@pytest.mark.parametrize("path", ASKING)
def test_requests_right_and_wrong_are_answered_as_documented(path: str) -> None:
    found = statuses(path, GenerationMode.NEGATIVE, 4) + statuses(path, GenerationMode.POSITIVE, 4)
    assert found.total() >= 5


@pytest.mark.full
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", ASKING)
def test_many_requests_right_and_wrong_are_answered_as_documented(path: str, mode: GenerationMode) -> None:
    found = statuses(path, mode, 100)
    assert found[400] if mode is GenerationMode.NEGATIVE else found[200] or path == "/v1/refer"
