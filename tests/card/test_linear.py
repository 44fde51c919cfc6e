"""What reshaping and inspecting a card costs: every byte is read once, however a card is cut up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.codecs import Uniform
from qkvshare import CacheCard
from qkvshare.card.contents import Contents
from qkvshare.cli import inspect
from qkvshare.codecs import decode_runs, stats
from qkvshare.codecs.stats import describe

from ..cards import make_card

KINDS = {
    "segments": make_card(Uniform(4), (2,) * 12),
    "joined": make_card(Uniform(4), (2,) * 12, joined=True),
    "compacted": make_card(Uniform(4), (2,) * 12, joined=True).compact(),
}
WORK: dict[str, Callable[[CacheCard], Any]] = {
    "compact": lambda card: card.compact(),
    "verify": lambda card: card.verify(),
    "token_bits": stats.token_bits,
    "decode": lambda card: [list(pair) for pair in zip(*decode_runs(card), strict=True)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", WORK)
def test_every_blob_is_read_once(kind: str, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[tuple[int, int]] = Counter()
    genuine = Contents._blob

    def count(card: Contents, number: int, segment: int) -> Any:
        read[number, segment] += 1
        return genuine(card, number, segment)

    monkeypatch.setattr(Contents, "_blob", count)
    card = KINDS[kind]
    WORK[work](CacheCard(card.manifest, card.tensors))
    assert len(read) == sum(len(segment.blobs) for segment in card.manifest.segments)
    assert set(read.values()) == {1}


def test_no_table_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes time with the square of a table's rows."""
    tables: list[int] = []
    monkeypatch.setattr(inspect.out, "print", lambda table: tables.append(table.row_count))
    card = make_card(Uniform(4), (1,) * 120)
    inspect._print(describe(card))
    assert max(tables) <= 50
    assert sum(tables) > 240
