"""Every byte of a card flipped in turn: it is detected, or nothing at all is different."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard, Raw
from qkvshare.card.errors import QKVShareError
from qkvshare.codecs import Codec, Packed, Transform
from qkvshare.profile import Profile

from ..cards import make_card
from .target import GOLDEN, contents


def transform() -> Codec:
    codec = Transform.of(Profile.load(GOLDEN / "transform.safetensors"))
    return replace(codec.at(codec.basis.reference - 32), refinements=1)


EACH_CODEC = {
    "raw": make_card(Raw(), (2,)),
    "uniform": make_card(Uniform(2), (2,)),
    "kivi": make_card(Kivi(3), (2,)),
    "packed": make_card(Packed(), (2,)),
    "transform": make_card(transform(), (2,)),
}
EACH_SHAPE = {
    "longer": make_card(Packed(), (9, 3)),
    "joined": make_card(Packed(), (2, 1), joined=True),
    "compacted": make_card(Packed(), (2, 1)).compact(),
    "states": make_card(Packed(), (2,), states=True, state_bits=4),
    "thin": make_card(Packed(), (2, 1)).without(make_card(Packed(), (2,))),
}


def everything(path: Path) -> Any:
    """All that a receiver goes by: who the card is for, where it comes from, ids and numbers."""
    card = CacheCard.load(path)
    card.verified()
    manifest = card.manifest
    decoded = b"" if card.thin else b"".join(contents(card))
    return card.digest, card.thin, manifest, card.token_ids.tobytes(), decoded


def flip(path: Path, card: CacheCard, masks_of: Callable[[], list[int]]) -> None:
    content = card.save(path).read_bytes()
    expected, harmless = everything(path), 0
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            for mask in masks_of():
                os.pwrite(file.fileno(), bytes([byte ^ mask]), position)
                try:
                    found = everything(path)
                except QKVShareError:
                    continue
                assert found == expected, f"byte {position} with {mask:#x}: another card, silently"
                harmless += 1
            os.pwrite(file.fileno(), bytes([byte]), position)
    # White space that fills the header up to eight bytes can become other white space; no more.
    assert harmless <= 7 * 3


@pytest.mark.parametrize("name", EACH_CODEC)
def test_one_bit_of_every_byte(tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    flip(tmp_path / "card", EACH_CODEC[name], lambda: [1 << draw.randrange(8)])


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*EACH_CODEC, *EACH_SHAPE])
def test_every_bit_and_every_byte_as_a_whole(tmp_path: Path, name: str) -> None:
    card = (EACH_CODEC | EACH_SHAPE)[name]
    flip(tmp_path / "card", card, lambda: [*(1 << bit for bit in range(8)), 0xFF])
