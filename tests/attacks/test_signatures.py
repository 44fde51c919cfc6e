"""Attacks on signatures: unsigned, unknown, forged and replayed cards are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkvshare import CacheCard
from qkvshare.card import Key, Signature, Signer
from qkvshare.card.errors import CardFormatError, CardSignatureError, SecretError

from ..cards import edit_manifest, make_card, read_envelope, write_envelope
from .test_sealed_cards import JSON

ME, OTHER = Signer.generate(), Signer.generate()
TRUST = [ME.public]


def rewrite(path: Path, envelope: dict[str, Any]) -> None:
    """Replace the envelope and leave the manifest's bytes as they are, so its digest holds."""
    write_envelope(path, json.dumps(envelope, separators=(",", ":")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_card().signed(ME).save(tmp_path / "card")


def test_signed_card_is_taken_from_its_signer(path: Path, tmp_path: Path) -> None:
    (tmp_path / "trust").write_text(f"# who we work with\n\n{OTHER.public}\n{ME.public}  # me\n")
    for trust in (TRUST, (OTHER.public, ME.public), tmp_path / "trust", str(tmp_path / "trust")):
        card = CacheCard.load(path, trust=trust)
        assert card.digest == make_card().digest
        assert card.signature == ME.sign(card.digest)
    again = CacheCard.load(card.save(tmp_path / "again"), trust=TRUST)
    assert again.nbytes == path.stat().st_size == make_card().signed(ME).nbytes


@pytest.mark.parametrize("trust", [TRUST, []])
def test_unsigned_card(tmp_path: Path, trust: list[str]) -> None:
    path = make_card().save(tmp_path / "card")
    with pytest.raises(CardSignatureError, match="is not signed"):
        CacheCard.load(path, trust=trust)


def test_signature_that_was_taken_off(path: Path) -> None:
    envelope = read_envelope(path)
    del envelope["signature"]
    rewrite(path, envelope)
    CacheCard.load(path)
    with pytest.raises(CardSignatureError, match="is not signed"):
        CacheCard.load(path, trust=TRUST)


def test_unknown_signer(tmp_path: Path) -> None:
    path = make_card().signed(OTHER).save(tmp_path / "card")
    with pytest.raises(CardSignatureError, match=f"signed by {OTHER.public}, who is none of the 1"):
        CacheCard.load(path, trust=TRUST)


def test_signature_under_a_trusted_name(path: Path) -> None:
    forged = OTHER.sign(make_card().digest).value
    rewrite(path, read_envelope(path) | {"signature": {"key": ME.public, "value": forged}})
    with pytest.raises(CardSignatureError, match="forged, or is another card's"):
        CacheCard.load(path, trust=TRUST)


def test_signature_of_another_card(path: Path) -> None:
    other = ME.sign(make_card(seed=1).digest)
    rewrite(path, read_envelope(path) | {"signature": msgspec.to_builtins(other)})
    with pytest.raises(CardSignatureError, match="forged, or is another card's"):
        CacheCard.load(path, trust=TRUST)


def test_signature_of_the_bare_digest(path: Path) -> None:
    """What a key signed for another purpose is no signature of a card."""
    value = ME.private.sign(bytes.fromhex(make_card().digest)).hex()
    rewrite(path, read_envelope(path) | {"signature": {"key": ME.public, "value": value}})
    with pytest.raises(CardSignatureError):
        CacheCard.load(path, trust=TRUST)


def test_forged_manifest_under_a_signature(path: Path) -> None:
    edit_manifest(path, lambda m: m["lineage"][0].update(agent="somebody else"))
    CacheCard.load(path)  # consistent, as a forger makes it
    with pytest.raises(CardSignatureError):
        CacheCard.load(path, trust=TRUST)


@pytest.mark.parametrize("key", ["0" * 64, "01" + "0" * 62, "f" * 64])
def test_weak_or_impossible_key_that_nobody_trusts(path: Path, key: str) -> None:
    signature = {"key": key, "value": "0" * 128}
    rewrite(path, read_envelope(path) | {"signature": signature})
    with pytest.raises(CardSignatureError):
        CacheCard.load(path, trust=TRUST)


@pytest.mark.parametrize(
    "edit",
    [
        lambda at: at.pop("key"),
        lambda at: at.pop("value"),
        lambda at: at.update(more=1),
        lambda at: at.update(key=at["key"][:-1]),
        lambda at: at.update(key=at["key"] + "\n"),
        lambda at: at.update(key=at["key"].upper() + "A"),
        lambda at: at.update(value=at["value"][:-2]),
        lambda at: at.update(value="G" * 128),
        lambda at: at.update(value=None),
    ],
)
def test_malformed_signature_is_refused_by_everybody(
    path: Path, edit: Callable[[Any], Any]
) -> None:
    envelope = read_envelope(path)
    edit(envelope["signature"])
    rewrite(path, envelope)
    for trust in (None, TRUST):
        with pytest.raises(CardFormatError, match="header is not valid"):
            CacheCard.load(path, trust=trust)


@settings(max_examples=100)
@given(value=JSON, place=st.sampled_from(["signature", "key", "value"]))
def test_random_signature(tmp_path_factory: pytest.TempPathFactory, value: Any, place: str) -> None:
    path = make_card().signed(ME).save(tmp_path_factory.getbasetemp() / "signature")
    envelope = read_envelope(path)
    (envelope if place == "signature" else envelope["signature"])[place] = value
    rewrite(path, envelope)
    with pytest.raises((CardFormatError, CardSignatureError)):
        CacheCard.load(path, trust=TRUST)


@settings(max_examples=100)
@given(position=st.integers(0, 511))
def test_every_bit_of_a_signature_counts(
    tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    card = make_card()
    good = bytearray.fromhex(ME.sign(card.digest).value)
    good[position // 8] ^= 1 << position % 8
    signature = Signature(ME.public, good.hex())
    path = CacheCard(card.manifest, card.tensors, signature).save(
        tmp_path_factory.getbasetemp() / "bit"
    )
    with pytest.raises(CardSignatureError):
        CacheCard.load(path, trust=TRUST)


def test_what_is_derived_is_not_signed() -> None:
    card = make_card().signed(ME)
    for child in (card.fork("b"), card.compact(), card.salted("a" * 64)):
        assert child.signature is None
    # the same card, with the same digest
    assert card.without(card).signature == card.without(card).whole(card).signature
    assert card.without(card).signature == card.signature


def test_thin_card_keeps_what_was_signed(tmp_path: Path) -> None:
    card = make_card().signed(ME)
    thin = CacheCard.load(card.without(card).save(tmp_path / "thin"), trust=TRUST)
    assert CacheCard.load(thin.whole(card).save(tmp_path / "whole"), trust=TRUST).thin == 0


def test_sealed_and_signed(tmp_path: Path) -> None:
    key = Key.generate()
    path = make_card().signed(ME).save(tmp_path / "card", key=key)
    assert ME.public.encode() not in path.read_bytes()
    assert CacheCard.load(path, key=key, trust=TRUST).signature is not None
    with pytest.raises(CardSignatureError):
        CacheCard.load(path, key=key, trust=[OTHER.public])


# --- keys ---------------------------------------------------------------------------------------


def test_signer_file_round_trip(tmp_path: Path) -> None:
    path = ME.save(tmp_path / "signer")
    assert path.stat().st_mode & 0o777 == 0o600
    again = Signer.load(path)
    assert again.public == ME.public
    assert again.sign("0" * 64) == ME.sign("0" * 64)
    with pytest.raises(SecretError, match="exists"):
        OTHER.save(path)
    assert ME.private.private_bytes_raw().hex() not in repr(ME)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_signer_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    path = ME.save(tmp_path / "signer")
    path.chmod(0o644)
    with pytest.raises(SecretError, match="has mode 644"):
        Signer.load(path)


def test_file_that_is_no_signer(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    kind = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    key = Key.generate().save(tmp_path / "key")
    for content in (b"", kind, key.read_bytes(), b"-----BEGIN PRIVATE KEY-----\n"):
        path = tmp_path / "signer"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(SecretError, match="holds no Ed25519 key"):
            Signer.load(path)


@pytest.mark.parametrize("content", [b"me\n", b"0" * 63, b"\xff", b"A" * 64])
def test_list_of_trusted_keys_with_something_else_in_it(path: Path, content: bytes) -> None:
    trust = path.with_name("trust")
    trust.write_bytes(ME.public.encode() + b"\n" + content)
    with pytest.raises(SecretError):
        CacheCard.load(path, trust=trust)


def test_list_of_trusted_keys_that_is_missing(path: Path) -> None:
    with pytest.raises(SecretError, match="nothing cannot be read as UTF-8 text: No such file"):
        CacheCard.load(path, trust=path.with_name("nothing"))
    with pytest.raises(SecretError, match="'me' is no public key"):
        CacheCard.load(path, trust=["me"])
