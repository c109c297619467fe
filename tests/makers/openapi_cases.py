"""Requests that schemathesis makes of `/openapi.json`, right ones and wrong ones, and checks of what is answered."""

from __future__ import annotations

from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
_CHECKED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def check_route(document: dict[str, Any], path: str, mode: GenerationMode, num_cases: int, **call: Any) -> Counter[int]:
    """Send requests to a route, check what is answered, and return how often each status was.

    Args:
        document: The server's description of its routes.
        path: The route.
        mode: Whether the requests are right or wrong.
        num_cases: How many.
        call: How they are sent: `app`, or `base_url`.
    """
    (method,) = document["paths"][path]
    operation = schemathesis.openapi.from_dict(document)[path][method.upper()]
    checks = CHECKS.get_by_names(_CHECKED)
    found = Counter[int]()

    @settings(
        max_examples=num_cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(**call)
        found[response.status_code] += 1
        case.validate_response(response, checks=checks)

    ask()
    return found


def routes_by_method(document: dict[str, Any], method: str) -> list[str]:
    """Return the paths of the routes that take a method."""
    return sorted(path for path, operations in document["paths"].items() if method in operations)
