"""Files that change while they are open: an error each, where a mapping would end the process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Raw
from qkvshare.card import Key, files
from qkvshare.card.container import FileTensors
from qkvshare.card.errors import (
    CardDigestError,
    CardError,
    CardFormatError,
    CardNotFoundError,
    ProfileError,
)
from qkvshare.profile import Profile
from qkvshare.store import Store

from ..cards import make_card

LONG = (5000,)  # beyond what is read at once
KEY = Key(b"k" * 32)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize("left", [0, 4096, -1])
def test_file_cut_short_while_it_is_open(tmp_path: Path, key: Key | None, left: int) -> None:
    path = make_card(Raw(), LONG).save(tmp_path / "card", key=key)
    card = CacheCard.load(path, key=key)
    os.truncate(path, left % path.stat().st_size)
    with pytest.raises(CardFormatError, match="was cut short while it was open"):
        card.verified()


def test_file_overwritten_in_place_while_it_is_open(tmp_path: Path) -> None:
    path = make_card(Raw(), LONG).save(tmp_path / "card")
    other = make_card(Raw(), LONG, seed=1).save(tmp_path / "other")
    card = CacheCard.load(path)
    path.write_bytes(other.read_bytes())  # as cp does: the same file, emptied and filled
    with pytest.raises(CardDigestError, match="is damaged"):
        card.verified()


def test_segment_cut_short_in_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "cards")
    card = store.get(store.put(make_card(Raw(), LONG)))
    (segment,) = (tmp_path / "cards").rglob("*.segment")
    os.truncate(segment, 4096)
    with pytest.raises(CardError, match="was cut short while it was open"):
        card.verified()


def test_profile_that_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "profile", np.zeros(1 << 20, np.float32)
    Profile("a" * 64, {"a": whole, "b": whole}).save(path)
    read = FileTensors.__getitem__

    def shrink(tensors: FileTensors, name: str) -> object:
        os.truncate(path, 8192)
        return read(tensors, name)

    monkeypatch.setattr(FileTensors, "__getitem__", shrink)
    with pytest.raises(ProfileError, match="cut short"):
        Profile.load(path)


def test_small_file_is_read_when_it_is_opened(tmp_path: Path) -> None:
    """No descriptor stays open, so a chain may have any number of such segments."""
    path = make_card(Uniform(4)).save(tmp_path / "card")
    held = [CacheCard.load(path) for _ in range(20)]
    for card in held:
        assert isinstance(card.file, FileTensors)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(card.file._file._handle)
    os.truncate(path, 0)
    for card in held:
        card.verified()


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    path = make_card(Raw(), LONG).save(tmp_path / "card")
    file = files.OpenFile(path)
    handle = file._handle
    os.fstat(handle)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(CardNotFoundError, match="it is no regular file"):
            CacheCard.load(path)
    with pytest.raises(CardNotFoundError, match="no card can be read"):
        CacheCard.load(tmp_path / "a\0b")


def test_card_stays_readable_when_its_file_is_removed(tmp_path: Path) -> None:
    path = make_card(Raw(), LONG).save(tmp_path / "card")
    card = CacheCard.load(path)
    path.unlink()
    card.verified()
