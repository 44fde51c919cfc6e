"""What users of a store rely on: what was put is there, once, and nobody loses it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qkvshare.card import CacheCard, Key
from qkvshare.card.errors import (
    CardDigestError,
    CardKeyError,
    CardNotFoundError,
    CardThinError,
    StoreError,
    StoreFullError,
)
from qkvshare.store import Store
from qkvshare.store.folder import Folder
from tests.cards import IDENTITY, make_card


def same(one: CacheCard, other: CacheCard) -> bool:
    """The same card, to the last byte."""
    mine, theirs = one.verified(), other.verified()
    return one.digest == other.digest and all(
        np.array_equal(mine[name], theirs[name]) for name in mine.keys() | theirs.keys()
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("joined", [False, True])
def test_what_was_put_is_there_also_for_others(store: Store, joined: bool) -> None:
    card = make_card(joined=joined)
    digest = store.put(card)
    assert digest == card.digest
    assert same(Store(store.root).get(digest), card)
    assert store.get(digest).nbytes == card.nbytes


def test_a_card_opened_from_the_store_can_be_saved_and_reshaped(
    store: Store, tmp_path: Path
) -> None:
    card = make_card()
    got = store.get(store.put(card))
    assert same(CacheCard.load(got.save(tmp_path / "a.card")), card)
    assert got.compact().tokens == card.tokens
    assert store.put(got.fork("worker")) != card.digest


def test_shared_segments_are_kept_once(store: Store) -> None:
    card = make_card(runs=(60, 30))
    digests = [store.put(card), store.put(card.fork("a")), store.put(card.fork("b"))]
    assert len({*digests}) == 3
    stats = store.stats()
    assert (stats["cards"], stats["segments"]) == (3, 2)
    assert stats["bytes"] == sum(
        path.stat().st_size for path in store.folder.root.rglob("*") if path.suffix in KINDS
    )
    store.remove(digests[0])
    assert same(store.get(digests[1]), CacheCard(store.get(digests[1]).manifest, card.tensors))
    store.remove(digests[1])
    store.remove(digests[2])
    assert store.stats()["bytes"] == store.stats()["segments"] == 0
    assert not [path for path in store.folder.root.rglob("*") if path.suffix in KINDS]


KINDS = {".card", ".segment"}


def test_a_thin_card_is_completed_by_its_parents_segments(store: Store) -> None:
    parent, child = make_card(runs=(6,)), make_card(runs=(6, 3))
    thin = child.without(parent)
    with pytest.raises(CardThinError, match="Put its parent first"):
        store.put(thin)
    assert store.stats()["cards"] == 0
    store.put(parent)
    assert same(store.get(store.put(thin)), child)


def test_a_damaged_card_is_not_put(store: Store) -> None:
    card = make_card()
    broken = {name: np.array(card.tensors[name]) for name in card.tensors}
    broken["kv.0001.0000"][3] ^= 1
    with pytest.raises(CardDigestError):
        store.put(CacheCard(card.manifest, broken))
    assert store.stats()["cards"] == 0


def test_everything_is_private(store: Store) -> None:
    store.put(make_card())
    for path in [store.root, *store.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_putting_again_changes_nothing_but_the_time_to_live(store: Store) -> None:
    card = make_card()
    store.put(card, ttl=1000)
    store.put(card)
    (entry,) = store.ls()
    assert entry.expires_at is None
    assert entry.digest == card.digest


def test_unknown_cards(store: Store) -> None:
    for ask in (store.get, store.remove):
        with pytest.raises(CardNotFoundError, match="not in the store"):
            ask("0" * 64)
    with pytest.raises(CardNotFoundError), store.lease("0" * 64):
        pass
    with pytest.raises(CardNotFoundError, match="agent 'nobody'"):
        store.latest("nobody")
    for beginning in ("", "xyz", "../..", "0000"):
        with pytest.raises(CardNotFoundError):
            store.find(beginning)


def test_an_agents_latest_card_survives_the_process(store: Store) -> None:
    card = make_card()
    store.put(card.fork("researcher"))
    newest = store.put(card.fork("researcher").fork("researcher"))
    store.put(card.fork("writer"))
    code = (
        "import sys; from qkvshare.store import Store; s = Store(sys.argv[1]);"
        "print(s.get(s.latest('researcher')).digest)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, store.root], check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == newest


def test_find_takes_the_beginning_of_a_digest(store: Store) -> None:
    digest = store.put(make_card())
    assert store.find(digest[:8]) == store.find(digest) == digest


class TestMatch:
    def test_the_longest_prefix_wins(self, store: Store) -> None:
        short, long = make_card(runs=(40,)), make_card(runs=(40, 33))
        store.put(short)
        store.put(long)
        ids = [*long.token_ids.tolist(), 7]
        found = store.match(ids, IDENTITY)
        assert found is not None
        assert (found.card, found.tokens) == (long.digest, 73)
        found = store.match(ids[:72], IDENTITY)
        assert found is not None
        assert (found.card, found.tokens) == (short.digest, 40)
        assert store.match(ids[:39], IDENTITY) is None

    def test_the_beginning_of_a_longer_card_is_a_card(self, store: Store) -> None:
        card = make_card(runs=(6, 3))
        store.put(card)
        found = store.match([*card.token_ids[:6].tolist(), 99], IDENTITY)
        assert found is not None
        head = store.get(found.card, found.tokens)
        assert head.tokens == 6
        head.verify()
        assert np.array_equal(head.token_ids, card.token_ids[:6])
        assert head.manifest.segments == card.manifest.segments[:1]

    def test_another_models_card_is_no_match(self, store: Store) -> None:
        card = make_card()
        store.put(card)
        other = type(IDENTITY)(**{**{f: getattr(IDENTITY, f) for f in FIELDS}, "weights": "9" * 64})
        assert store.match(card.token_ids, other) is None

    @pytest.mark.slow
    @given(
        lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
        cut=st.integers(0, 200),
        change=st.integers(0, 199),
    )
    def test_as_comparing_every_card_would(
        self, tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, change: int
    ) -> None:
        store = Store(tmp_path_factory.mktemp("store"))
        cards = [make_card(runs=(lengths[0], length)) for length in lengths]
        for card in cards:
            store.put(card)
        prompt = list(range(200))
        prompt[change] = 1000
        prompt = prompt[:cut]
        ends = {s.end for card in cards for s in card.manifest.segments}
        expected = max((end for end in ends if end <= min(cut, change)), default=None)
        found = store.match(prompt, IDENTITY)
        assert (found.tokens if found else None) == expected
        store.close()


FIELDS = ("weights", "config", "adapter", "rope", "dtype", "tokenizer", "chat_template")


class TestTime:
    def test_a_card_that_expires_by_itself_is_no_match(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = make_card()
        soon = datetime.now(UTC) + timedelta(seconds=50)
        card = CacheCard(replace(card.manifest, expires=soon), card.tensors)
        digest = store.put(card, ttl=1000)
        assert store.match(card.token_ids, IDENTITY) is not None
        later(monkeypatch, 51)
        assert store.match(card.token_ids, IDENTITY) is None
        with pytest.raises(CardNotFoundError):
            store.get(digest)

    def test_an_expired_card_is_gone_and_gc_frees_its_room(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = make_card()
        digest = store.put(card, ttl=50)
        assert store.match(card.token_ids, IDENTITY) is not None
        later(monkeypatch, 51)
        with pytest.raises(CardNotFoundError):
            store.get(digest)
        assert store.match(card.token_ids, IDENTITY) is None
        assert store.ls() == []
        assert store.gc() == [digest]
        assert store.stats()["bytes"] == 0

    def test_a_lease_keeps_a_card_until_it_ends(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = store.put(make_card(), ttl=50)
        with store.lease(digest, seconds=100):
            with pytest.raises(StoreError, match="in use"):
                store.remove(digest)
            later(monkeypatch, 60)
            assert store.gc() == []
            later(monkeypatch, 101)
            assert store.gc() == [digest]

    def test_after_a_lease_a_card_can_be_removed(self, store: Store) -> None:
        digest = store.put(make_card())
        with store.lease(digest):
            pass
        store.remove(digest)
        assert store.ls() == []


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the clock be ahead."""
    import time

    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + seconds)


