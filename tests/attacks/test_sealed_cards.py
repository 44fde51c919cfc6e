"""Attacks on sealed cards: each is refused with a typed error, none opens as something else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from benchmarks.codecs import Uniform
from qkvshare import CacheCard
from qkvshare.card import Key
from qkvshare.card.container import MAGIC
from qkvshare.card.errors import (
    CardDigestError,
    CardFormatError,
    CardKeyError,
    CardSealedError,
    CardTagError,
    CardVersionError,
    QKVShareError,
)
from qkvshare.card.sealing import SEALED, seal

from ..cards import make_card, put_together, take_apart

KEY = Key(b"k" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_card(Uniform(4)).save(tmp_path / "card", key=KEY)


def open_fully(path: Path, key: Key | None = KEY) -> tuple[str, dict[str, bytes]]:
    card = CacheCard.load(path, key=key)
    return card.digest, {name: array.tobytes() for name, array in card.verified().items()}


def edit_tensors(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file's tensors and leave its metadata."""
    header, _ = take_apart(path)
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata=header["__metadata__"])


def edit_seal(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    header, data = take_apart(path)
    content = json.loads(header["__metadata__"][SEALED])
    edit(content)
    header["__metadata__"] = {SEALED: json.dumps(content)}
    put_together(path, header, data)


# --- keys ---------------------------------------------------------------------------------------


def test_sealed_card_without_a_key(path: Path) -> None:
    with pytest.raises(CardKeyError, match=r"is sealed. Give its key"):
        CacheCard.load(path)


@pytest.mark.parametrize("key", [Key(b"l" * 32), KEY.for_tenant("other")])
def test_sealed_card_with_another_key(path: Path, key: Key) -> None:
    with pytest.raises(CardKeyError, match=f"sealed with the key {KEY.id}, the one at hand is"):
        open_fully(path, key)


def test_another_key_under_the_name_of_the_right_one(path: Path) -> None:
    key = Key(b"l" * 32)
    edit_seal(path, lambda at: at.update(key=key.id))
    with pytest.raises(CardTagError, match="tensor envelope does not pass"):
        open_fully(path, key)


def test_plain_card_in_place_of_a_sealed_one(path: Path) -> None:
    make_card(Uniform(4)).save(path)
    with pytest.raises(CardKeyError, match="is not sealed, and a key was given"):
        open_fully(path)


@pytest.mark.parametrize("key", [KEY, None])
def test_card_that_is_sealed_and_plain(path: Path, tmp_path: Path, key: Key | None) -> None:
    plain, _ = take_apart(make_card(Uniform(4)).save(tmp_path / "plain"))
    header, data = take_apart(path)
    header["__metadata__"] |= plain["__metadata__"]
    put_together(path, header, data)
    with pytest.raises(CardFormatError if key else CardSealedError):
        open_fully(path, key)


def test_seal_under_the_name_of_a_plain_card(path: Path) -> None:
    header, data = take_apart(path)
    header["__metadata__"] = {MAGIC: header["__metadata__"][SEALED]}
    put_together(path, header, data)
    with pytest.raises(CardFormatError):
        open_fully(path, None)


# --- tensors ------------------------------------------------------------------------------------


def test_every_flipped_byte_is_detected_or_harmless(tmp_path: Path) -> None:
    path = make_card(Uniform(2), runs=(3,)).save(tmp_path / "card", key=KEY)
    content, expected, detected = path.read_bytes(), open_fully(path), 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x01 if position % 2 else 0xFF
        path.write_bytes(damaged)
        try:
            assert open_fully(path) == expected, f"byte {position} changed the card"
        except QKVShareError:
            detected += 1
    assert detected >= len(content) - 16  # white space that pads the header


def test_every_truncation(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(CardFormatError):
            open_fully(path)


NAMES = ["envelope", "ids.0000", "ids.0001", "kv.0000.0000", "kv.0001.0001"]


@pytest.mark.parametrize("name", NAMES)
def test_tensor_of_another_file(path: Path, tmp_path: Path, name: str) -> None:
    """The very same card, sealed a second time: even its tensors do not fit."""
    other = load_file(make_card(Uniform(4)).save(tmp_path / "other", key=KEY))
    edit_tensors(path, lambda at: at.update({name: other[name]}))
    with pytest.raises(CardTagError, match=f"tensor {name} does not pass"):
        open_fully(path)


def test_all_tensors_of_another_file(path: Path, tmp_path: Path) -> None:
    other = load_file(make_card(Uniform(4)).save(tmp_path / "other", key=KEY))
    edit_tensors(path, lambda at: at.update(other))
    with pytest.raises(CardTagError):
        open_fully(path)


@pytest.mark.parametrize(
    ("one", "two"), [("kv.0000.0001", "kv.0001.0001"), ("ids.0000", "ids.0001")]
)
def test_tensors_that_change_places(tmp_path: Path, one: str, two: str) -> None:
    path = make_card(runs=(3, 3)).save(tmp_path / "card", key=KEY)

    def swap(tensors: dict[str, Any]) -> None:
        tensors[one], tensors[two] = tensors[two], tensors[one]

    edit_tensors(path, swap)
    with pytest.raises(CardTagError, match=f"tensor {one} does not pass"):
        open_fully(path)


@pytest.mark.parametrize("name", NAMES)
def test_tensor_cut_short(path: Path, name: str) -> None:
    edit_tensors(path, lambda at: at.update({name: at[name][:-4].copy()}))
    with pytest.raises((CardTagError, CardFormatError)):
        open_fully(path)


@pytest.mark.parametrize("name", ["envelope", "kv.0000.0000", "ids.0000"])
@pytest.mark.parametrize("size", [0, 15])
def test_tensor_shorter_than_its_tag(path: Path, name: str, size: int) -> None:
    edit_tensors(path, lambda at: at.update({name: at[name][:size].copy()}))
    with pytest.raises(CardFormatError, match=f"tensor {name} is U8"):
        open_fully(path)


def test_tensor_with_nothing_but_a_tag(path: Path) -> None:
    edit_tensors(path, lambda at: at.update({"kv.0000.0000": np.zeros(16, np.uint8)}))
    with pytest.raises(CardFormatError, match=r"is U8 \[0\]"):
        open_fully(path)


@pytest.mark.parametrize(
    "change", [lambda at: at[:-1], lambda at: at[None], lambda at: at.view("i1")]
)
def test_ids_of_another_type_or_shape(path: Path, change: Callable[[Any], Any]) -> None:
    edit_tensors(
        path, lambda at: at.update({"ids.0000": np.ascontiguousarray(change(at["ids.0000"]))})
    )
    with pytest.raises(CardFormatError, match="expected U8"):
        open_fully(path)


@pytest.mark.parametrize("name", NAMES)
def test_missing_tensor(path: Path, name: str) -> None:
    edit_tensors(path, lambda at: at.pop(name))
    with pytest.raises((CardFormatError, CardTagError)):
        open_fully(path)


@pytest.mark.parametrize("name", ["a", "more", "zzz", "kv.0002.0000"])
def test_tensor_too_many(path: Path, name: str) -> None:
    edit_tensors(path, lambda at: at.update({name: np.zeros(32, np.uint8)}))
    with pytest.raises((CardFormatError, CardTagError)):
        open_fully(path)


def test_header_over_the_limit(path: Path) -> None:
    edit_tensors(path, lambda at: at.update(envelope=np.zeros((16 << 20) + 17, np.uint8)))
    with pytest.raises(CardFormatError, match="no sealed header of at most 16777216"):
        open_fully(path)


@pytest.mark.parametrize(
    ("content", "error"),
    [("\ud800", None), ("{}", CardFormatError), ("[" * 100_000, CardFormatError)],
)
def test_what_the_owner_of_a_key_seals_is_checked_as_ever(
    path: Path, content: str, error: Any
) -> None:
    if error is None:
        with pytest.raises(UnicodeEncodeError):
            seal({}, {MAGIC: content}, KEY)
        return
    tensors, metadata = seal(make_card().tensors, {MAGIC: content}, KEY)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(error):
        open_fully(path)


def test_sealed_bytes_that_are_not_the_manifests(path: Path) -> None:
    """Digests of the plain bytes are verified though the seal is whole."""
    card = make_card(Uniform(4))
    tensors = {name: array.copy() for name, array in card.tensors.items()}
    tensors["kv.0001.0000"][-1] ^= 1
    sealed, metadata = seal(tensors, card.metadata(), KEY)
    save_file(sealed, path, metadata=metadata)
    with pytest.raises(CardDigestError, match="layer 1 of segment 0 is damaged"):
        open_fully(path)


# --- the seal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, 99])
def test_wrong_version(path: Path, version: int) -> None:
    edit_seal(path, lambda at: at.update(version=version))
    with pytest.raises(CardVersionError, match=f"sealed by version {version}"):
        open_fully(path)


def test_nonce_of_another_file(path: Path) -> None:
    edit_seal(path, lambda at: at.update(nonce="0" * 64))
    with pytest.raises(CardTagError):
        open_fully(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda at: at.pop("key"),
        lambda at: at.pop("nonce"),
        lambda at: at.pop("version"),
        lambda at: at.update(more=1),
        lambda at: at.update(version="1"),
        lambda at: at.update(key="0" * 15),
        lambda at: at.update(key="0" * 16 + "\n"),
        lambda at: at.update(nonce=""),
        lambda at: at.update(nonce="A" * 64),
        lambda at: at.update(nonce=None),
    ],
)
def test_seal_that_breaks_a_rule(path: Path, edit: Callable[[Any], Any]) -> None:
    edit_seal(path, edit)
    with pytest.raises(CardFormatError, match="its seal is not valid"):
        open_fully(path)


def test_seal_that_is_no_json(path: Path) -> None:
    header, data = take_apart(path)
    for text in ("", "[" * 100_000, "null"):
        header["__metadata__"] = {SEALED: text}
        put_together(path, header, data)
        with pytest.raises(CardFormatError, match="its seal is not valid"):
            open_fully(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=100)
@given(value=JSON, place=st.sampled_from(["key", "nonce", "version"]))
def test_random_seal(tmp_path_factory: pytest.TempPathFactory, value: Any, place: str) -> None:
    path = make_card().save(tmp_path_factory.getbasetemp() / "seal", key=KEY)
    expected = open_fully(path)
    edit_seal(path, lambda at: at.update({place: value}))
    if place == "version" and value == 1 and isinstance(value, int | float) and value is not True:
        assert open_fully(path) == expected
        return
    with pytest.raises(QKVShareError):
        open_fully(path)


@settings(max_examples=150)
@given(data=st.data())
def test_random_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any edit of any byte run: refused, or the very same card."""
    path = make_card(Uniform(4)).save(tmp_path_factory.getbasetemp() / "damaged", key=KEY)
    expected, content = open_fully(path), bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 40)))
    content[start:end] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    with contextlib.suppress(QKVShareError):
        assert open_fully(path) == expected


def test_seal_is_canonical(path: Path) -> None:
    header, _ = take_apart(path)
    text = header["__metadata__"][SEALED]
    assert text.encode() == msgspec.json.encode(json.loads(text), order="sorted")
