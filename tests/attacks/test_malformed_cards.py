"""One malformed card per defect: each is refused with a typed error, none decodes differently."""

from __future__ import annotations

import contextlib
import struct
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
from qkvshare import CacheCard, Raw
from qkvshare.card.container import MAGIC
from qkvshare.card.digest import digest_bytes, extend_chain
from qkvshare.card.errors import (
    CardDigestError,
    CardError,
    CardFormatError,
    CardVersionError,
    QKVShareError,
)
from qkvshare.codecs import decode_runs, from_record

from ..cards import (
    edit_manifest,
    make_card,
    put_together,
    read_envelope,
    take_apart,
    write_envelope,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_card(Uniform(4)).save(tmp_path / "card")


def open_fully(path: Path) -> list[bytes]:
    """Everything a receiver would read, decoded, as bytes."""
    card = CacheCard.load(path)
    layers = [at for index in range(len(card.manifest.segments)) for at in decode_runs(card)[index]]
    return [
        card.token_ids.tobytes(),
        *(part.numpy().tobytes() for at in layers for part in (at.keys, at.values)),
    ]


# --- the container ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"hello, world", b"PK\x03\x04" + b"\0" * 60])
def test_not_a_card_at_all(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CardFormatError):
        open_fully(path)


def test_every_truncation(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(CardFormatError):
            open_fully(path)


def test_bytes_after_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CardFormatError):
        open_fully(path)


def test_another_safetensors_file(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CardFormatError, match=r"but not a card: its metadata has \[\]"):
        CacheCard.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("length", [2**63, 2**40, 17 << 20])
def test_header_that_claims_to_be_huge(path: Path, length: int) -> None:
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", length) + content[8:])
    with pytest.raises(CardFormatError, match="announces a header of"):
        open_fully(path)


def test_header_over_the_limit(path: Path) -> None:
    header, data = take_apart(path)
    header["__metadata__"]["padding"] = "x" * (16 << 20)
    put_together(path, header, data)
    with pytest.raises(CardFormatError, match="at most 16777216"):
        open_fully(path)


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000])
def test_deeply_nested_header(path: Path, nested: bytes) -> None:
    put_together(path, nested, b"")
    with pytest.raises(CardFormatError):
        open_fully(path)


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"created":' * 100_000, "[" * 500 + "]" * 500])
def test_deeply_nested_manifest(path: Path, nested: str) -> None:
    digest = digest_bytes(nested.encode())
    write_envelope(path, f'{{"digest":"{digest}","manifest":{nested},"version":1}}')
    with pytest.raises(CardFormatError, match="is not valid"):
        open_fully(path)


def test_overlapping_tensors(path: Path) -> None:
    header, data = take_apart(path)
    header["kv.0000.0001"]["data_offsets"] = header["kv.0000.0000"]["data_offsets"]
    header["kv.0000.0001"]["shape"] = header["kv.0000.0000"]["shape"]
    put_together(path, header, data)
    with pytest.raises(CardFormatError):
        open_fully(path)


def test_tensor_outside_the_file(path: Path) -> None:
    header, data = take_apart(path)
    start, _ = header["kv.0001.0001"]["data_offsets"]
    header["kv.0001.0001"].update(shape=[2**40], data_offsets=[start, start + 2**40])
    put_together(path, header, data)
    with pytest.raises(CardFormatError):
        open_fully(path)


@pytest.mark.parametrize("name", ["ids.0001", "kv.0001.0000"])
def test_missing_tensor(path: Path, name: str) -> None:
    header, _ = take_apart(path)
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata=header["__metadata__"])
    with pytest.raises(CardFormatError, match=f"tensors missing \\['{name}'\\]"):
        open_fully(path)


def test_tensor_too_many(path: Path) -> None:
    header, _ = take_apart(path)
    tensors = load_file(path) | {"more": np.zeros(3, np.uint8)}
    save_file(tensors, path, metadata=header["__metadata__"])
    with pytest.raises(CardFormatError, match="not expected \\['more'\\]"):
        open_fully(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ids.0000", lambda array: array.astype(np.int64)),
        ("ids.0000", lambda array: array[None]),
        ("ids.0000", lambda array: array[:-1]),
        ("kv.0000.0000", lambda array: array.astype(np.int8)),
        ("kv.0000.0000", lambda array: array.reshape(2, -1)),
    ],
)
def test_tensor_of_another_type_or_shape(
    path: Path, name: str, change: Callable[[Any], Any]
) -> None:
    header, _ = take_apart(path)
    tensors = load_file(path)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, path, metadata=header["__metadata__"])
    with pytest.raises(CardFormatError, match=f"tensor {name} is"):
        open_fully(path)


