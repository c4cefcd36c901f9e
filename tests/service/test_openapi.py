"""The OpenAPI document against the running service: requests made from it bring no server error, and answers keep it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from servers import started

from safelens.service.settings import Settings
from safelens.service.web import create_app

DOCUMENT = create_app(Settings()).openapi()
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """With a worker that runs the embedded bundle, so that nothing has to be late or not ready."""
    folder = tmp_path_factory.mktemp("fuzzed")
    with started(folder, SAFELENS_REQUESTS_PER_MINUTE="1000000") as (url, key, _log):
        yield url, {"Authorization": f"Bearer {key}"}


@schema.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_the_service_fail(case, service):
    url, headers = service
    case.validate_response(case.call(base_url=url, headers=headers, timeout=70), checks=CHECKS)


def test_what_may_be_late_or_not_ready_is_documented(served):
    assert {"503", "default"} <= set(DOCUMENT["paths"]["/readyz"]["get"]["responses"])
    assert "504" in DOCUMENT["paths"]["/v1/moderations"]["post"]["responses"]
    late = schema["/readyz"]["GET"].Case()
    answer = late.call(base_url=served.url)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    late.validate_response(answer, checks=CHECKS[1:])
