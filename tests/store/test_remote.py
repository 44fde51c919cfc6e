"""The store behind a URL: what users of the local one rely on, and no byte read in vain."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkvshare.card import CacheCard
from qkvshare.card.errors import (
    CardDigestError,
    CardError,
    CardFormatError,
    CardNotFoundError,
    CardThinError,
    StoreError,
)
from qkvshare.store import RemoteStore, Store
from qkvshare.store.names import card_at, segment_at
from qkvshare.store.objects import Objects
from qkvshare.store.ranged import RangedTensors
from qkvshare.store.tenant import NOBODY
from tests.cards import IDENTITY, make_card, put_together, take_apart
from tests.store.test_store import same

Place = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """A real S3 server on this machine; the options to reach it."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-west-1"}}
    options["endpoint_url"] = f"http://{host}:{port}"
    import s3fs

    s3fs.S3FileSystem(**options).mkdir("cards")
    yield options
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        return f"s3://cards/{uuid.uuid4()}", request.getfixturevalue("s3")
    return f"{request.param}://{tmp_path}/store", {}


@pytest.fixture
def remote(place: Place) -> RemoteStore:
    return RemoteStore(place[0], **place[1])


class Traffic:
    """Counts what goes through, and stops the writer before its write number ``limit``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> None:
        self.written: dict[str, int] = {}
        self.read = 0
        write, read = Objects.write, Objects.read

        def counted_write(objects: Objects, name: str, data: bytes) -> None:
            if limit is not None and len(self.written) >= limit:
                raise KeyboardInterrupt
            self.written[name] = len(data)
            write(objects, name, data)

        def counted_read(objects: Objects, name: str, start: int, end: int) -> bytes:
            data = read(objects, name, start, end)
            self.read += len(data)
            return data

        monkeypatch.setattr(Objects, "write", counted_write)
        monkeypatch.setattr(Objects, "read", counted_read)


@pytest.mark.parametrize("joined", [False, True])
def test_what_was_put_is_there_also_for_others(
    remote: RemoteStore, place: Place, joined: bool
) -> None:
    card = make_card(joined=joined)
    digest = remote.put(card)
    other = RemoteStore(place[0], **place[1])
    got = other.get(digest)
    assert same(got, card)
    assert got.nbytes == card.nbytes
    assert [entry.digest for entry in other.ls()] == [digest]


def test_a_shared_segment_is_sent_once(
    remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = make_card(runs=(60,)), make_card(runs=(60, 30))
    remote.put(parent)
    traffic = Traffic(monkeypatch)
    remote.put(child)
    sent = [name for name in traffic.written if name.startswith("segments/")]
    assert sent == [segment_at(child.manifest.names[1])]
    assert len(remote.objects.ls("segments")) == 2
    assert same(remote.get(child.digest), child)


def test_a_thin_card_is_completed_by_its_parents_segments(remote: RemoteStore) -> None:
    parent, child = make_card(runs=(6,)), make_card(runs=(6, 3))
    thin = child.without(parent)
    with pytest.raises(CardThinError, match="Put its parent first"):
        remote.put(thin)
    assert remote.ls() == []
    remote.put(parent)
    assert same(remote.get(remote.put(thin)), child)


def test_one_layer_is_read_without_the_others(
    remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card(runs=(6000, 5000))
    digest = remote.put(card)
    traffic = Traffic(monkeypatch)
    got = remote.get(digest)
    opened = traffic.read
    assert opened < card.nbytes / 4
    assert np.array_equal(got.blob(1, 1), card.blob(1, 1))
    assert 0 < traffic.read - opened <= card.blob(1, 1).nbytes
    assert np.array_equal(got.blob(0, 0), card.blob(0, 0))
    assert traffic.read - opened < card.nbytes * 0.6


def test_a_head_reads_nothing_behind_it(
    remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card(runs=(40, 9000))
    digest = remote.put(card)
    traffic = Traffic(monkeypatch)
    head = remote.get(digest, 40)
    head.verify()
    assert head.manifest.segments == card.manifest.segments[:1]
    assert traffic.read < 80_000  # the ids of all, and the first segment
    with pytest.raises(CardError, match="cannot be cut after 41 tokens"):
        remote.get(digest, 41)


@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    cut=st.integers(0, 300),
    change=st.integers(0, 299),
)
@settings(max_examples=15)
def test_match_is_that_of_a_local_store(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, change: int
) -> None:
    local = Store(tmp_path_factory.mktemp("store"))
    remote = RemoteStore(f"memory://{uuid.uuid4()}")
    for length in lengths:
        card = make_card(runs=(lengths[0], length))
        local.put(card)
        remote.put(card)
    prompt = list(range(300))
    prompt[change] = 1000
    assert remote.match(prompt[:cut], IDENTITY) == local.match(prompt[:cut], IDENTITY)
    local.close()


def test_match_asks_for_few_listings(remote: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make_card(runs=(40, 33))
    remote.put(card)
    asked: list[str] = []
    listing = Objects.ls

    def counted(objects: Objects, folder: str) -> dict[str, int]:
        asked.append(folder)
        return listing(objects, folder)

    monkeypatch.setattr(Objects, "ls", counted)
    ids = [*card.token_ids.tolist(), *range(1000, 9000)]
    found = remote.match(ids, IDENTITY)
    assert found is not None
    assert (found.card, found.tokens) == (card.digest, 73)
    assert len(asked) <= 9  # of 252 blocks
    head = remote.get(*_pair(remote.match(ids[:50], IDENTITY)))
    assert np.array_equal(head.token_ids, ids[:40])
    head.verify()


def _pair(found: Any) -> tuple[str, int]:
    return found.card, found.tokens


def test_an_agents_latest_card(remote: RemoteStore) -> None:
    card = make_card()
    first = card.fork("researcher")
    newest = first.fork("researcher")
    for each in (newest, first, card.fork("writer")):
        remote.put(each)
    assert remote.latest("researcher") == newest.digest
    remote.remove(newest.digest)
    assert remote.latest("researcher") == first.digest
    with pytest.raises(CardNotFoundError, match="agent 'nobody'"):
        remote.latest("nobody")


def test_unknown_cards(remote: RemoteStore) -> None:
    for digest in ("0" * 64, "../../../etc/passwd", ""):
        with pytest.raises(CardNotFoundError):
            remote.get(digest)
        with pytest.raises(CardNotFoundError):
            remote.remove(digest)
    assert remote.ls() == []
    assert remote.match([1, 2, 3], IDENTITY) is None


class TestDamage:
    def test_a_changed_byte_is_found(self, remote: RemoteStore) -> None:
        card = make_card()
        digest, name = remote.put(card), segment_at(card.manifest.names[0])
        data = bytearray(remote.objects.read(name, 0, 1 << 20))
        data[-1] ^= 1
        remote.objects.write(name, bytes(data))
        with pytest.raises(CardDigestError, match="damaged"):
            remote.get(digest).verify()

    def test_a_segment_that_was_cut_short_is_found_and_sent_again(
        self, remote: RemoteStore
    ) -> None:
        card = make_card()
        digest, name = remote.put(card), segment_at(card.manifest.names[0])
        for length in (0, remote.objects.ls("segments")[name] - 1):
            remote.objects.write(name, remote.objects.read(name, 0, length) if length else b"")
            with pytest.raises(CardFormatError):
                remote.get(digest)
            remote.put(card)
            assert same(remote.get(digest), card)

    def test_lost_and_exchanged_objects(self, remote: RemoteStore) -> None:
        cards = [make_card(seed=seed) for seed in range(2)]
        one, other = (remote.put(card) for card in cards)
        mine, theirs = (segment_at(card.manifest.names[0]) for card in cards)
        remote.objects.write(mine, remote.objects.read(theirs, 0, 1 << 20))
        with pytest.raises(CardFormatError, match="named after"):
            remote.get(one)
        remote.objects.remove(mine)
        with pytest.raises(CardNotFoundError, match="never put, or removed"):
            remote.get(one)
        remote.objects.write(card_at(one), remote.objects.read(card_at(other), 0, 1 << 20))
        with pytest.raises(CardFormatError, match="named after"):
            remote.get(one)


class TestHeader:
    """Headers that lie: all of them `CardFormatError`, before anything is read or reserved."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        store = Store(tmp_path)
        store.put(make_card(runs=(6,)))
        (name,) = store.folder.segments()
        return store.folder.segment_path(name)

    def open(self, file: Path) -> RangedTensors:
        return Objects(f"file://{file.parent}", {}).tensors(file.name)

    @pytest.mark.parametrize(
        "lie",
        [
            {"data_offsets": [0, 2**61], "shape": [2**61]},
            {"data_offsets": [0, 10**30]},
            {"data_offsets": [8, 0]},
            {"data_offsets": [-8, 0]},
            {"data_offsets": [0, 1]},
            {"data_offsets": [0]},
            {"shape": [1]},
            {"shape": [2**62] * 4},
            {"shape": [1] * 5},
            {"shape": "x"},
            {"dtype": "F32"},
            {"more": 1},
        ],
    )
    def test_a_tensor_that_is_not_there(self, file: Path, lie: dict[str, Any]) -> None:
        header, data = take_apart(file)
        header["kv.0000.0000"] |= lie
        put_together(file, header, data)
        with pytest.raises(CardFormatError):
            self.open(file)

    def test_overlap_and_leftover_bytes(self, file: Path) -> None:
        header, data = take_apart(file)
        put_together(file, header, data + b"x")
        with pytest.raises(CardFormatError, match="follow the header"):
            self.open(file)
        header["kv.0001.0000"] = header["kv.0000.0000"]
        put_together(file, header, data)
        with pytest.raises(CardFormatError, match="is said to be"):
            self.open(file)

    @pytest.mark.parametrize("header", [b"", b"[]", b"{", b"[" * 5000, b'{"__metadata__": 1}'])
    def test_no_header(self, file: Path, header: bytes) -> None:
        put_together(file, header, b"")
        with pytest.raises(CardFormatError):
            self.open(file)

    def test_a_header_beyond_all_bounds(self, file: Path) -> None:
        for content in (b"", b"abc", b"\xff" * 8, (17 << 20).to_bytes(8, "little")):
            file.write_bytes(content)
            os.truncate(file, max(len(content), 18 << 20) if len(content) == 8 else len(content))
            with pytest.raises(CardFormatError, match="header"):
                self.open(file)

    def test_an_object_that_shrinks_after_it_was_opened(self, file: Path) -> None:
        header, _ = take_apart(file)
        size = 200_000
        header["kv.0000.0000"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        del header["kv.0001.0000"]
        put_together(file, header, bytes(size))
        tensors = self.open(file)
        os.truncate(file, 100_000)
        with pytest.raises(CardFormatError, match="replaced meanwhile"):
            tensors["kv.0000.0000"]

    @given(st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
    def test_any_damage_of_the_header_is_found_or_harmless(
        self, file: Path, data: st.DataObject
    ) -> None:
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        changed = bytearray(content)
        changed[at] ^= data.draw(st.integers(1, 255))
        try:
            file.write_bytes(changed)
            tensors = self.open(file)
            for name in tensors:
                assert tensors.kinds[name] == (
                    "U8" if tensors[name].itemsize == 1 else "I32",
                    list(tensors[name].shape),
                )
        except CardError:
            pass
        finally:
            file.write_bytes(content)


class TestKilled:
    def test_nothing_is_half_visible(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        card = make_card(runs=(6, 3))
        for limit in (0, 1, 2, 3, 5):  # writes: two segments, the card, two prefixes, the agent
            remote = RemoteStore(f"{place[0]}/{limit}", **place[1])
            with monkeypatch.context() as patch:
                Traffic(patch, limit)
                with pytest.raises(KeyboardInterrupt):
                    remote.put(card)
            assert [entry.digest for entry in remote.ls()] == [card.digest][: limit > 2]
            if limit > 2:
                assert same(remote.get(card.digest), card)
            else:
                assert remote.match(card.token_ids, IDENTITY) is None
                with pytest.raises(CardNotFoundError):
                    remote.get(card.digest)
            remote.put(card)
            found = remote.match(card.token_ids, IDENTITY)
            assert found is not None
            assert same(remote.get(found.card), card)

    def test_a_removal_that_was_killed_is_no_match(self, remote: RemoteStore) -> None:
        card = make_card()
        digest = remote.put(card)
        remote.objects.remove(card_at(digest))
        assert remote.match(card.token_ids, IDENTITY) is None
        with pytest.raises(CardNotFoundError):
            remote.latest("test")
        remote.gc(grace=-1)
        assert not remote.objects.ls("prefixes")
        assert not remote.objects.ls("agents")


class TestCollecting:
    def test_segments_go_with_the_last_card_that_has_them(self, remote: RemoteStore) -> None:
        parent, child = make_card(runs=(6,)), make_card(runs=(6, 3))
        remote.put(parent)
        remote.put(child)
        remote.remove(child.digest)
        assert remote.match(child.token_ids, IDENTITY) is not None, "the parent is there"
        assert remote.gc(grace=-1) == []
        assert remote.gc(grace=-1) == [child.manifest.names[1]]
        assert same(remote.get(parent.digest), parent)
        remote.remove(parent.digest)
        remote.gc(grace=-1)
        assert remote.gc(grace=-1) == parent.manifest.names
        assert not remote.objects.ls("")

    def test_young_segments_stay(self, remote: RemoteStore) -> None:
        card = make_card()
        remote.put(card)
        remote.remove(card.digest)
        for _ in range(2):
            assert remote.gc(grace=3600) == []
        assert len(remote.objects.ls("segments")) == 2
        assert not remote.objects.ls("condemned")

    def test_a_condemned_segment_that_is_needed_is_sent_again(
        self, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parent, child = make_card(runs=(6,)), make_card(runs=(6, 3))
        remote.put(parent)
        remote.remove(parent.digest)
        remote.gc(grace=-1)
        with pytest.raises(CardThinError, match="about to go"):
            remote.put(child.without(parent))
        traffic = Traffic(monkeypatch)
        remote.put(child)
        assert segment_at(parent.manifest.names[0]) in traffic.written
        for _ in range(2):
            assert remote.gc(grace=-1) == []
        assert same(remote.get(child.digest), child)

    def test_a_segment_that_goes_during_a_put_is_sent_again(
        self, remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = make_card(runs=(6,))
        remote.put(card)
        remote.remove(card.digest)
        remote.gc(grace=-1)
        write, name = Objects.write, card_at(card.digest)

        def collected(objects: Objects, at: str, data: bytes) -> None:
            write(objects, at, data)
            if at == name:  # somebody had looked before the segment was sent, and removes it now
                monkeypatch.undo()
                objects.remove(segment_at(card.manifest.names[0]))

        monkeypatch.setattr(Objects, "write", collected)
        remote.put(card)
        assert same(remote.get(card.digest), card)

    def test_nothing_goes_while_a_card_cannot_be_read(self, remote: RemoteStore) -> None:
        good, bad = (remote.put(make_card(seed=seed)) for seed in range(2))
        remote.objects.write(card_at(bad), b"no card")
        with pytest.raises(StoreError, match=f"{bad} cannot be read"):
            remote.gc(grace=-1)
        remote.remove(bad)
        remote.gc(grace=-1)
        assert len(remote.gc(grace=-1)) == 2
        assert [entry.digest for entry in remote.ls()] == [good]
        remote.get(good).verify()


class TestLocalFolder:
    def test_a_local_stores_folder_holds_the_same_cards(self, tmp_path: Path) -> None:
        local = Store(tmp_path)
        cards = [make_card(seed=seed, runs=(40, 33)) for seed in range(3)]
        for card in cards:
            local.put(card)
        remote = RemoteStore(f"file://{local.folder.root}")
        assert {entry.digest for entry in remote.ls()} == {card.digest for card in cards}
        assert all(same(remote.get(card.digest), card) for card in cards)
        assert remote.match(cards[0].token_ids, IDENTITY) is None
        assert remote.reindex() == 3
        found = remote.match(cards[0].token_ids, IDENTITY)
        assert found == local.match(cards[0].token_ids, IDENTITY)

    def test_uploaded_as_it_is(self, tmp_path: Path, s3: dict[str, Any]) -> None:
        import s3fs

        local, card = Store(tmp_path / "store"), make_card()
        local.put(card)
        s3fs.S3FileSystem(**s3).put(f"{local.folder.root}/", "cards/uploaded/", recursive=True)
        remote = RemoteStore("s3://cards/uploaded", **s3)
        assert same(remote.get(card.digest), card)

    def test_what_is_put_by_url_is_the_local_stores_too_and_private(self, tmp_path: Path) -> None:
        card = make_card()
        root = tmp_path / "store"
        place = root / NOBODY
        RemoteStore(f"file://{place}").put(card)
        for path in [place, *place.rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path
        assert same(Store(root).get(card.digest), card)


class TestService:
    def test_nobody_answers(self) -> None:
        options = {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9"}
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}  # type: ignore[assignment]
        store = RemoteStore("s3://cards", **options)
        store.objects._system.retries = 1
        for ask in (store.ls, lambda: store.put(make_card()), lambda: store.get("0" * 64)):
            with pytest.raises(StoreError, match="Check the address"):
                ask()

    def test_a_bucket_that_is_not_there(self, s3: dict[str, Any]) -> None:
        with pytest.raises(StoreError):
            RemoteStore("s3://nobodys-bucket/a", **s3).put(make_card())

    def test_a_package_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        for name in ("s3fs", "fsspec"):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, name, None)
                patch.setitem(sys.modules, f"{name}.core", None)
                with pytest.raises(StoreError, match=r"qkvshare\[remote\]"):
                    RemoteStore("s3://cards" if name == "fsspec" else "s3a://cards")

    def test_a_url_of_no_kind(self) -> None:
        with pytest.raises(StoreError, match="Expected a URL"):
            RemoteStore("nonsense://cards")


def test_a_damaged_card_is_not_put(remote: RemoteStore) -> None:
    card = make_card()
    broken = {name: np.array(card.tensors[name]) for name in card.tensors}
    broken["kv.0001.0000"][3] ^= 1
    with pytest.raises(CardDigestError):
        remote.put(CacheCard(card.manifest, broken))
    assert not remote.objects.ls("")
