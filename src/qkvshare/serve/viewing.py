"""What the page shows of a store and of a card, as JSON types. Looking at a card is no use of it.

A card holds no salience: it is the sender's, and is gone. What is left of it are the bits that each
token got, which is what is shown.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerBase

from ..card import CacheCard, Hop
from ..card.digest import TokenIds
from ..card.errors import CardError, CardNotFoundError, ServeError
from ..codecs.stats import TokenBits, sizes, token_bits
from ..hf.model.identity import tokenizer_digest
from ..hf.text.detokenizer import Detokenizer
from ..store import Store
from ..store.catalog import Entry

MOST_CARDS = 500  # whose headers are read for the list and the graph, the last used first
OVERVIEW_SECONDS = 2.0  # after which no more headers are read
MOST_TOKENS = 1 << 17  # of a card that is shown
MOST_BLOBS = 50_000  # runs of tokens, times layers
MOST_HOPS = 20  # that are followed from a card to ancestors that are gone


def overview(store: Store) -> dict[str, Any]:
    """Cards, the last used first, and the ancestors of theirs that are not in the store (any more).

    ``cards``: what `Store.ls` says of each, and from its header ``nbytes`` (of the whole file),
    ``bits_per_value``, ``hop``, ``tokens_added`` and ``parent`` (a digest, or None); a card whose
    header cannot be read has ``problem`` instead. ``gone``: digest, agent, hop and parent. Also
    ``left_out``, the number of cards not read, and the store's ``stats``. Raises `StoreError`.
    """
    entries, ends = store.ls(), time.monotonic() + OVERVIEW_SECONDS
    cards, lineages, read = [], [], 0
    for entry in entries[:MOST_CARDS]:
        if read and time.monotonic() > ends:
            break  # what was read is kept in memory: the next look gets further
        read += 1
        try:
            header, lineage = _header(store, entry.digest)
        except CardNotFoundError:
            continue  # removed just now
        except CardError as error:
            # Where on the server the store is, is nobody's business.
            problem = str(error).replace(str(store.root), "the store")
            cards.append({**_entry(entry), "problem": problem})
            continue
        cards.append({**_entry(entry), **header})
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


@lru_cache(maxsize=8 * MOST_CARDS)  # what a digest stands for never changes
def _header(store: Store, digest: str) -> tuple[dict[str, Any], list[Hop]]:
    """Of a card its size and last hop, and the last of its lineage."""
    card = store.peek(digest)
    lineage = card.manifest.lineage[-MOST_HOPS - 1 :]
    known = {"nbytes": card.nbytes, "bits_per_value": card.bits_per_value}
    return {**known, **_hop(lineage[-1])}, lineage


def _entry(entry: Entry) -> dict[str, Any]:
    return dict(msgspec.to_builtins(entry))


def _hop(hop: Hop) -> dict[str, Any]:
    return {
        "hop": hop.hop,
        "agent": hop.agent,
        "tokens_added": hop.tokens_added,
        "parent": hop.parent,
    }


def _gone(lineage: Sequence[Hop], here: set[str]) -> Iterator[dict[str, Any]]:
    """Ancestors up to the first that is there, the nearest first: hop n names hop n - 1's card."""
    for at in range(len(lineage) - 1, 0, -1):
        digest = lineage[at].parent
        if digest is None or digest in here:
            return
        yield {**_hop(lineage[at - 1]), "digest": digest}


def card_view(card: CacheCard, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that the page shows of one card.

    ``texts``: of each token, see `token_texts`; None where another tokenizer made the ids.
    ``bits``: see `_bits`; None where there are too many. Raises `ServeError` for a card of more
    tokens or parts than are shown, `CodecError` or the `CardError` family.
    """
    manifest, signature = card.manifest, card.signature
    blobs = len(manifest.runs) * len(manifest.layers)
    if card.tokens > MOST_TOKENS or blobs > MOST_BLOBS:
        raise ServeError(
            f"the card has {card.tokens:,} tokens and {blobs:,} parts, and the page shows at most "
            f"{MOST_TOKENS:,} and {MOST_BLOBS:,}. `qkvshare inspect` tells of it."
        )
    bits = token_bits(card)
    return {
        "digest": card.digest,
        "created": manifest.created.isoformat(),
        "expires": None if manifest.expires is None else manifest.expires.isoformat(),
        "salted": manifest.salt is not None,
        "tokens": card.tokens,
        "nbytes": card.nbytes,
        "bits_per_value": card.bits_per_value,
        "bytes": sizes(card),
        "ids": card.token_ids.tolist(),
        "texts": _texts(card, tokenizer),
        "bits": None if bits is None else _bits(card, bits),
        "layers": msgspec.to_builtins(manifest.layers),
        "segments": [
            {
                "segment": run.segment,
                "start": run.start,
                "end": run.end,
                "codec": msgspec.to_builtins(run.codec),
                "allocation": msgspec.to_builtins(run.allocation),
                "here": run.segment >= card.thin,
            }
            for run in manifest.runs
        ],
        "identity": msgspec.to_builtins(manifest.identity),
        "signature": None if signature is None else {"key": signature.key},
        "lineage": [_hop(hop) for hop in manifest.lineage],
    }


def _bits(card: CacheCard, bits: TokenBits) -> dict[str, Any]:
    """Encoded bits per value: of each token ``all``, ``keys`` and ``values``, means over layers; of
    each layer ``layer_keys`` and ``layer_values``, means over tokens; and of each in each
    ``grid_keys`` and ``grid_values``, uint8 ``[layers, tokens]`` in units of ``unit``, base64."""
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
    except OverflowError:  # ids that are none
        return None


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: TokenIds) -> list[str]:
    """What each token adds to the text, special tokens too; together they are the decoded text.

    A token that ends within a character adds "", and the token that completes it adds all of it.
    """

    decoder = Detokenizer(tokenizer, answer=False)
    texts = [decoder.add(token) for token in ids.tolist()]
    texts[-1:] = [text + decoder.end() for text in texts[-1:]]
    return texts
