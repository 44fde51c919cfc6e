"""A card in the store that answers wrongly, or not at all, harms nobody who did not name it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from qkvshare import CacheCard, Raw, capture
from qkvshare.card import Signer
from qkvshare.card.container import MEDIA_TYPE
from qkvshare.card.digest import digest_bytes
from qkvshare.hf.session.session import Session
from qkvshare.serve.app import create_app
from qkvshare.serve.service import Service

from .server import Local, make_service, talker

ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 8,
    "temperature": 0,
    "messages": [{"role": "user", "content": "The tide is high at noon."}],
}
TYPE = {"Content-Type": MEDIA_TYPE}


@pytest.fixture(scope="module")
def session() -> Session:
    return talker()


@pytest.fixture(scope="module")
def card(session: Session) -> CacheCard:
    """As the prompt begins."""
    ids = session.chat.whole(ASK["messages"])[:-3]
    return capture(session.model, session.tokenizer, ids, codec=Raw())


@pytest.fixture(scope="module")
def text(session: Session, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is answered where there is no card."""
    with Local(create_app(make_service(tmp_path_factory.mktemp("none"), session))) as client:
        return str(said(client))


@pytest.fixture
def service(tmp_path: Path, session: Session) -> Service:
    return make_service(tmp_path / "cards", session)


@pytest.fixture
def client(service: Service) -> Iterator[Local]:
    with Local(create_app(service)) as client:
        yield client


def said(client: Local, **transfer: Any) -> str:
    answer = client.post("/v1/chat/completions", json={**ASK, "kv_transfer_params": transfer})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def cached(client: Local) -> int:
    usage = client.post("/v1/chat/completions", json=ASK).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def forged(card: CacheCard, change: Callable[[Any], Any], **of_layer: Any) -> CacheCard:
    """Right in every digest, with the same ids: other numbers, or another geometry."""
    (segment,) = card.manifest.segments
    tensors = {name: np.array(card.tensors[name]) for name in card.tensors}
    names = sorted(name for name in tensors if name.startswith("kv."))
    for name in names:
        tensors[name] = change(tensors[name].view("<f4")).view(np.uint8)
    segment = replace(segment, blobs=[digest_bytes(tensors[name], None) for name in names])
    layers = [replace(layer, **of_layer) for layer in card.manifest.layers]
    return CacheCard(replace(card.manifest, segments=[segment], layers=layers), tensors)


def unknown(card: CacheCard) -> CacheCard:
    (segment,) = card.manifest.segments
    codec = replace(segment.codec, name="none-such")
    manifest = replace(card.manifest, segments=[replace(segment, codec=codec)])
    return CacheCard(manifest, card.tensors)


FORGED: dict[str, Callable[[CacheCard], CacheCard]] = {
    "codec": unknown,
    "not finite": lambda card: forged(card, lambda numbers: numbers * np.float32(np.nan)),
    "value dimension": lambda card: forged(card, lambda numbers: numbers, v_head_dim=64),
    "dimension": lambda card: forged(card, lambda numbers: numbers, head_dim=4),
    "heads": lambda card: forged(card, lambda numbers: numbers, kv_heads=1),
    "too few bytes": lambda card: forged(card, lambda numbers: numbers[:-8].copy()),
}


def test_what_somebody_put_is_used_only_where_it_is_named(
    client: Local, card: CacheCard, text: str
) -> None:
    other = forged(card, lambda numbers: -3 * numbers)
    put = client.post("/v1/cards", content=other.to_bytes())
    assert put.status_code == 201
    assert said(client) == text
    assert cached(client) == 0
    assert said(client, card=other.digest) != text, "the test shows nothing"


def test_what_grows_from_it_is_not_found_either(client: Local, card: CacheCard, text: str) -> None:
    put = "/v1/chat/completions"
    other = forged(card, lambda numbers: -3 * numbers)
    client.post("/v1/cards", content=other.to_bytes())
    client.post(put, json={**ASK, "kv_transfer_params": {"card": other.digest, "keep": True}})
    client.delete(f"/v1/cards/{other.digest}")
    assert len(client.get("/v1/cards").json()["data"]) == 1
    assert cached(client) == 0
    assert said(client) == text
    client.post("/v1/cards?vouch=true", content=card.to_bytes(), headers=TYPE)
    client.post(put, json={**ASK, "kv_transfer_params": {"card": card.digest, "keep": True}})
    client.delete(f"/v1/cards/{card.digest}")
    assert cached(client) == card.tokens
    assert said(client) == text


