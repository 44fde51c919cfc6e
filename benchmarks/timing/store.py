"""What a full store costs: put, get, match and open, with many small cards in it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qkvshare.card import (
    Allocation,
    CacheCard,
    CodecRecord,
    Hop,
    Identity,
    Layer,
    Manifest,
    Segment,
)
from qkvshare.card.container import blob_name, ids_name
from qkvshare.card.digest import digest_bytes, empty_chain, extend_chain
from qkvshare.store import Store

_IDENTITY = Identity(weights="1" * 64, config="2" * 64, adapter=None, rope="{}", dtype="float32")
_LAYERS = [Layer(kind="full", kv_heads=3, head_dim=64, v_head_dim=64)] * 30  # of SmolLM2-135M
_TOKENS = 128


def measure_store(cards: int, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Names of operations and their times in ms, in a store that ends with ``cards`` cards.

    Puts are those of the last ``rounds`` cards. A card has 128 tokens and 31 kB, a prompt has 8192
    tokens.
    """
    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "store"
        store = Store(root)
        made = []
        puts = []
        for _ in range(cards):
            card = _card(chance)
            puts.append(_ms(partial(store.put, card)))
            made.append((card.digest, card.token_ids))
        yield "put", puts[-rounds:]
        picked = [made[at] for at in chance.integers(cards, size=rounds)]
        yield "get and verify", [_ms(partial(_read, store, digest)) for digest, _ in picked]
        tail = chance.integers(49152, size=8192 - _TOKENS).astype(np.int32)
        prompts = [np.concatenate([ids, tail]) for _, ids in picked]
        assert store.match(prompts[0], _IDENTITY) is not None
        yield "match", [_ms(partial(store.match, each, _IDENTITY)) for each in prompts]
        inside = [np.concatenate([tail[:4000], ids, tail[4000:]]) for _, ids in picked]
        assert store.pieces(inside[0], _IDENTITY)
        yield "pieces", [_ms(partial(store.pieces, each, _IDENTITY)) for each in inside]
        yield "pieces of nothing", [_ms(partial(store.pieces, tail, _IDENTITY)) for _ in picked]
        yield "match nothing", [_ms(partial(store.match, tail, _IDENTITY)) for _ in range(rounds)]
        store.close()
        yield "open", [_ms(lambda: Store(root).close()) for _ in range(rounds)]


def _read(store: Store, digest: str) -> None:
    store.get(digest).verified()


def _ms(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def _card(chance: np.random.Generator) -> CacheCard:
    """Random bytes, in one blob as short segments have it."""
    ids = chance.integers(49152, size=_TOKENS).astype(np.int32)
    sizes = [1024] * len(_LAYERS)
    blob = chance.integers(256, size=sum(sizes), dtype=np.uint8)
    segment = Segment(
        start=0,
        end=_TOKENS,
        prefix=empty_chain(None),
        chain=extend_chain(empty_chain(None), ids, None),
        codec=CodecRecord("packed", 2, {}),
        allocation=Allocation(),
        blobs=[digest_bytes(blob)],
        sizes=sizes,
    )
    manifest = Manifest(
        created=datetime.now(UTC).replace(microsecond=0),
        identity=_IDENTITY,
        layers=_LAYERS,
        segments=[segment],
        lineage=[Hop(hop=0, agent="bench", tokens_added=_TOKENS)],
    )
    return CacheCard(manifest, {ids_name(0): ids, blob_name(0, 0): blob})
