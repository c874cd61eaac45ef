"""Whatever is sent to what /openapi.json describes, the platform itself never fails."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings


@pytest.mark.parametrize("num_requests", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_no_request_makes_a_server_error(start, tiny_model_folder, num_requests):
    """Answers are kept short, so that many requests fit into little time."""
    platform = start(WOOTZ_MODELS__TINY__PATH=str(tiny_model_folder), WOOTZ_ENGINE__MAX_MODEL_LEN="48")
    platform.wait_until_ready()
    headers = {"authorization": f"Bearer {platform.key}"}
    schema = schemathesis.openapi.from_url(f"{platform.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= {operation.path for operation in operations}
    statuses: dict[str, set[int]] = {}

    for operation in operations:
        path = operation.path

        @settings(
            max_examples=num_requests,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case):
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "tiny"
            status = case.call(headers=headers).status_code
            assert status < 500, case.as_curl_command()
            statuses.setdefault(path, set()).add(status)  # noqa: B023

        check()
    assert set(statuses) == {operation.path for operation in operations}

    # And after all of it a request that is in order is answered.
    body = {"model": "tiny", "prompt": "iron", "max_tokens": 2}
    assert httpx.post(f"{platform.url}/v1/completions", json=body, headers=headers).status_code == 200