@pytest.mark.parametrize("vouched", ["by the sender", "by a signature", "by another signature"])
def test_who_vouches_for_a_card_lets_prompts_find_it(
    tmp_path: Path, session: Session, card: CacheCard, text: str, vouched: str
) -> None:
    service, signer = make_service(tmp_path / "cards", session), Signer.generate()
    service.stores.trust = tmp_path / "trusted.txt"
    service.stores.trust.write_text(signer.public)
    path, sent = "/v1/cards", card
    if vouched == "by the sender":
        path += "?vouch=true"
    else:
        sent = card.signed(signer if vouched == "by a signature" else Signer.generate())
    with Local(create_app(service)) as client:
        assert client.post(path, content=sent.to_bytes(), headers=TYPE).status_code == 201
        assert cached(client) == (0 if vouched == "by another signature" else card.tokens)
        assert said(client) == text


@pytest.mark.parametrize("how", FORGED)
def test_what_no_prompt_can_use_is_not_put(client: Local, card: CacheCard, how: str) -> None:
    refused = client.post("/v1/cards", content=FORGED[how](card).to_bytes())
    assert refused.status_code in (400, 409, 422), refused.text
    assert client.get("/v1/cards").json()["data"] == []


def test_a_thin_card_is_checked_with_what_completes_it(
    client: Local, session: Session, card: CacheCard
) -> None:
    ids = session.chat.whole(ASK["messages"])
    child = capture(session.model, session.tokenizer, ids, parent=card, codec=Raw())
    last = child.manifest.segments[1]
    nothing = {name: np.full_like(child.tensors[name], 0xFF) for name in child.tensors}
    bad = {n: nothing[n] if n.startswith("kv.") else child.tensors[n] for n in child.tensors}
    names = sorted(name for name in bad if name.startswith("kv.") and name.endswith(".0001"))
    segment = replace(last, blobs=[digest_bytes(bad[name], None) for name in names])
    manifest = replace(child.manifest, segments=[card.manifest.segments[0], segment])
    client.post("/v1/cards", content=card.to_bytes())
    for thin, status in ((CacheCard(manifest, bad).without(card), 422), (child.without(card), 201)):
        put = client.post("/v1/cards", content=thin.to_bytes())
        assert put.status_code == status, put.text
    there = {each["card"] for each in client.get("/v1/cards").json()["data"]}
    assert there == {card.digest, child.digest}


@pytest.mark.parametrize("how", FORGED)
def test_a_card_that_a_prompt_found_and_cannot_use_is_a_miss(
    client: Local, service: Service, card: CacheCard, text: str, how: str
) -> None:
    """As in a store of earlier days, or of another program."""
    digest = service.stores.of(None).put(FORGED[how](card))
    with pytest.warns(UserWarning, match="cannot be used"):
        assert said(client) == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert said(client) == text  # it is not tried again
    named = client.post(
        "/v1/chat/completions", json={**ASK, "kv_transfer_params": {"card": digest}}
    )
    assert named.status_code in (400, 409, 422)


@pytest.mark.parametrize("part", ["card", "segment"])
@pytest.mark.parametrize("length", [0, 100, None])
def test_a_damaged_card_that_a_prompt_found_is_a_miss(
    client: Local, service: Service, card: CacheCard, text: str, part: str, length: int | None
) -> None:
    store = service.stores.of(None)
    store.put(card)
    assert cached(client) == card.tokens
    folder = store.folder
    path = folder.card_path(card.digest)
    if part == "segment":
        path = folder.segment_path(card.manifest.names[0])
    if length is None:
        path.unlink()
    else:
        os.truncate(path, length)
    with pytest.warns(UserWarning, match="cannot be used") if path.exists() else nullcontext():
        assert said(client) == text
    store.put(card)  # repaired
    assert cached(client) == card.tokens
    assert said(client) == text
