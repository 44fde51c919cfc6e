"""Cards of agents that wait on tools are kept as long as the waits seen make it worth."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import pytest

from qkvshare.card.errors import CardNotFoundError
from qkvshare.store import Store
from qkvshare.store.ttl import Ttl
from tests.cards import make_card


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr("time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def come_back(store: Store, digest: str) -> None:
    """The agent asks for its card; whether it is still there is not the question."""
    with suppress(CardNotFoundError):
        store.get(digest)


def test_without_a_limit_cards_wait_for_ever(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path)
    digest = store.put(make_card())
    assert store.hold(digest, "search") == math.inf
    clock.now += 1e8
    assert store.get(digest).tokens == 9


def test_a_short_tool_is_waited_for_and_a_long_one_is_not(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path / "store", limit=3 * _size(tmp_path))
    for round_ in range(2 * Ttl().enough):
        cards = [store.put(make_card(seed=10 * round_ + n), saved_ms=1000) for n in range(5)]
        for digest in cards[1:]:
            with suppress(CardNotFoundError):  # five do not fit
                store.hold(digest, "build")
        quick = store.put(make_card(seed=10 * round_), saved_ms=1000)
        kept = store.hold(quick, "search")
        clock.now += 2
        come_back(store, quick)
        clock.now += 1000
        for digest in cards[1:]:
            come_back(store, digest)
    slow = store.hold(store.put(make_card(seed=999), saved_ms=1000), "build")
    assert 2.0 <= kept < math.inf
    assert slow == 0
    rows = store.index.rows("SELECT tool, seconds FROM waited")
    assert {(row["tool"], row["seconds"]) for row in rows} == {("search", 2.0), ("build", 1002.0)}


def test_who_waited_too_long_goes_first(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path / "store", limit=3 * _size(tmp_path))
    digests = [store.put(make_card(seed=n), saved_ms=1000 - n) for n in range(3)]
    clock.now += 100
    with store.index.writing():
        for digest, seconds in zip(digests, (-1, 50, 60), strict=True):
            store.index.run(
                "UPDATE card SET yields_at = ? WHERE digest = ?", clock.now + seconds, digest
            )
    assert store.get(digests[0]).tokens == 9, "its time is over, but nobody needs the room"
    store.put(make_card(seed=3))
    assert digests[0] not in {entry.digest for entry in store.ls()}
    store.put(make_card(seed=4))
    assert {entry.digest for entry in store.ls()} >= {*digests[1:]}


def test_what_was_learnt_survives_the_process_and_is_bounded(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path)
    digest = store.put(make_card())
    for _ in range(Ttl().last + 5):
        store.hold(digest, "search")
        clock.now += 3
        store.get(digest)
    store.close()
    rows = Store(tmp_path).index.rows("SELECT * FROM waited")
    assert len(rows) == Ttl().last


def test_who_never_comes_back_is_learnt_from(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path)
    store.hold(store.put(make_card()), "search")
    clock.now += 25 * 3600
    store.gc()
    (row,) = store.index.rows("SELECT seconds FROM waited")
    assert row["seconds"] == math.inf


def test_only_a_card_that_is_there_can_wait(tmp_path: Path) -> None:
    with pytest.raises(CardNotFoundError):
        Store(tmp_path).hold("0" * 64, "search")


def _size(tmp_path: Path) -> int:
    store = Store(tmp_path / "size")
    store.put(make_card())
    return store.stats()["bytes"]
