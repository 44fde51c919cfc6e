"""Who may come in: no page from elsewhere, nobody without a token, no body that costs too much."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from qkvshare import CacheCard, Raw, capture
from qkvshare.card.errors import ServeError
from qkvshare.hf.session.session import Session
from qkvshare.serve.access import Access
from qkvshare.serve.limits import VALUES, Limits, values
from qkvshare.serve.mcp import server
from qkvshare.serve.mcp_http import http_app
from qkvshare.store import Store

from .server import CARD, make_service, serving, serving_service, talker, tokens_file

RED = "red-token-0123456789"
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def session() -> Session:
    return talker(256)


@pytest.fixture(scope="module")
def card(session: Session) -> CacheCard:
    return capture(session.model, session.tokenizer, "The tide is high.", codec=Raw())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, session: Session) -> Iterator[str]:
    """A server without tokens."""
    with serving_service(make_service(tmp_path_factory.mktemp("cards"), session)) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, session: Session) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("guarded")
    tokens = tokens_file(folder, red=RED)
    limits = Limits(tokens=8, body=4 << 20)
    with serving_service(make_service(folder / "cards", session, limits, tokens)) as url:
        yield url


@pytest.fixture(scope="module")
def mcp(tmp_path_factory: pytest.TempPathFactory, session: Session) -> Iterator[str]:
    store = Store(tmp_path_factory.mktemp("mcp"))
    with serving(http_app(server(session, store), store)) as url:
        yield url


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


FOREIGN = ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "10.0.0.7", ""]


@pytest.mark.parametrize("host", FOREIGN)
def test_without_tokens_no_other_host_is_served(url: str, mcp: str, host: str) -> None:
    """A page can point a name of its own to this machine; then it is of our origin."""
    for path in ("/v1/cards", "/v1/view", "/", "/metrics", "/nowhere"):
        refused = httpx.get(url + path, headers={"Host": host})
        assert code(refused) == (421, "misdirected"), path
    assert httpx.delete(f"{url}/v1/cards/{'0' * 64}", headers={"Host": host}).status_code == 421
    assert httpx.post(f"{mcp}/mcp", json={}, headers={"Host": host}).status_code == 421
    assert httpx.get(f"{mcp}/v1/cards/{'0' * 64}", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9000", "[::1]:8000", "127.0.0.1:1"])
def test_all_names_of_this_machine_are_served(url: str, host: str) -> None:
    """Other ports, too: an SSH tunnel ends on one of its own."""
    assert httpx.get(f"{url}/v1/cards", headers={"Host": host}).status_code == 200


def test_with_tokens_any_host_is_served(guarded: str) -> None:
    """Behind a proxy it has the proxy's name, and a foreign page has no token."""
    headers = {"Host": "cards.example", "Authorization": f"Bearer {RED}"}
    assert httpx.get(f"{guarded}/v1/cards", headers=headers).status_code == 200
    assert httpx.get(f"{guarded}/v1/cards", headers={"Host": "cards.example"}).status_code == 401


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost", ""])
def test_pages_of_other_origins_are_refused(
    url: str, guarded: str, mcp: str, card: CacheCard, origin: str
) -> None:
    headers = {"Origin": origin, **CARD, "Authorization": f"Bearer {RED}"}
    for place in (url, guarded):
        refused = httpx.post(f"{place}/v1/cards", content=card.to_bytes(), headers=headers)
        assert code(refused) == (403, "forbidden")
        assert httpx.get(f"{place}/v1/cards", headers=headers).status_code == 403
    assert httpx.post(f"{mcp}/mcp", json={}, headers={"Origin": origin}).status_code == 403
    assert httpx.get(f"{url}/v1/cards").json()["data"] == []


def test_our_own_page_is_served(url: str) -> None:
    assert httpx.get(f"{url}/v1/view", headers={"Origin": url}).status_code == 200
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert httpx.get(f"{url}/v1/view", headers=own).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_foreign_pages_load_nothing_without_an_origin_either(url: str, site: str) -> None:
    """An image of theirs can have our address: they see nothing of it, and it costs us."""
    sent = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert code(httpx.get(f"{url}/v1/view", headers=sent)) == (403, "forbidden")
    followed = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(url, headers=followed).status_code == 200  # a link to the page
    assert httpx.get(f"{url}/v1/view", headers=followed).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/json", None])
