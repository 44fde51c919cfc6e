"""Card files that arrive: they count, are sealed as the store is, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qkvshare.card import CacheCard, Key
from qkvshare.card.errors import CardError, StoreError, StoreFullError
from qkvshare.store import Store
from qkvshare.store.upload import PIECE_BYTES, Upload
from tests.cards import make_card

KEY = Key(b"k" * 32)


def send(upload: Upload, data: bytes, size: int = 70_000) -> None:
    for at in range(0, len(data), size):
        upload.write(data[at : at + size])


def big_card(pieces: int = 3, seed: int = 0) -> CacheCard:
    """Of so many MiB."""
    return make_card(runs=(pieces * PIECE_BYTES // 132,), seed=seed)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_what_arrives_is_the_card(tmp_path: Path, key: Key | None) -> None:
    store, card = Store(tmp_path, key=key), big_card()
    with store.receive() as upload:
        send(upload, card.to_bytes())
        got = upload.card()
        assert got.digest == card.digest
        tensors = got.verify()
    assert all(np.array_equal(tensors[name], card.tensors[name]) for name in card.tensors)
    assert got.nbytes == card.nbytes


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_what_is_no_card_is_refused(tmp_path: Path, key: Key | None) -> None:
    data = big_card().to_bytes()
    for content in (b"", b"not a card", data[:100], data[:-1], data[:PIECE_BYTES], data + b"x"):
        with Store(tmp_path, key=key).receive() as upload:
            send(upload, content)
            with pytest.raises(CardError):
                upload.card()


def bytes_of(folder: Path) -> bytes:
    """What a disk has of this process's files, those without a name, too."""
    found = b""
    for handle in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(handle)
        except OSError:
            continue
        if target.startswith(str(folder)) and "index" not in target:
            found += Path("/proc/self/fd", handle.name).read_bytes()
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_in_a_sealed_store_nothing_arrives_in_the_clear(tmp_path: Path) -> None:
    data = big_card().to_bytes()
    piece = data[PIECE_BYTES // 2 :][:1000]
    for key in (None, KEY):
        with Store(tmp_path / str(key), key=key).receive() as upload:
            send(upload, data)
            there = bytes_of(tmp_path / str(key))
            assert len(there) >= PIECE_BYTES
            assert (piece in there) is (key is None)


def test_a_killed_upload_leaves_nothing(tmp_path: Path) -> None:
    store, data = Store(tmp_path), big_card().to_bytes()
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    read, write = os.pipe()
    child = os.fork()
    if not child:
        upload = store.receive()
        send(upload, data)
        os.write(write, b"x")
        signal.pause()
        os._exit(1)
    os.read(read, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


class TestLimit:
    def test_what_arrives_counts_for_all_together(self, tmp_path: Path) -> None:
        limit = 6 * PIECE_BYTES
        store = Store(tmp_path, limit=limit)

        def fill(_: int) -> int:
            sent = 0
            upload = store.under("somebody").receive()
            uploads.append(upload)
            try:
                while sent < 4 * PIECE_BYTES:
                    upload.write(b"x" * PIECE_BYTES)
                    sent += PIECE_BYTES
            except StoreFullError:
                pass
            return sent

        uploads: list[Upload] = []
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(fill, range(4))) <= limit
        with pytest.raises(StoreFullError):
            store.put(big_card())
        for upload in uploads:
            upload.close()
            upload.close()  # no harm
        store.put(big_card())

    def test_cards_make_room_for_what_arrives(self, tmp_path: Path) -> None:
        store = Store(tmp_path, limit=8 * PIECE_BYTES)
        old = [store.put(big_card(2, seed)) for seed in range(3)]
        with store.receive() as upload:
            send(upload, big_card(4).to_bytes())
            assert store.stats()["bytes"] + 4 * PIECE_BYTES <= 8 * PIECE_BYTES
            card = upload.card()
            card = CacheCard(card.manifest, card.verify())
            upload.close()
            store.put(card)
        assert 0 < len({entry.digest for entry in store.ls()} & {*old}) < 3
        store.get(card.digest).verify()

    def test_what_cannot_fit_evicts_nothing(self, tmp_path: Path) -> None:
        store = Store(tmp_path, limit=3 * PIECE_BYTES)
        digest = store.put(make_card())
        with pytest.raises(StoreFullError):
            store.receive(3 * PIECE_BYTES + 1)
        store.get(digest).verify()


def test_a_closed_upload_says_so(tmp_path: Path) -> None:
    upload = Store(tmp_path).receive()
    upload.close()
    with pytest.raises(StoreError, match="closed"):
        send(upload, b"x" * PIECE_BYTES)
    with pytest.raises(StoreError, match="closed"):
        upload.card()
