"""Names for pieces of token ids, so that a text is found whatever stands before it.

Ids are cut where their content says so: behind four tokens whose hash ends in zeros, as rsync and
backup tools cut files. The same text in another prompt is cut at the same places, but for the
chunk or two in which it begins and ends. A chunk is named by a digest of its ids. Chunks that
follow each other both in the prompt and in a card are one piece, and that piece is then lengthened
token by token, by the card's own ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from blake3 import blake3

from ..card import Identity
from ..card.digest import TokenIds, digest_json

_LOOKS_AT = 4  # tokens that say whether a chunk ends behind them
_LEAST, _MOST = 8, 128  # tokens of a chunk
_ZEROS = np.uint64(15)  # bits of the hash: 24 tokens a chunk on average, the least included
_FACTOR = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_NAME_BYTES = 16


@dataclass(frozen=True)
class Chunks:
    """The chunks of one sequence of ids, for one model.

    Attributes:
        ids: all tokens.
        starts: the first token of each chunk; and behind the last one, the end of all.
        names: of each chunk, 16 bytes. Ids are compared once a name is found, so they only have to
            be rare.
    """

    ids: TokenIds
    starts: list[int]
    names: list[bytes]

    @classmethod
    def of(
        cls, ids: Sequence[int] | TokenIds, identity: Identity, salt: str | None = None
    ) -> Chunks:
        """Cut ``ids``, ``[tokens]``; another model's and another tenant's have other names."""
        data = np.asarray(ids, dtype="<i4")
        seed = b"piece" + bytes.fromhex(digest_json(identity, salt))
        starts = [0, *_ends(data)]
        names = [
            blake3(seed + data[start:end].tobytes()).digest(_NAME_BYTES)
            for start, end in pairwise(starts)
        ]
        return cls(data, starts, names)


def _ends(ids: TokenIds) -> list[int]:
    """Behind which tokens chunks end; the last is the end of all."""
    mixed = np.zeros(len(ids), np.uint64)
    with np.errstate(over="ignore"):
        for back in range(_LOOKS_AT):
            shifted = np.zeros(len(ids), np.uint64)
            shifted[back:] = ids[: len(ids) - back]
            mixed = (mixed + shifted + np.uint64(1)) * np.uint64(_FACTOR)
            mixed ^= mixed >> np.uint64(29)
    marks = (np.nonzero(mixed & _ZEROS == 0)[0] + 1).tolist()
    ends, start = list[int](), 0
    for mark in [*marks, len(ids)]:
        while mark - start > _MOST:
            start += _MOST
            ends.append(start)
        if mark - start >= _LEAST:
            ends.append(mark)
            start = mark
    if start < len(ids):
        ends.append(len(ids))
    return ends


@dataclass(frozen=True)
class Excerpt:
    """Tokens that a prompt shares with a card, wherever they stand.

    Attributes:
        card: the card's digest.
        start: the first of them in the card.
        at: the first of them in the prompt.
        tokens: how many.
    """

    card: str
    start: int
    at: int
    tokens: int


def lengthen(piece: Excerpt, card_ids: TokenIds, prompt: TokenIds, first: int) -> Excerpt | None:
    """``piece`` as far as the ids are equal on both sides, from ``first`` of the prompt on; None
    where they differ within it."""
    start, at, tokens = piece.start, piece.at, piece.tokens
    if not np.array_equal(card_ids[start : start + tokens], prompt[at : at + tokens]):
        return None
    before = min(start, at - first)
    if before > 0:
        same = card_ids[start - before : start] == prompt[at - before : at]
        more = before if same.all() else int(np.argmin(same[::-1]))
        start, at, tokens = start - more, at - more, tokens + more
    after = min(len(card_ids) - start, len(prompt) - at) - tokens
    if after > 0:
        same = (
            card_ids[start + tokens : start + tokens + after]
            == prompt[at + tokens : at + tokens + after]
        )
        tokens += after if same.all() else int(np.argmin(same))
    return Excerpt(piece.card, start, at, tokens)
