"""Sealed cards: the same card to who has the key, and nothing but sizes to who has not."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Packed, Raw
from qkvshare.card import Key
from qkvshare.card.container import MAX_HEADER_BYTES, FileTensors
from qkvshare.card.errors import CardDigestError, CardWriteError, SecretError
from qkvshare.card.sealing import SEALED

from ..cards import make_card, take_apart
from .test_reshaping import decoded, parent_and_child

KEY = Key(bytes(range(32)))


@settings(max_examples=40)
@given(
    runs=st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple),
    codec=st.sampled_from([Raw(), Uniform(3), Packed()]),
    joined=st.booleans(),
    secret=st.binary(min_size=32, max_size=32),
)
def test_round_trip_and_size(
    tmp_path_factory: pytest.TempPathFactory, runs: Any, codec: Any, joined: bool, secret: bytes
) -> None:
    folder, key = tmp_path_factory.mktemp("cards"), Key(secret)
    card = make_card(codec, runs, joined=joined)
    path = card.save(folder / "sealed", key=key)
    loaded = CacheCard.load(path, key=key)
    assert loaded.manifest == card.manifest
    assert loaded.digest == card.digest
    assert loaded.token_ids.tolist() == card.token_ids.tolist()
    assert decoded(loaded) == decoded(card)
    assert loaded.blob_bytes == card.blob_bytes
    assert loaded.nbytes == path.stat().st_size > card.nbytes
    assert loaded.bits_per_value == 8 * path.stat().st_size / loaded.values
    # opened and written in the clear it is the plain card, to the byte
    plain = loaded.save(folder / "plain")
    assert plain.read_bytes() == card.save(folder / "card").read_bytes()


def test_file_shows_nothing_but_sizes(tmp_path: Path) -> None:
    card = make_card(Raw(), salt=KEY.salt())
    path = card.save(tmp_path / "sealed", key=KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    header, data = take_apart(path)
    assert set(header.pop("__metadata__")) == {SEALED}
    tensors = load_file(path)
    assert list(tensors)[:3] == ["envelope", "ids.0000", "ids.0001"]  # in the order of need
    assert {at["dtype"] for at in header.values()} == {"U8"}
    content = path.read_bytes()
    for secret in (KEY.secret, KEY.secret.hex().encode(), card.manifest.encode()[:40]):
        assert secret not in content
    for name, array in card.tensors.items():
        assert array.tobytes()[:16] not in data, name
        assert len(tensors[name]) == array.nbytes + 16
    assert card.digest.encode() not in content
    assert KEY.salt().encode() not in content


def test_each_file_has_a_key_of_its_own(tmp_path: Path) -> None:
    one, two = (load_file(make_card().save(tmp_path / "card", key=KEY)) for _ in range(2))
    assert all(not np.array_equal(one[name], two[name]) for name in one)


def test_opening_reads_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_card().save(tmp_path / "card", key=KEY)
    read = []
    original = FileTensors.__getitem__
    monkeypatch.setattr(
        FileTensors, "__getitem__", lambda self, name: read.append(name) or original(self, name)
    )
    card = CacheCard.load(path, key=KEY)
    _ = card.nbytes, card.bits_per_value, card.blob_bytes, card.digest, card.thin
    assert read == ["envelope", "ids.0000", "ids.0001"]
    card.blob(1, 0)
    assert read[3:] == ["kv.0001.0000"]


def test_a_blob_is_a_private_copy(tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card", key=KEY)
    blob = CacheCard.load(path, key=KEY).blob(0, 0)
    before = blob.copy()
    blob[:] = 0
    assert CacheCard.load(path, key=KEY).blob(0, 0).tobytes() == before.tobytes()


def test_thin_cards_are_sealed_too(tmp_path: Path) -> None:
    parent, child = parent_and_child()
    path = child.without(parent).save(tmp_path / "thin", key=KEY)
    thin = CacheCard.load(path, key=KEY)
    assert thin.nbytes == path.stat().st_size
    held = CacheCard.load(parent.save(tmp_path / "parent", key=KEY), key=KEY)
    assert decoded(thin.whole(held)) == decoded(child)


def test_children_of_a_loaded_card_know_their_own_size(tmp_path: Path) -> None:
    sealed = CacheCard.load(make_card().save(tmp_path / "card", key=KEY), key=KEY)
    plain = CacheCard.load(make_card().save(tmp_path / "card"))
    for card in (sealed, plain):
        for child in (card.fork("somebody"), card.compact(), card.salted("a" * 64)):
            assert child.nbytes == child.save(tmp_path / "child").stat().st_size


def test_damaged_card_is_not_sealed(tmp_path: Path) -> None:
    card = make_card()
    tensors = {name: array.copy() for name, array in card.tensors.items()}
    tensors["kv.0001.0000"][0] ^= 1
    with pytest.raises(CardDigestError):
        CacheCard(card.manifest, tensors).save(tmp_path / "card", key=KEY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [None, KEY])
def test_header_that_no_reader_takes_is_not_written(
    tmp_path: Path, key: Key | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("container", "sealing"):
        monkeypatch.setattr(f"qkvshare.card.{module}.MAX_HEADER_BYTES", 1000)
    assert MAX_HEADER_BYTES > 1000
    with pytest.raises(CardWriteError, match=r"card\.compact\(\)"):
        make_card().save(tmp_path / "card", key=key)
    assert list(tmp_path.iterdir()) == []


# --- keys ---------------------------------------------------------------------------------------


def test_key_file_round_trip(tmp_path: Path) -> None:
    key = Key.generate()
    assert key != Key.generate()
    path = key.save(tmp_path / "key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Key.load(path) == key
    with pytest.raises(SecretError, match="exists and is left as it is"):
        Key.generate().save(path)
    assert Key.load(path) == key


def test_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKVSHARE_KEY", KEY.secret.hex())
    assert Key.load("env") == KEY
    monkeypatch.delenv("QKVSHARE_KEY")
    with pytest.raises(SecretError, match="the variable QKVSHARE_KEY holds no key"):
        Key.load("env")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o666])
def test_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = KEY.save(tmp_path / "key")
    path.chmod(mode)
    with pytest.raises(SecretError, match=f"has mode {mode:o}.*chmod 600"):
        Key.load(path)


@pytest.mark.parametrize("content", ["", "a" * 63, "a" * 65, "g" * 64, "\xff" * 64, "a" * 5000])
def test_file_that_is_no_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SecretError) as caught:
        Key.load(path)
    assert "a" * 32 not in str(caught.value)


def test_key_that_is_not_there_or_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="no key can be read"):
        Key.load(tmp_path / "key")
    with pytest.raises(SecretError, match="cannot be written"):
        KEY.save(tmp_path / "nothing" / "key")
    with pytest.raises(SecretError, match="32 bytes"):
        Key(b"short")


def test_key_is_never_shown() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr({"key": KEY})):
        assert KEY.secret.hex()[:8] not in text
        assert KEY.id in text


def test_all_that_is_derived_differs() -> None:
    tenants = [KEY.for_tenant(name) for name in ("", "a", "b", "ab", "ä")]
    keys = [KEY, Key.generate(), *tenants]
    shown = [text for key in keys for text in (key.secret.hex(), key.salt(), key.id)]
    assert len(set(shown)) == len(shown)
    assert KEY.for_tenant("a") == tenants[1]


def test_derivation_is_that_of_the_specification() -> None:
    """Kept values: a change would make every sealed card unreadable."""
    assert KEY.id == "5513f7c7a4146ecd"
    assert KEY.salt() == "42e5daaffc3e37859b6240a742cb5dcdf8c253cbfa5da9b514bb9ad5c703ccb7"
    assert (
        KEY.for_tenant("tenant").secret.hex()
        == "926aedf44db33f2d91000c621418772c460d2b72bb6c29cee44d4ca83cc44a0d"
    )


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(SecretError, match=r"pip install 'qkvshare\[crypto\]'"):
        KEY.salt()
