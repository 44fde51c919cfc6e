"""Cards written once and kept: every later version must read them to the very same numbers.

``python -m tests.card.test_golden`` writes them anew, which only a new format version may need.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard, Raw
from qkvshare.card import Key, Signer
from qkvshare.card.digest import digest_bytes
from qkvshare.codecs import Codec, Packed, Transform, decode_runs
from qkvshare.codecs.states import decode_states
from qkvshare.profile import Profile

from ..cards import WINDOWS, make_card
from ..profiles import made_up_profile

FOLDER = Path(__file__).parent / "golden"
CODECS: dict[str, Codec] = {
    "raw": Raw(),
    "uniform8": Uniform(8),
    "uniform4": Uniform(4),
    "uniform3": Uniform(3),
    "uniform2": Uniform(2),
    "kivi4": Kivi(4),
    "packed": Packed(),
}
# The profile of the golden card; a fit may change in its last bits, this file must not.
PROFILE = FOLDER / "transform.safetensors"


def transform(refinements: int) -> Transform:
    """With the kept profile, a little finer than it was fitted for."""
    codec = replace(Transform.of(Profile.load(PROFILE)), refinements=refinements)
    return codec.at(codec.basis.reference - 32)


def describe(card: CacheCard) -> dict[str, Any]:
    """Everything that must never change."""
    decoded = [
        part.contiguous()
        for run in decode_runs(card)
        for layer in run
        for part in (layer.keys, layer.values)
    ]
    states = [
        digest_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for number, segment in enumerate(card.manifest.segments if card.manifest.states else [])
        for tensor in decode_states(
            card.state_blob(number), card.manifest.snapshot(segment), segment.state_bits
        )
    ]
    # Float sums, unlike what is coded, may differ between machines in their last bits.
    summed = card.manifest.segments[0].codec.profile is not None
    return {
        "card": card.digest,
        "ids": card.token_ids.tolist(),
        "segments": card.manifest.names,
        "decoded": [
            [float(f"{x:.7g}") for x in part.flatten().tolist()]
            if summed
            else digest_bytes(part.numpy().tobytes())
            for part in decoded
        ],
    } | ({"states": states} if states else {})


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.card")))
def test_golden_card(name: str, tmp_path: Path) -> None:
    Profile.load(PROFILE).keep()
    path = FOLDER / f"{name}.card"
    card = CacheCard.load(path)
    found, expected = describe(card), json.loads((FOLDER / f"{name}.json").read_text())
    for one, other in zip(found.pop("decoded"), expected.pop("decoded"), strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, abs=1e-4))
    assert found == expected
    assert card.save(tmp_path / "again").read_bytes() == path.read_bytes()


# Anybody's: a second implementation can open the sealed card, and check who signed it.
KEY = Key(b"Z" * 32)
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(b"Z" * 32))


def test_golden_sealed_and_signed_card(tmp_path: Path) -> None:
    card = CacheCard.load(FOLDER / "packed.sealed", key=KEY, trust=[SIGNER.public])
    assert card.digest == json.loads((FOLDER / "packed.json").read_text())["card"]
    assert card.signature == SIGNER.sign(card.digest)
    plain = replace(card, signature=None, file=None).save(tmp_path / "plain")
    assert plain.read_bytes() == (FOLDER / "packed.card").read_bytes()


if __name__ == "__main__":
    if not PROFILE.exists():
        made_up_profile(2, apart=True).save(PROFILE)
    made = {"transform": transform(0), "transform-refined": transform(1)}
    cards = {name: make_card(codec) for name, codec in (CODECS | made).items()}
    chain = make_card(Packed(), (9, 3))
    cards |= {"joined": make_card(Packed(), (9, 3), joined=True), "compacted": chain.compact()}
    cards |= {"salted": make_card(Packed(), salt="5a" * 32)}
    cards |= {"states": make_card(states=True), "states8": make_card(states=True, state_bits=8)}
    cards["states4"] = make_card(Packed(), joined=True, states=True, state_bits=4)
    cards["states-alone"] = make_card(states=True, state_bits=8, geometry=[])
    cards["windows"] = make_card(states=True, state_bits=8, kept=WINDOWS)
    for name, card in cards.items():
        card.save(FOLDER / f"{name}.card").chmod(0o644)
        (FOLDER / f"{name}.json").write_text(json.dumps(describe(card), indent=1) + "\n")
    sealed = cards["packed"].signed(SIGNER)
    sealed.save(FOLDER / "packed.sealed", key=KEY).chmod(0o644)