class TestLimit:
    def put_some(self, root: Path, count: int, limit: int) -> tuple[Store, list[str]]:
        store = Store(root, limit=limit)
        return store, [store.put(make_card(seed=seed)) for seed in range(count)]

    def size(self, tmp_path: Path) -> int:
        store = Store(tmp_path / "measure")
        store.put(make_card())
        return store.stats()["bytes"]

    def test_the_limit_holds_after_every_put(self, tmp_path: Path) -> None:
        size = self.size(tmp_path)
        store = Store(tmp_path / "store", limit=3 * size + size // 2)
        for seed in range(8):
            store.put(make_card(seed=seed))
            files = [path for path in store.folder.root.rglob("*") if path.suffix in KINDS]
            total = sum(path.stat().st_size for path in files)
            assert total == store.stats()["bytes"] <= store.limit
        assert len(store.ls()) == 3

    def test_what_saves_most_per_byte_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = self.size(tmp_path)
        store = Store(tmp_path / "store", limit=3 * size + size // 2)
        dear = store.put(make_card(seed=1), saved_ms=900)
        used = store.put(make_card(seed=2), saved_ms=400)
        cheap = store.put(make_card(seed=3), saved_ms=500)
        store.get(used)
        later(monkeypatch, 100)
        new = store.put(make_card(seed=4), saved_ms=1)
        assert {entry.digest for entry in store.ls()} == {dear, used, new}
        assert cheap not in {entry.digest for entry in store.ls()}

    def test_a_dear_card_that_nobody_uses_goes_in_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = self.size(tmp_path)
        store = Store(tmp_path / "store", limit=2 * size + size // 2)
        dear = store.put(make_card(seed=1), saved_ms=1000)
        for seed in range(2, 9):
            later(monkeypatch, 100)
            store.get(store.put(make_card(seed=seed), saved_ms=400))
        assert dear not in {entry.digest for entry in store.ls()}

    def test_new_cards_are_not_the_first_to_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = self.size(tmp_path)
        store = Store(tmp_path / "store", limit=2 * size + size // 2)
        old = store.put(make_card(seed=1), saved_ms=1000)
        later(monkeypatch, 100)
        young = store.put(make_card(seed=2), saved_ms=1)
        newest = store.put(make_card(seed=3), saved_ms=1)
        assert {entry.digest for entry in store.ls()} == {young, newest}
        assert old not in {entry.digest for entry in store.ls()}

    def test_leased_cards_are_not_evicted(self, tmp_path: Path) -> None:
        size = self.size(tmp_path)
        store = Store(tmp_path / "store", limit=size + size // 2)
        first = make_card(seed=1)
        digest = store.put(first)
        with store.lease(digest), pytest.raises(StoreFullError, match="in use"):
            store.put(make_card(seed=2))
        assert same(store.get(digest), first)
        assert store.audit().ok

    def test_a_card_larger_than_the_limit(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store", limit=1000)
        with pytest.raises(StoreFullError, match="limit is 1,000"):
            store.put(make_card())
        assert store.audit().orphans == 0


class TestFilesAndIndex:
    def test_a_lost_index_is_made_again(
        self, store: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        card = make_card()
        digests = {store.put(card), store.put(card.fork("a"))}
        store.close()
        for path in store.folder.root.glob("index.sqlite*"):
            path.unlink()
        again = Store(store.root)
        assert "lacked the card" in caplog.text
        assert {entry.digest for entry in again.ls()} == digests
        assert again.audit().ok
        # Who vouched for them is lost with the index.
        assert again.match(card.token_ids, IDENTITY) is None
        again.put(again.get(card.digest))
        assert again.match(card.token_ids, IDENTITY) is not None

    def test_a_rebuilding_that_was_killed_is_done_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else `gc` would take what is not in the index yet for nobody's."""
        digests = {store.put(make_card(seed=seed)) for seed in range(3)}
        store.close()
        for path in store.folder.root.glob("index.sqlite*"):
            path.unlink()
        opened: list[str] = []
        genuine = Folder.open_card

        def killed(self: Folder, digest: str) -> CacheCard:
            opened.append(digest)
            if len(opened) == 2:
                raise KeyboardInterrupt
            return genuine(self, digest)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "open_card", killed)
            with pytest.raises(KeyboardInterrupt):
                Store(store.root)
        again = Store(store.root)
        again.gc(abandoned=-1)
        assert {entry.digest for entry in again.ls()} == digests
        assert again.audit().ok

    def test_another_key_does_not_lose_the_cards(self, tmp_path: Path) -> None:
        key = Key(b"k" * 32)
        store = Store(tmp_path, key=key)
        digest = store.put(make_card().salted(key.salt()))
        store.close()
        for path in store.folder.root.glob("index.sqlite*"):
            path.unlink()
        for other in (None, Key(b"o" * 32)):
            with pytest.raises(CardKeyError):
                Store(tmp_path, key=other)
        again = Store(tmp_path, key=key)
        again.gc(abandoned=-1)
        again.get(digest).verify()

    def test_a_full_disk_is_a_typed_error_and_loses_nothing(self, store: Store) -> None:
        digest = store.put(make_card())
        (pages,) = store.index.rows("PRAGMA page_count")
        store.index.rows(f"PRAGMA max_page_count = {pages[0]}")

        def fill() -> None:
            for seed in range(1, 400):
                store.put(make_card(seed=seed))

        with pytest.raises(StoreError, match="full"):
            fill()
        store.index.rows("PRAGMA max_page_count = 1000000")
        store.get(digest).verify()
        store.put(make_card(seed=999))
        assert store.audit().ok

    def test_an_index_that_is_none_is_refused(self, store: Store) -> None:
        store.close()
        for path in store.folder.root.glob("index.sqlite-*"):
            path.unlink()
        (store.folder.root / "index.sqlite").write_bytes(b"not a database" * 1000)
        with pytest.raises(StoreError, match="made again from the files"):
            Store(store.root)

    def test_an_index_of_a_later_version_is_refused(self, store: Store) -> None:
        with store.index.writing():
            store.index.run("PRAGMA user_version = 99")
        with pytest.raises(StoreError, match="version 99"):
            Store(store.root)

    def test_the_audit_finds_damage_and_loss(self, store: Store) -> None:
        damaged, lost, good = (store.put(make_card(seed=seed)) for seed in range(3))
        name = store.get(damaged).manifest.names[0]
        path = store.folder.segment_path(name)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        store.folder.segment_path(store.get(lost).manifest.names[1]).unlink()
        audit = store.audit()
        assert not audit.ok
        assert [*audit.damaged] == [damaged]
        assert [*audit.lost] == [lost]
        assert audit.cards == 3
        store.get(good).verify()
        with pytest.raises(CardNotFoundError, match="is not there"):
            store.get(lost)

    def test_gc_clears_away_what_killed_writers_left(self, store: Store) -> None:
        digest = store.put(make_card())
        card = make_card(seed=5)
        blobs = {"kv.0000.0000": card.tensors["kv.0000.0000"]}
        store.folder.write_segment("f" * 64, blobs)
        store.folder.write_card(card)
        parts = [
            store.folder.segment_path("f" * 64).with_name(n) for n in (".a.part", ".tmp03UN4M")
        ]
        for part in parts:
            part.write_bytes(b"half")
            os.utime(part, (0, 0))
        assert store.audit().orphans == 2
        store.gc()
        assert store.audit().orphans == 2, "a writer may be at it"
        store.gc(abandoned=-1)
        assert store.audit().orphans == 0
        assert not any(part.exists() for part in parts)
        assert [entry.digest for entry in store.ls()] == [digest]
        assert store.audit().ok

    @pytest.mark.parametrize("reader", ["get", "gc"])
    def test_a_removal_that_was_killed_is_finished(self, store: Store, reader: str) -> None:
        digest = store.put(make_card())
        store.folder.card_path(digest).unlink()
        if reader == "get":
            with pytest.raises(CardNotFoundError, match="not in the store"):
                store.get(digest)
        else:
            store.gc()
        assert store.ls() == []
        assert store.stats()["bytes"] == 0
        assert store.audit().ok

    def test_a_segment_under_a_wrong_name(self, store: Store) -> None:
        one, two = make_card(seed=1), make_card(seed=2)
        store.put(one)
        digest = store.put(two)
        path = store.folder.segment_path(two.manifest.names[0])
        path.write_bytes(store.folder.segment_path(one.manifest.names[0]).read_bytes())
        assert [*store.audit().damaged] == [digest]

    def test_a_card_stays_readable_when_it_is_removed(self, store: Store) -> None:
        card = make_card()
        got = store.get(store.put(card))
        store.remove(card.digest)
        store.gc(abandoned=-1)
        assert same(got, card)

    @pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="no store can be kept"):
            Store(tmp_path / "store")

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "store").write_text("a file")
        with pytest.raises(StoreError, match="no store can be kept"):
            Store(tmp_path / "store")


def test_threads_take_turns(store: Store) -> None:
    cards = [make_card(seed=seed) for seed in range(4)]
    errors: list[BaseException] = []

    def work(card: CacheCard) -> None:
        try:
            for round_ in range(5):
                digest = store.put(card.fork(f"{round_}"))
                store.get(digest).verify()
                store.remove(digest)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(card,)) for card in cards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.stats()["bytes"] == 0