def test_a_card_comes_as_a_card(url: str, card: CacheCard, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    refused = httpx.post(f"{url}/v1/cards", content=card.to_bytes(), headers=headers)
    assert code(refused) == (415, "unsupported_media_type")
    assert "application/vnd.qkvshare.card" in refused.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/cards").json()["data"] == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_comes_as_json(url: str, mcp: str, kind: str | None) -> None:
    """What a browser sends across sites without asking is not taken."""
    headers = {} if kind is None else {"Content-Type": kind}
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
    for place in (url + CHAT, f"{mcp}/mcp"):
        assert httpx.post(place, content=body, headers=headers).status_code == 415
    good = {"Content-Type": "application/json; charset=utf-8"}
    assert httpx.post(url + CHAT, content=body, headers=good).status_code == 200


def test_an_mcp_client_comes_in(mcp: str, card: CacheCard) -> None:
    async def tools() -> set[str]:
        async with Client(f"{mcp}/mcp") as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    assert "resume" in asyncio.run(asyncio.wait_for(tools(), 60))


def test_nobody_without_a_token_has_a_body_read(guarded: str) -> None:
    """It is refused before the body has come, whatever it is."""
    host = httpx.URL(guarded)
    for path in (CHAT, "/v1/cards", "/nowhere"):
        with socket.create_connection((host.host, host.port), 10) as raw:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3900000\r\n"
            raw.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n[")
            assert raw.recv(4096).startswith(b"HTTP/1.1 401")


BAD = [
    b'{"model": "tiny", "messages": [' + b"0," * 1_900_000 + b"0]}",
    b'{"model": "tiny", "messages": [{"role": "user", "content": [' + b"{}," * 1_200_000 + b"0]}]}",
    b'{"model": "tiny", "kv_transfer_params": {' + b'"a":0,' * 600_000 + b'"b": 0}}',
    b'{"model": "tiny", "logit_bias": {' + b'"a":[],' * 500_000 + b'"b": 0}}',
    b"[" * 3_900_000,
]


@pytest.mark.parametrize("body", BAD, ids=["messages", "parts", "members", "biases", "depth"])
def test_a_body_of_millions_of_values_is_refused_at_once(guarded: str, body: bytes) -> None:
    """Each would have an error of its own: 37 seconds of processor time, 3.7 GB."""
    headers = {**JSON, "Authorization": f"Bearer {RED}"}
    refused = httpx.post(guarded + CHAT, content=body, headers=headers, timeout=60)
    assert code(refused) == (400, "malformed")
    assert f"{VALUES:,} values" in refused.json()["error"]["message"]


def test_the_first_error_is_told_alone(url: str) -> None:
    turns: list[Any] = [{"role": "user", "content": [0] * 4000}] * 10
    refused = httpx.post(url + CHAT, json={"model": "tiny", "messages": turns})
    assert code(refused) == (400, "malformed")
    assert len(refused.json()["error"]["message"]) < 300


@pytest.mark.parametrize("body", ['"a", [1, {"b": [2]}], "],[{\\"", 3', '"\\\\", "x,y"', "[[],{}]"])
def test_values_are_counted_outside_of_strings(body: str) -> None:
    """Never too few, and commas of a text are none."""

    def count(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value
        return 1 + sum(map(count, inner)) if isinstance(value, (list, dict)) else 1

    padded = f'[{body}, "{"," * VALUES}"]'
    found = values(padded.encode())
    assert count(json.loads(padded)) <= found <= 2 * count(json.loads(padded))


def test_responses_keep_browsers_careful(url: str, guarded: str) -> None:
    for place in (f"{url}/v1/cards", f"{guarded}/v1/cards", f"{url}/nowhere", f"{url}/healthz"):
        headers = httpx.get(place).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    page = httpx.get(url).headers["content-security-policy"]
    assert "script-src 'self'" in page


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_no_page_loads_scripts_from_elsewhere(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 404
    assert httpx.get(f"{url}/openapi.json").status_code == 200


def test_no_tenant_has_the_name_of_the_store_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="default"):
        Access.load(tokens_file(tmp_path, default=RED))
