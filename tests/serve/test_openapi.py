"""What schemathesis makes of the OpenAPI document: no request gets a 5xx."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from qkvshare import Raw, capture
from qkvshare.card.container import MEDIA_TYPE
from qkvshare.serve.app import create_app
from qkvshare.serve.limits import Limits

from .server import make_service, talker, tokens_file

TOKEN = "red-token-0123456789"

schemathesis.serializer.alias(MEDIA_TYPE, "application/octet-stream")


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [False, True])
def test_no_request_is_a_server_error(tmp_path: Path, guarded: bool) -> None:
    session = talker(256)
    tokens = tokens_file(tmp_path, red=TOKEN) if guarded else None
    service = make_service(tmp_path / "cards", session, Limits(tokens=8), tokens)
    store = service.stores.of("red" if guarded else None)
    card = capture(session.model, session.tokenizer, "tide", codec=Raw(), salt=store.salt)
    known = store.put(card)
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", create_app(service), headers={"Host": "localhost"}
    )
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 9
    statuses = set()
    for operation in operations:

        @settings(
            max_examples=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
            database=None,
        )
        @given(case=operation.as_strategy(), named=...)
        def ask(case: schemathesis.Case, named: bool) -> None:
            if named and case.method != "DELETE":  # else no random digest is ever found
                if "digest" in case.path_parameters:
                    case.path_parameters["digest"] = known
                if isinstance(case.body, dict):
                    case.body |= {"model": "tiny", "kv_transfer_params": {"card": known}}
            case.headers["Host"] = "localhost"
            case.headers["Authorization"] = f"Bearer {TOKEN}"
            answer = case.call()
            case.validate_response(answer, checks=[not_a_server_error])
            statuses.add(answer.status_code)

        ask()
    assert {200, 404} <= statuses
