"""Stores that move, lose their index, have no room, or cannot be written: no card is lost by it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qkvshare.card import CacheCard
from qkvshare.card.errors import (
    CardNotFoundError,
    CardWriteError,
    QKVShareError,
    StoreError,
    StoreFullError,
)
from qkvshare.store import Store
from qkvshare.store.folder import Folder
from tests.cards import IDENTITY, make_card


class TestAway:
    def test_a_relative_root_is_of_where_it_was_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / "a")
        store = Store("cards")
        digest = store.put(make_card())
        monkeypatch.chdir(tmp_path / "b")
        store.get(digest).verify()
        other = store.put(make_card(seed=1))
        assert list((tmp_path / "b").iterdir()) == []
        monkeypatch.chdir(tmp_path / "a")
        assert {entry.digest for entry in Store("cards").ls()} == {digest, other}

    @pytest.mark.parametrize("part", ["", "default", "default/cards", "default/segments"])
    def test_a_folder_that_is_away_takes_no_card_with_it(self, tmp_path: Path, part: str) -> None:
        store = Store(tmp_path / "store")
        digests = {store.put(make_card(seed=seed)) for seed in range(3)}
        folder = tmp_path / "store" / part
        folder.rename(tmp_path / "away")
        for digest in digests:
            with pytest.raises(QKVShareError):
                store.get(digest)
        for ask in (store.gc, store.ls, store.audit):
            with suppress(StoreError):
                ask()
        (tmp_path / "away").rename(folder)
        store.gc(abandoned=-1)
        assert {entry.digest for entry in store.ls()} == digests
        assert store.audit().ok

    def test_an_empty_mount_point_is_no_new_store(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "store")
        digest = store.put(make_card())
        store.root.rename(tmp_path / "away")
        store.folder.root.mkdir(parents=True)
        for ask in (store.ls, store.gc, lambda: store.put(make_card(seed=1))):
            with pytest.raises(StoreError, match="away"):
                ask()
        shutil.rmtree(store.root)
        (tmp_path / "away").rename(store.root)
        store.get(digest).verify()

    def test_a_folder_of_cards_that_is_away_is_not_collected(self, tmp_path: Path) -> None:
        """One of the 256, as where somebody moves a part of a store to another disk."""
        store = Store(tmp_path)
        digest = store.put(make_card())
        folder = store.folder.card_path(digest).parent
        folder.rename(tmp_path / "away")
        with pytest.raises(CardNotFoundError):
            store.get(digest)
        store.gc()
        assert store.ls() == []  # what is listed can be got
        (tmp_path / "away").rename(folder)
        store.get(digest).verify()


def remove_index(store: Store, which: str) -> None:
    for path in store.folder.root.glob(which):
        path.unlink()


@pytest.mark.parametrize("which", ["index.sqlite", "index.sqlite*"])
class TestIndexRemoved:
    """The advice for a damaged index is to remove it; others may use the store meanwhile."""

    def test_while_others_write(self, tmp_path: Path, which: str) -> None:
        old = Store(tmp_path)
        before = old.put(make_card())
        remove_index(old, which)
        new = Store(tmp_path)
        after = [old.put(make_card(seed=seed)) for seed in range(1, 4)]
        new.gc(abandoned=-1)
        old.gc(abandoned=-1)
        for store in (old, new, Store(tmp_path)):
            assert {entry.digest for entry in store.ls()} == {before, *after}
            assert store.audit().ok
        assert old.match(make_card(seed=2).token_ids, IDENTITY) is not None

    def test_in_the_middle_of_a_put(
        self, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever collects then knows nothing of the files that were written."""
        store, card = Store(tmp_path), make_card()
        genuine = Folder.write_card

        def write(self: Folder, card: CacheCard) -> None:
            genuine(self, card)
            monkeypatch.undo()
            remove_index(store, which)
            Store(tmp_path).gc(abandoned=-1)

        monkeypatch.setattr(Folder, "write_card", write)
        store.put(card)
        Store(tmp_path).gc(abandoned=-1)
        Store(tmp_path).get(card.digest).verify()
        assert store.audit().ok

    def test_before_it_is_opened_again(self, tmp_path: Path, which: str) -> None:
        store = Store(tmp_path)
        digest = store.put(make_card())
        # As a killed process leaves it, which has not ended its write-ahead log.
        shutil.copytree(store.folder.root, tmp_path / "default2")
        store.close()
        shutil.rmtree(store.folder.root)
        (tmp_path / "default2").rename(store.folder.root)
        assert (store.folder.root / "index.sqlite-wal").stat().st_size
        remove_index(store, which)
        for _ in range(2):
            again = Store(tmp_path)
            again.get(digest).verify()
            again.put(make_card(seed=1))
            again.close()


