"""`verify` means that the card can be used: what it passed although nobody could use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Packed, Raw, profile
from qkvshare.card import Layer
from qkvshare.card.digest import digest_bytes, extend_chain
from qkvshare.card.errors import CardFormatError, CardThinError, CodecError, ProfileError
from qkvshare.cli import verify as command
from qkvshare.codecs import Shape, Transform, transform

from ..cards import (
    canonical,
    card_of,
    edit_manifest,
    make_card,
    read_envelope,
    take_apart,
    write_envelope,
)
from ..profiles import made_up_profile


def used(path: Path) -> None:
    """What a person does: the verb."""
    command.verify(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_card(Uniform(4)).save(tmp_path / "card")


def edit_tensors(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    header, _ = take_apart(path)
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata=header["__metadata__"])


@pytest.mark.parametrize("codec", [Raw(), Uniform(2), Packed()], ids=lambda codec: codec.name)
def test_good_card(tmp_path: Path, codec: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for number, card in enumerate((make_card(codec), make_card(codec).compact())):
        used(card.save(tmp_path / f"{number}"))
    joined = make_card(codec, joined=True)
    used(joined.save(tmp_path / "joined"))
    used(joined.compact().save(tmp_path / "both"))
    assert capsys.readouterr().out.count("ok") == 4


def test_empty_blob(path: Path) -> None:
    def empty(manifest: Any) -> None:
        manifest["segments"][0]["blobs"][0] = digest_bytes(b"")

    edit_tensors(path, lambda at: at.update({"kv.0000.0000": np.zeros(0, np.uint8)}))
    edit_manifest(path, empty)
    with pytest.raises(CardFormatError, match=r"is U8 \[0\], expected U8 \[bytes\], at least one"):
        used(path)


def test_layer_without_bytes_in_a_shared_blob(tmp_path: Path) -> None:
    path = make_card(Uniform(4), (6,), joined=True).save(tmp_path / "card")
    edit_manifest(path, lambda m: m["segments"][0]["sizes"].__setitem__(0, 0))
    with pytest.raises(CardFormatError, match="layer 0 has no bytes"):
        used(path)


def test_card_without_keys_and_values(tmp_path: Path) -> None:
    card = make_card(Uniform(4))
    path = card.without(card).save(tmp_path / "thin")
    with pytest.raises(CardThinError, match="card.whole"):
        used(path)


def test_unknown_codec(path: Path) -> None:
    edit_manifest(path, lambda m: m["segments"][1]["codec"].update(name="strange"))
    with pytest.raises(CodecError, match="no codec 'strange'"):
        used(path)


def test_codec_of_another_kind(path: Path) -> None:
    codec = {"name": "raw", "version": 1, "parameters": {}}
    edit_manifest(path, lambda m: m["segments"][0].update(codec=codec))
    with pytest.raises(CardFormatError, match="its shape needs"):
        used(path)


def test_unknown_number_format(path: Path) -> None:
    edit_manifest(path, lambda m: m["identity"].update(dtype="float8"))
    with pytest.raises(CardFormatError, match="dtype 'float8'"):
        used(path)


def test_profile_that_is_not_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Transform.of(made_up_profile(2, apart=True)).at(0)
    path = make_card(codec, (6,)).save(tmp_path / "card")
    used(path)
    monkeypatch.setattr(profile, "_known", {})
    transform._basis.cache_clear()
    with pytest.raises(ProfileError, match="not at hand"):
        used(path)


@pytest.mark.parametrize("wrong", [2**31 - 1, 1 << 24, -1, -(2**31)])
def test_ids_of_no_vocabulary(path: Path, wrong: int) -> None:
    ids = np.array([0, 1, 2, 3, 4, wrong], np.int32)

    def edit(manifest: Any) -> None:
        first, second = manifest["segments"]
        first["chain"] = second["prefix"] = extend_chain(first["prefix"], ids, None)
        second["chain"] = extend_chain(first["chain"], np.arange(6, 9, dtype=np.int32), None)

    edit_tensors(path, lambda at: at.update({"ids.0000": ids}))
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError, match="expected 0 to 16777215"):
        used(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1] + ',"expires":"2030-01-01T00:00:00Z","expires":null}',
        lambda text: text[:-1] + ',"lineage":[{"agent":"x","hop":0,"tokens_added":9}]}',
        lambda text: text[:-1] + ',"salt":null}',
        lambda text: json.dumps(json.loads(text)),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
        lambda text: text.replace('"test"', '"\\u0074est"'),
        lambda text: text.replace("00:00:00Z", "00:00:00+00:00"),
    ],
    ids=["twice", "hop twice", "default", "spaces", "order", "escape", "zone"],
)
def test_manifest_that_is_not_canonical(path: Path, spoil: Callable[[str], str]) -> None:
    envelope = read_envelope(path)
    text = spoil(canonical(envelope["manifest"]))
    made = f'{{"digest":"{digest_bytes(text.encode())}","manifest":{text},"version":1}}'
    write_envelope(path, made)
    with pytest.raises(CardFormatError, match="not canonical JSON"):
        used(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1] + ',"thin":0}',
        lambda text: text[:-1] + ',"version":1}',
        lambda text: " " + text,
    ],
)
def test_envelope_that_is_not_canonical(path: Path, spoil: Callable[[str], str]) -> None:
    write_envelope(path, spoil(canonical(read_envelope(path))))
    with pytest.raises(CardFormatError, match="not canonical JSON"):
        CacheCard.load(path)


@pytest.mark.parametrize("name", ["kv.0000.0000", "__metadata__"])
def test_tensor_or_metadata_that_stands_twice(path: Path, name: str) -> None:
    """Both say the same; another time they would not."""
    content = path.read_bytes()
    header, data = take_apart(path)
    text = json.dumps({name: header[name]})[1:-1]
    whole = json.dumps(header)[:-1] + f", {text}}}"
    path.write_bytes(len(whole.encode()).to_bytes(8, "little") + whole.encode() + data)
    assert path.read_bytes() != content
    with pytest.raises(CardFormatError, match="stands twice"):
        CacheCard.load(path)


def test_more_numbers_than_the_bytes_can_stand_for(tmp_path: Path) -> None:
    """Rows of no bits: a byte each, whatever a row is."""
    wide = Layer("full", 1, 4096, 4096)
    blob = np.zeros(Packed().overhead(Shape(1, 7, 4096, 4096)), np.uint8)
    card = card_of(np.arange(7, dtype=np.int32), [blob], Packed(), [wide])
    with pytest.raises(CardFormatError, match="expected at most 256 numbers a byte"):
        used(card.save(tmp_path / "card"))