# --- the header ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qkvshare.other", "format", ""])
def test_wrong_magic(path: Path, name: str) -> None:
    header, data = take_apart(path)
    header["__metadata__"] = {name: header["__metadata__"][MAGIC]}
    put_together(path, header, data)
    with pytest.raises(CardFormatError, match="expected 'qkvshare.cachecard' and nothing else"):
        open_fully(path)


def test_second_metadata_entry(path: Path) -> None:
    header, data = take_apart(path)
    header["__metadata__"]["more"] = "x"
    put_together(path, header, data)
    with pytest.raises(CardFormatError, match="and nothing else"):
        open_fully(path)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_wrong_version(path: Path, version: int) -> None:
    write_envelope(path, read_envelope(path) | {"version": version})
    with pytest.raises(CardVersionError, match=f"version {version}, this package reads 1"):
        open_fully(path)


@pytest.mark.parametrize(
    "change",
    [{"version": "1"}, {"version": None}, {"digest": "0" * 63}, {"digest": 0}, {"more": 1}],
)
def test_header_that_breaks_a_rule(path: Path, change: dict[str, Any]) -> None:
    write_envelope(path, read_envelope(path) | change)
    with pytest.raises(CardFormatError, match="header is not valid"):
        open_fully(path)


@pytest.mark.parametrize("name", ["digest", "manifest", "version"])
def test_header_that_lacks_a_part(path: Path, name: str) -> None:
    envelope = read_envelope(path)
    del envelope[name]
    write_envelope(path, envelope)
    with pytest.raises(CardFormatError, match="header is not valid"):
        open_fully(path)


def test_edited_manifest(path: Path) -> None:
    edit_manifest(path, lambda m: m["identity"].update(weights="0" * 64), resign=False)
    with pytest.raises(CardDigestError, match="the manifest has digest"):
        open_fully(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("identity"),
        lambda m: m["identity"].pop("weights"),
        lambda m: m["identity"].pop("adapter"),
        lambda m: m["identity"].update(weights=None),
        lambda m: m.update(more=1),
        lambda m: m["layers"][0].update(more=1),
        lambda m: m["layers"][0].update(kind="conv"),
        lambda m: m["layers"][0].update(head_dim=0),
        lambda m: m["layers"][0].update(head_dim=2**40),
        lambda m: m["layers"][0].update(head_dim="8"),
        lambda m: m["layers"][0].update(head_dim=8.5),
        lambda m: m["layers"][0].update(window=4),
        lambda m: m["layers"][1].pop("window"),
        lambda m: m["layers"][1].update(window=-1),
        lambda m: m.update(layers=[]),
        lambda m: m.update(segments=[]),
        lambda m: m.update(lineage=[]),
        lambda m: m.update(created="yesterday"),
        lambda m: m.update(created="2026-01-01T00:00:00"),
        lambda m: m.update(expires="never"),
        lambda m: m.update(salt=""),
        lambda m: m.update(salt="A" * 64),
        lambda m: m.update(salt="a" * 64 + "\n"),
        lambda m: m.update(salt=["a" * 64]),
        lambda m: m["segments"][0].update(blobs=[]),
        lambda m: m["segments"][0]["blobs"].append("0" * 64),
        lambda m: m["segments"][0].update(blobs=["0" * 63, "0" * 64]),
        lambda m: m["segments"][0].update(first=[0]),
        lambda m: m["segments"][0].update(first=[1, 3]),  # a full layer forgets nothing
        lambda m: m["segments"][0].update(first=[0, 4]),  # less than its window
        lambda m: m["segments"][1].update(first=[6, 5]),  # before the segment
        lambda m: m["segments"][1].update(start=5),  # overlap
        lambda m: m["segments"][1].update(start=7),  # gap
        lambda m: m["segments"][0].update(end=0),
        lambda m: m["segments"].reverse(),
    ],
)
def test_manifest_that_breaks_a_rule(path: Path, edit: Callable[[Any], Any]) -> None:
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        open_fully(path)


@pytest.mark.parametrize(
    ("codec", "error"),
    [
        ({"name": "gzip", "version": 1, "parameters": {}}, QKVShareError),
        ({"name": "uniform", "version": 2, "parameters": {"bits": 4}}, CardVersionError),
        ({"name": "uniform", "version": 1, "parameters": {}}, CardFormatError),
        ({"name": "uniform", "version": 1, "parameters": {"bits": 8}}, CardFormatError),
        ({"name": "raw", "version": 1, "parameters": {}}, CardFormatError),
        ({"name": "raw", "version": 1, "parameters": {"__class__": "os"}}, CardFormatError),
    ],
)
def test_codec_that_is_not_the_one_used(
    path: Path, codec: dict[str, Any], error: type[Exception]
) -> None:
    edit_manifest(path, lambda m: m["segments"][0].update(codec=codec))
    with pytest.raises(error):
        open_fully(path)


