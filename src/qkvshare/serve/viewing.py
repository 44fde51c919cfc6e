"""The page's view of a store and of a card, as JSON types. A view does not count as a use.

A card holds no salience, which only the sender had. It shows in the bits that each token got.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
from msgspec import structs
from transformers import PreTrainedTokenizerBase

from ..card import CacheCard, Hop
from ..card.digest import TokenIds
from ..card.errors import CardError, CardNotFoundError, ServeError
from ..codecs.stats import TokenBits, describe, token_bits
from ..hf.model.identity import tokenizer_digest
from ..hf.text.detokenizer import Detokenizer
from ..store import Store

MOST_CARDS = 500  # whose headers are read for the list and the graph, the last used first
OVERVIEW_SECONDS = 2.0  # after which no more headers are read
MOST_TOKENS = 1 << 17  # of a card on the page
MOST_BLOBS = 50_000  # runs of tokens, times layers
MOST_HOPS = 20  # from a card to ancestors that are gone


def overview(store: Store) -> dict[str, Any]:
    """Cards, the last used first, and those of their ancestors that are not in the store.

    ``cards``: the fields of `Entry`, and from the header ``nbytes`` (of the whole file),
    ``bits_per_value`` (None with states alone), ``hop``, ``tokens_added`` and ``parent`` (a digest,
    or None); a card whose header cannot be read has ``problem`` instead. ``gone``: digest, agent,
    hop and parent. Also ``left_out``, the number of cards not read, and the store's ``stats``.
    Raises `StoreError`.
    """
    entries, ends = store.ls(), time.monotonic() + OVERVIEW_SECONDS
    cards, lineages, read = [], [], 0
    for entry in entries[:MOST_CARDS]:
        if read and time.monotonic() > ends:
            break  # headers stay in memory, so the next view gets further
        read += 1
        try:
            header, lineage = _header(store, entry.digest)
        except CardNotFoundError:
            continue  # removed just now
        except CardError as error:
            # The message must not tell where the store is.
            problem = str(error).replace(str(store.root), "the store")
            cards.append({**asdict(entry), "problem": problem})
            continue
        cards.append({**asdict(entry), **header})
        lineages.append(lineage)
    here = {card["digest"] for card in cards}
    gone = {hop["digest"]: hop for lineage in lineages for hop in _gone(lineage, here)}
    return {
        "cards": cards,
        "gone": list(gone.values()),
        "left_out": len(entries) - read,
        "sealed": store.sealed,
        "stats": store.stats(),
    }


@lru_cache(maxsize=8 * MOST_CARDS)  # the card of a digest never changes
def _header(store: Store, digest: str) -> tuple[dict[str, Any], list[Hop]]:
    """A card's size and last hop, and the end of its lineage."""
    card = store.peek(digest)
    lineage = card.manifest.lineage[-MOST_HOPS - 1 :]
    bits = card.bits_per_value if card.manifest.layers else None
    known = {"nbytes": card.nbytes, "bits_per_value": bits}
    return {**known, **structs.asdict(lineage[-1])}, lineage


def _gone(lineage: Sequence[Hop], here: set[str]) -> Iterator[dict[str, Any]]:
    """Ancestors up to the first that is here, the nearest first: hop n names hop n - 1's card."""
    for at in range(len(lineage) - 1, 0, -1):
        digest = lineage[at].parent
        if digest is None or digest in here:
            return
        yield {**structs.asdict(lineage[at - 1]), "digest": digest}


def card_view(card: CacheCard, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the page shows of one card: `describe` without the salt, and more.

    ``texts``: see `token_texts`; None if another tokenizer made the ids. ``bits``: see `_bits`;
    None if there are none, or too many. Raises `ServeError` for a card of more tokens or parts than
    the page shows, `CodecError` or the `CardError` family.
    """
    blobs = len(card.manifest.runs) * len(card.manifest.layers)
    if card.tokens > MOST_TOKENS or blobs > MOST_BLOBS:
        raise ServeError(
            f"the card has {card.tokens:,} tokens and {blobs:,} parts, and the page shows at most "
            f"{MOST_TOKENS:,} and {MOST_BLOBS:,}. Use `qkvshare inspect`."
        )
    bits = token_bits(card)
    header = describe(card)
    salt = header.pop("salt")  # only the store needs its value
    return {
        **header,
        "salted": salt is not None,
        "signature": None if card.signature is None else {"key": card.signature.key},
        "ids": card.token_ids.tolist(),
        "texts": _texts(card, tokenizer),
        "bits": None if bits is None else _bits(card, bits),
    }


def _bits(card: CacheCard, bits: TokenBits) -> dict[str, Any]:
    """Encoded bits per value.

    Of each token, mean over layers: ``all``, ``keys``, ``values``. Of each layer, mean over tokens:
    ``layer_keys``, ``layer_values``. Of each token in each layer: ``grid_keys`` and
    ``grid_values``, base64 of uint8 ``[layers, tokens]`` in units of ``unit``.
    """
    layers = card.manifest.layers
    wide = np.array([[layer.kv_heads * layer.head_dim] for layer in layers])
    other = np.array([[layer.kv_heads * layer.v_head_dim] for layer in layers])
    keys, values = (bits.keys * wide).sum(0), (bits.values * other).sum(0)
    unit = max(float(bits.keys.max()), float(bits.values.max()), 1e-3) / 255
    return {
        "all": _rounded((keys + values) / (wide.sum() + other.sum())),
        "keys": _rounded(keys / wide.sum()),
        "values": _rounded(values / other.sum()),
        "layer_keys": _rounded(bits.keys.mean(1)),
        "layer_values": _rounded(bits.values.mean(1)),
        "unit": unit,
        "grid_keys": _base64(bits.keys / unit),
        "grid_values": _base64(bits.values / unit),
    }


def _rounded(numbers: Any) -> list[float]:
    """To a thousandth of a bit."""
    return [float(number) for number in np.round(numbers.astype(np.float64), 3)]


def _base64(numbers: Any) -> str:
    return base64.b64encode(np.rint(numbers).astype(np.uint8).tobytes()).decode()


def _texts(card: CacheCard, tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    if card.manifest.identity.tokenizer != tokenizer_digest(tokenizer):
        return None
    try:
        return token_texts(tokenizer, card.token_ids)
    except OverflowError:  # ids that no tokenizer has
        return None


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: TokenIds) -> list[str]:
    """What each token adds to the text, special tokens too; together they are the decoded text.

    A token that ends within a character adds "", and the token that completes it adds all of it.
    """

    decoder = Detokenizer(tokenizer, answer=False)
    texts = [decoder.add(token) for token in ids.tolist()]
    texts[-1:] = [text + decoder.end() for text in texts[-1:]]
    return texts