def test_an_index_is_not_made_of_what_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out of it would be taken for nobody's, and collected."""
    store = Store(tmp_path)
    digest = store.put(make_card())
    name = store.get(digest).manifest.names[0]
    store.close()
    remove_index(store, "index.sqlite*")
    segment = store.folder.segment_path(name)
    segment.parent.rename(tmp_path / "away")
    with pytest.raises(StoreError, match="Nothing was removed"):
        Store(tmp_path)
    (tmp_path / "away").rename(segment.parent)
    again = Store(tmp_path)
    again.gc(abandoned=-1)
    again.get(digest).verify()


class TestFull:
    @pytest.fixture
    def full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], None]:
        """Let the index of a store not grow, and no file be written, as on a full disk."""

        def fill(store: Store) -> None:
            def no_room(handle: int) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "fsync", no_room)
            with store.index.writing():  # pages that are free would be taken first
                for number in range(40):
                    store.index.run(
                        "INSERT INTO waited VALUES (?, 0, 0, 0, 0)", f"{number}" + "x" * 4000
                    )
            (pages,) = store.index.rows("PRAGMA page_count")
            store.index.rows(f"PRAGMA max_page_count = {pages[0]}")

        return fill

    def test_a_failed_put_is_no_room_and_leaves_nothing(
        self, tmp_path: Path, full: Callable[[Store], None]
    ) -> None:
        store = Store(tmp_path)
        store.put(make_card())
        before = {path for path in store.folder.root.rglob("*") if path.is_file()}
        full(store)
        with pytest.raises((CardWriteError, StoreFullError)):
            store.put(make_card(seed=1, runs=(40, 30)))
        assert {path for path in store.folder.root.rglob("*") if path.is_file()} == before

    def test_an_index_without_room_is_a_full_store(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(tmp_path)
        digest = store.put(make_card())
        (pages,) = store.index.rows("PRAGMA page_count")
        store.index.rows(f"PRAGMA max_page_count = {pages[0]}")

        def put_many() -> None:
            for seed in range(1, 400):
                store.put(make_card(seed=seed))

        with pytest.raises(StoreFullError, match="disk is full"):
            put_many()
        store.get(digest).verify()
        assert store.audit().orphans == 0


def mounted(folder: Path, *options: str) -> None:
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder = tmp_path / "disk"
    mounted(folder, "-t", "tmpfs", "-o", "size=12m", "tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all room that is left on a disk."""
    path = folder / "filler"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with suppress(OSError):
        while os.write(handle, b"x" * 4096):
            pass
    os.close(handle)
    return path


class TestFullDisk:
    def test_what_is_there_can_be_read_and_removed(self, small: Path) -> None:
        store = Store(small / "store")
        card = make_card()
        digests = [store.put(card)] + [store.put(card.fork(f"{n}")) for n in range(6)]
        filler = fill(small)
        with pytest.raises((CardWriteError, StoreFullError)):
            store.put(make_card(seed=1, runs=(60, 40)))
        for _ in range(3):
            for digest in digests:
                store.get(digest).verify()
        assert store.match(card.token_ids, IDENTITY) is not None
        assert store.latest("test") == digests[0]
        assert len(store.ls()) == len(digests)
        store.remove(digests.pop())
        for entry in store.ls():
            store.get(entry.digest).verify()
        assert {entry.digest for entry in store.ls()} == set(digests)
        with pytest.raises(CardNotFoundError):
            store.remove("0" * 64)
        filler.unlink()
        store.put(make_card(seed=1, runs=(60, 40)))
        store.gc(abandoned=-1)
        assert len(store.ls()) == len(digests) + 1
        assert store.audit().ok

    def test_it_can_be_opened_too(self, small: Path) -> None:
        store = Store(small / "store")
        digest, other = store.put(make_card()), store.put(make_card(seed=1))
        store.close()
        filler = fill(small)
        again = Store(small / "store")
        again.get(digest).verify()
        assert len(again.ls()) == 2
        again.remove(other)
        assert len(again.ls()) == 1
        filler.unlink()
        again.put(make_card(seed=2))
        Store(small / "store").get(digest).verify()  # nobody is kept out once there is room
        assert len(again.ls()) == 2

    def test_puts_until_it_is_full_lose_nothing(self, small: Path) -> None:
        store = Store(small / "store")
        digests: list[str] = []

        def put_many() -> None:
            for seed in range(10_000):
                digests.append(store.put(make_card(seed=seed, runs=(1000, 500))))

        with pytest.raises((CardWriteError, StoreFullError)):
            put_many()
        assert len(digests) > 5
        assert {entry.digest for entry in store.ls()} == set(digests)
        assert store.audit().ok
        assert store.audit().orphans == 0
        for digest in digests:
            store.remove(digest)
        assert store.ls() == []
        store.gc()
        store.put(make_card())
        assert store.stats()["cards"] == 1


class TestReadOnly:
    @pytest.fixture(params=["closed", "killed", "open", "without index"])
    def readable(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[Store, CacheCard]]:
        """A store in a folder that cannot be written, and the card in it."""
        card, made = make_card(), Store(tmp_path / "store")
        made.put(card)
        if request.param == "killed":
            shutil.copytree(made.root, tmp_path / "copy")
            made.close()
            shutil.rmtree(made.root)
            (tmp_path / "copy").rename(made.root)
            (made.folder.root / "index.sqlite-shm").unlink()
        elif request.param != "open":
            made.close()
        if request.param == "without index":
            remove_index(made, "index.sqlite*")
        seen, folders = made.root, [made.root, *(p for p in made.root.rglob("*") if p.is_dir())]
        root = os.geteuid() == 0 and shutil.which("mount") is not None
        if root:  # who may write anywhere
            seen = tmp_path / "seen"
            mounted(seen, "--bind", str(made.root))
        try:
            if root:
                subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
            for folder in [] if root else folders:
                folder.chmod(0o500)
            yield Store(seen), card
        finally:
            if root:
                subprocess.run(["umount", "-l", str(seen)], check=True)
            for folder in [] if root else folders:
                folder.chmod(0o700)

    def test_it_is_read(self, readable: tuple[Store, CacheCard]) -> None:
        store, card = readable
        assert [entry.digest for entry in store.ls()] == [card.digest]
        store.get(card.digest).verify()
        assert store.find(card.digest[:8]) == store.latest("test") == card.digest
        assert store.audit().ok
        assert store.stats()["cards"] == 1
        store.match(card.token_ids, IDENTITY)
        with pytest.raises(CardNotFoundError):
            store.get("0" * 64)

    def test_what_writes_says_so(self, readable: tuple[Store, CacheCard]) -> None:
        store, card = readable
        with pytest.raises(StoreError, match="can only be read"), store.lease(card.digest):
            pass
        for ask in (
            lambda: store.put(make_card(seed=1)),
            lambda: store.remove(card.digest),
            lambda: store.hold(card.digest, "tool"),
            lambda: store.set_aside(card.digest),
            store.gc,
            store.receive,
        ):
            with pytest.raises(StoreError, match="can only be read"):
                ask()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    for tenant in (None, "acme"):
        with pytest.raises(StoreError, match="local file system"):
            Store(tmp_path, tenant=tenant)