@pytest.mark.parametrize("dtype", ["float64", "int8", "os.system", "__class__"])
def test_dtype_that_is_none(path: Path, dtype: str) -> None:
    edit_manifest(path, lambda m: m["identity"].update(dtype=dtype))
    with pytest.raises(CardFormatError, match="expected one of"):
        open_fully(path)


def test_geometry_that_does_not_fit_the_bytes(tmp_path: Path) -> None:
    # claims terabytes; refused by size before anything is allocated
    path = make_card(Raw()).save(tmp_path / "card")
    edit_manifest(path, lambda m: m["layers"][0].update(kv_heads=2**20, head_dim=2**20))
    with pytest.raises(CardFormatError, match="bytes, its shape needs"):
        open_fully(path)


# --- the contents -------------------------------------------------------------------------------


def test_changed_token_ids(path: Path) -> None:
    header, _ = take_apart(path)
    tensors = load_file(path)
    tensors["ids.0001"][2] += 1
    save_file(tensors, path, metadata=header["__metadata__"])
    with pytest.raises(CardDigestError, match="token ids of segment 1"):
        CacheCard.load(path)


def test_changed_codes(path: Path) -> None:
    header, _ = take_apart(path)
    tensors = load_file(path)
    tensors["kv.0001.0000"][-1] ^= 1
    save_file(tensors, path, metadata=header["__metadata__"])
    card = CacheCard.load(path)  # the header is whole; nothing was read yet
    card.blob(0, 0)
    with pytest.raises(CardDigestError, match="layer 1 of segment 0 is damaged"):
        card.blob(1, 0)
    for read in (card.verified, card.verify):
        with pytest.raises(CardDigestError):
            read()


def test_swapped_layers(tmp_path: Path) -> None:
    path = make_card(runs=(3,)).save(tmp_path / "card")  # both layers of one size
    header, _ = take_apart(path)
    tensors = load_file(path)
    tensors["kv.0000.0000"], tensors["kv.0001.0000"] = (
        tensors["kv.0001.0000"],
        tensors["kv.0000.0000"],
    )
    save_file(tensors, path, metadata=header["__metadata__"])
    with pytest.raises(CardDigestError, match="layer 0 of segment 0"):
        open_fully(path)


def test_segment_spliced_behind_another_prefix(path: Path, tmp_path: Path) -> None:
    other = make_card(Uniform(4), seed=1)
    header, _ = take_apart(path)
    tensors = load_file(path)
    for name in ("ids.0001", "kv.0000.0001", "kv.0001.0001"):
        tensors[name] = other.tensors[name]
    save_file(tensors, path, metadata=header["__metadata__"])
    foreign = msgspec.to_builtins(other.manifest.segments[1])
    edit_manifest(path, lambda m: m["segments"].__setitem__(1, foreign))
    with pytest.raises(CardDigestError, match="encoded behind another prefix"):
        open_fully(path)


@pytest.mark.parametrize("salt", ["b" * 64, None])
def test_exchanged_salt(tmp_path: Path, salt: str | None) -> None:
    path = make_card(salt="a" * 64).save(tmp_path / "card")
    edit_manifest(path, lambda m: m.update(salt=salt), resign=False)
    with pytest.raises(CardDigestError, match="the manifest has digest"):
        open_fully(path)
    edit_manifest(path, lambda m: m.update(salt=salt))
    with pytest.raises(CardDigestError, match="encoded behind another prefix"):
        open_fully(path)


def test_forged_chain(path: Path) -> None:
    def edit(manifest: Any) -> None:
        chain = extend_chain("0" * 64, [1, 2, 3], None)
        manifest["segments"][0]["chain"] = manifest["segments"][1]["prefix"] = chain

    edit_manifest(path, edit)
    with pytest.raises(CardDigestError, match="token ids of segment 0"):
        open_fully(path)


@pytest.mark.slow
@settings(max_examples=300)
@given(data=st.data())
def test_random_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any edit of any byte run: refused, or the very same decode."""
    folder = tmp_path_factory.getbasetemp()
    path = make_card(Uniform(4)).save(folder / "damaged")
    expected, content = open_fully(path), bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 40)))
    content[start:end] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    with contextlib.suppress(QKVShareError):
        assert open_fully(path) == expected


@settings(max_examples=200)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    ),
    place=st.sampled_from(
        ["created", "identity", "layers", "segments", "lineage", "expires", "salt"]
    ),
)
def test_random_manifest(tmp_path_factory: pytest.TempPathFactory, value: Any, place: str) -> None:
    path = make_card().save(tmp_path_factory.getbasetemp() / "manifest")
    edit_manifest(path, lambda manifest: manifest.update({place: value}))
    with pytest.raises(CardError):
        CacheCard.load(path)


def test_from_record_runs_no_code() -> None:
    from qkvshare.card import CodecRecord

    with pytest.raises(QKVShareError, match="no codec"):
        from_record(CodecRecord(name="os.system", version=1, parameters={}))
