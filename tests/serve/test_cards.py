"""Cards over HTTP: put, get, ranges, tenants, limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkvshare import CacheCard, Raw, capture
from qkvshare.card import Signer
from qkvshare.card.errors import ServeError, StoreError
from qkvshare.hf.session.session import Session
from qkvshare.serve.access import Access, require_host
from qkvshare.serve.app import create_app
from qkvshare.serve.limits import Limits

from .server import Local, make_service, talker, tokens_file

RED, BLUE, WATCHER = "red-token-0123456789", "blue-token-0123456789", "watch-token-0123456789"


@pytest.fixture(scope="module")
def session() -> Session:
    return talker()


@pytest.fixture(scope="module")
def card(session: Session) -> CacheCard:
    return capture(session.model, session.tokenizer, "The tide is high.", codec=Raw())


@pytest.fixture
def client(tmp_path: Path, session: Session) -> Iterator[TestClient]:
    service = make_service(tmp_path / "cards", session, Limits(body=1000, card=1 << 20))
    with Local(create_app(service)) as client:
        yield client


@pytest.fixture
def guarded(tmp_path: Path, session: Session) -> Iterator[TestClient]:
    """Two tenants, and one who reads metrics."""
    tokens = tokens_file(tmp_path, red=RED, blue=BLUE, metrics=WATCHER)
    with Local(create_app(make_service(tmp_path / "cards", session, tokens=tokens))) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def load(data: bytes, folder: Path) -> CacheCard:
    path = folder / "got.card"
    path.write_bytes(data)
    return CacheCard.load(path)


def test_what_is_put_is_got_back(client: TestClient, card: CacheCard, tmp_path: Path) -> None:
    put = client.post("/v1/cards", content=card.to_bytes())
    assert put.status_code == 201
    assert put.json() == {"card": card.digest, "tokens": card.tokens, "bytes": card.nbytes}
    place = put.headers["location"]
    got = client.get(place)
    assert got.content == card.to_bytes()
    assert got.headers["content-type"] == "application/vnd.qkvshare.card"
    assert got.headers["etag"] == f'"{card.digest}"'
    load(got.content, tmp_path).verify()
    head = client.head(place)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == card.nbytes
    (listed,) = client.get("/v1/cards").json()["data"]
    assert (listed["card"], listed["tokens"]) == (card.digest, card.tokens)
    assert client.delete(place).status_code == 204
    assert client.get(place).status_code == 404
    assert client.delete(place).status_code == 404
    assert client.get("/v1/cards").json()["data"] == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.data())
def test_ranges_are_those_bytes(client: TestClient, card: CacheCard, data: st.DataObject) -> None:
    whole, place = card.to_bytes(), f"/v1/cards/{card.digest}"
    client.post("/v1/cards", content=whole)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    got = client.get(place, headers={"Range": f"bytes={start}-{stop - 1}"})
    assert got.content == whole[start:stop]
    if stop - start < len(whole):
        assert got.status_code == 206
        assert got.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
    tail = client.get(place, headers={"Range": f"bytes=-{stop}"})
    assert tail.content == whole[-stop:]
    assert client.get(place, headers={"Range": f"bytes={start}-"}).content == whole[start:]


def test_ranges_outside_and_malformed(client: TestClient, card: CacheCard) -> None:
    whole, place = card.to_bytes(), f"/v1/cards/{card.digest}"
    client.post("/v1/cards", content=whole)
    outside = client.get(place, headers={"Range": f"bytes={len(whole)}-"})
    assert outside.status_code == 416
    assert outside.headers["content-range"] == f"bytes */{len(whole)}"
    for wanted in ("bytes=-", "bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"):
        got = client.get(place, headers={"Range": wanted})
        assert (got.status_code, got.content) == (200, whole)


def test_what_is_no_card_or_damaged_is_refused_and_leaves_nothing(
    client: TestClient, card: CacheCard, tmp_path: Path
) -> None:
    damaged = bytearray(card.to_bytes())
    damaged[-1] ^= 1
    for content in (b"", b"not a card", card.to_bytes()[:-10], bytes(damaged)):
        refused = client.post("/v1/cards", content=content)
        assert refused.status_code == 422
        assert str(tmp_path) not in refused.text
    assert client.get("/v1/cards").json()["data"] == []
    assert {path.name for path in (tmp_path / "cards").iterdir()} == {"default"}


def test_bodies_are_bounded_however_they_come(client: TestClient, tmp_path: Path) -> None:
    big = b"x" * ((1 << 20) + 1)
    assert client.post("/v1/cards", content=big).status_code == 413
    pieces = (big[at : at + 65536] for at in range(0, len(big), 65536))
    refused = client.post("/v1/cards", content=pieces)  # chunked: no length is announced
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "body_too_long"
    body = b'{"model": "tiny", "messages": "' + b"x" * 1000 + b'"}'
    for content in (body, iter([body[:600], body[600:]])):
        assert client.post("/v1/chat/completions", content=content).status_code == 413
    assert {path.name for path in (tmp_path / "cards").iterdir()} == {"default"}


def test_a_card_that_is_damaged_in_the_store_is_cut_off(
    tmp_path: Path, session: Session, card: CacheCard
) -> None:
    service = make_service(tmp_path, session)
    with Local(create_app(service), raise_server_exceptions=False) as client:
        client.post("/v1/cards", content=card.to_bytes())
        (segment,) = (tmp_path / "default" / "segments").rglob("*.segment")
        data = bytearray(segment.read_bytes())
        data[-1] ^= 1
        segment.write_bytes(data)
        got = b""
        try:
            with client.stream("GET", f"/v1/cards/{card.digest}") as answer:
                for piece in answer.iter_raw():
                    got += piece
        except Exception:  # the connection breaks off
            pass
    assert len(got) < card.nbytes


def test_nothing_without_a_token(guarded: TestClient, card: CacheCard) -> None:
    for headers in ({}, bearer("wrong-token-0123456789"), {"Authorization": f"Basic {RED}"}):
        for method, path in (
            ("GET", "/v1/cards"),
            ("POST", "/v1/cards"),
            ("GET", f"/v1/cards/{card.digest}"),
            ("HEAD", f"/v1/cards/{card.digest}"),
            ("DELETE", f"/v1/cards/{card.digest}"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
        ):
            refused = guarded.request(method, path, headers=headers)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
        asked = guarded.post("/v1/chat/completions", json=body, headers=headers)
        assert asked.status_code == 401
    assert guarded.get("/healthz").status_code == 200


def test_tenants_see_only_their_own(guarded: TestClient, card: CacheCard, tmp_path: Path) -> None:
    red, blue = bearer(RED), bearer(BLUE)
    put = guarded.post("/v1/cards", content=card.to_bytes(), headers=red).json()
    assert put["card"] != card.digest  # its digests are the tenant's own
    place = f"/v1/cards/{put['card']}"
    mine = load(guarded.get(place, headers=red).content, tmp_path)
    assert mine.token_ids.tolist() == card.token_ids.tolist()
    assert guarded.get(place, headers=blue).status_code == 404
    assert guarded.delete(place, headers=blue).status_code == 404
    assert guarded.get("/v1/cards", headers=blue).json()["data"] == []
    ask = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "When?"}],
        "max_tokens": 4,
        "kv_transfer_params": {"card": put["card"]},
    }
    assert guarded.post("/v1/chat/completions", json=ask, headers=red).status_code == 200
    assert guarded.post("/v1/chat/completions", json=ask, headers=blue).status_code == 404


def test_metrics_have_a_token_of_their_own(guarded: TestClient) -> None:
    assert guarded.get("/metrics", headers=bearer(RED)).status_code == 401
    assert b"qkvshare_tokens" in guarded.get("/metrics", headers=bearer(WATCHER)).content
    assert guarded.get("/v1/cards", headers=bearer(WATCHER)).status_code == 401


def test_a_signature_that_would_be_lost_is_not_lost_silently(
    guarded: TestClient, client: TestClient, card: CacheCard
) -> None:
    signed = card.signed(Signer.generate()).to_bytes()
    assert client.post("/v1/cards", content=signed).status_code == 201
    refused = guarded.post("/v1/cards", content=signed, headers=bearer(RED))
    assert refused.status_code == 422
    assert "signature" in refused.json()["error"]["message"]


def test_a_store_that_is_full_says_so(tmp_path: Path, session: Session, card: CacheCard) -> None:
    service = make_service(tmp_path, session)
    service.stores.limit = 1000
    with Local(create_app(service)) as client:
        refused = client.post("/v1/cards", content=card.to_bytes())
    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "store_full"


def test_a_disk_that_is_full_says_so(
    client: TestClient, card: CacheCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qkvshare.store.upload.tempfile.TemporaryFile", full)
    refused = client.post("/v1/cards", content=card.to_bytes())
    assert refused.status_code == 507
    assert "No space left" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("short red\n", 0o600, "line 1"),
        (f"{RED}\n", 0o600, "line 1"),
        (f"# nothing\n\n{RED} red\n{RED} blue\n", 0o600, "line 4"),
        ("# nobody\n", 0o600, "no token"),
        (f"{RED} red\n", 0o644, "chmod 600"),
        (None, 0, "cannot be read"),
    ],
)
def test_token_files_that_are_no_good(
    tmp_path: Path, content: str | None, mode: int, words: str
) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ServeError, match=words) as caught:
        Access.load(path)
    assert RED not in str(caught.value)


def test_others_are_served_with_tokens_only(tmp_path: Path) -> None:
    nobody, somebody = Access({}), Access.load(tokens_file(tmp_path, red=RED))
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        require_host(host, nobody)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", ""):
        with pytest.raises(ServeError, match="--tokens"):
            require_host(host, nobody)
        require_host(host, somebody)


def test_stores_are_opened_before_the_first_request(tmp_path: Path, session: Session) -> None:
    service = make_service(tmp_path, session, tokens=tokens_file(tmp_path, UPPER=RED))
    with pytest.raises(StoreError, match="UPPER"):
        service.stores.all()


def test_a_card_crosses_from_server_to_server(
    guarded: TestClient, tmp_path: Path, session: Session
) -> None:
    """As docs/guide.md has it: another server, another tenant, the same model."""
    document = {"role": "user", "content": "The tide is high at noon."}
    question = {"role": "user", "content": "When?"}
    ask = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    with Local(create_app(make_service(tmp_path / "first", session))) as first:
        kept = first.post(
            "/v1/chat/completions",
            json={**ask, "messages": [document], "kv_transfer_params": {"keep": True}},
        ).json()
        card = kept["kv_transfer_params"]["card"]
        here = first.post(
            "/v1/chat/completions",
            json={**ask, "messages": [question], "kv_transfer_params": {"card": card}},
        ).json()
        file = first.get(f"/v1/cards/{card}").content
    put = guarded.post("/v1/cards", content=file, headers=bearer(RED)).json()
    there = guarded.post(
        "/v1/chat/completions",
        json={**ask, "messages": [question], "kv_transfer_params": {"card": put["card"]}},
        headers=bearer(RED),
    ).json()
    assert there["choices"] == here["choices"]
    assert there["usage"] == here["usage"]
