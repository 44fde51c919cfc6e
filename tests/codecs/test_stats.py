"""What is said to be spent on tokens adds up to the bytes there are."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.codecs import Kivi, Uniform
from qkvshare.card import CacheCard, Layer
from qkvshare.codecs import Codec, LayerBits, Packed, Raw, Transform
from qkvshare.codecs.stats import bytes_of, token_bits

from ..cards import card_of, make_card
from ..profiles import DIM, HEADS, made_up_layers, made_up_profile

CODECS = [Raw(), Uniform(4), Kivi(2), Packed()]


def bytes_said(card: CacheCard) -> list[float]:
    """Of each layer."""
    bits = token_bits(card)
    assert bits is not None
    return [
        (
            bits.keys[at].sum() * layer.kv_heads * layer.head_dim
            + bits.values[at].sum() * layer.kv_heads * layer.v_head_dim
        )
        / 8
        for at, layer in enumerate(card.manifest.layers)
    ]


def bytes_there(card: CacheCard) -> list[int]:
    runs = card.manifest.runs
    return [sum(bytes_of(card, at, run) for run in runs) for at in range(len(card.manifest.layers))]


def transform_card(exponents: list[np.ndarray], refinements: int = 0) -> CacheCard:
    """A single segment of made-up layers, encoded at these steps."""
    tokens, layers = len(exponents[0]), len(exponents)
    codec = replace(Transform.of(made_up_profile(layers)), refinements=refinements)
    codec = codec.at(codec.basis.reference - 64)
    blobs = list(codec.encode(made_up_layers(layers, tokens), exponents=exponents))
    ids = np.arange(tokens, dtype=np.int32)
    return card_of(ids, blobs, codec, [Layer("full", HEADS, DIM, DIM)] * layers)


@pytest.mark.parametrize("shape", ["apart", "joined", "compacted"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_tokens_add_up_to_their_layer(codec: Codec, shape: str) -> None:
    card = make_card(codec, (6, 3), joined=shape == "joined")
    card = card.compact() if shape == "compacted" else card
    assert bytes_said(card) == pytest.approx(bytes_there(card), rel=1e-4)


@pytest.mark.parametrize("refinements", [0, 2])
def test_tokens_of_transform_add_up_to_their_layer(refinements: int) -> None:
    steps = [np.tile(np.array([-16, -8, 0, 4], np.int32), 150)] * 3  # two chunks
    card = transform_card(steps, refinements)
    assert bytes_said(card) == pytest.approx(bytes_there(card), rel=1e-4)


def test_finer_steps_have_more_bits() -> None:
    """An octave is at most one bit."""
    card = transform_card([np.tile(np.array([-16, -12, 0, 12], np.int32), 16)] * 3)
    bits = token_bits(card)
    assert bits is not None
    for part in (bits.keys, bits.values):
        assert (np.diff(part[:, :4]) < 0).all()
        octave = part[:, 0] - part[:, 1]
        assert ((octave > 0.6) & (octave < 1)).all()


def test_a_wider_row_has_more_bits_by_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = torch.tensor([[0, 1, 2, 8, 0, 0], [0, 1, 4, 8, 0, 3]], dtype=torch.uint8)
    monkeypatch.setattr(
        "tests.cards.every_width",
        lambda codec, layers: [
            LayerBits(widths[:, -at.keys.shape[1] :], widths[:, -at.values.shape[1] :])
            for at in layers
        ],
    )
    bits = token_bits(make_card(Packed(), (6,)))
    assert bits is not None
    over = bits.values[0].min()  # a row's byte, the exponent
    assert bits.values[0] - over == pytest.approx(np.array([0, 1, 3, 8, 0, 1.5]))


def test_what_a_layer_forgot_has_no_bits() -> None:
    bits = token_bits(make_card(Raw(), (6, 3)))
    assert bits is not None
    for part in (bits.keys[1], bits.values[1]):
        assert (part > 0).tolist() == [False] * 3 + [True] * 6


def test_what_a_thin_card_lacks_has_no_bits() -> None:
    card = make_card(Packed(), (6, 3))
    bits = token_bits(card.without(make_card(Packed(), (6,))))
    assert bits is not None
    assert not bits.keys[:, :6].any()
    assert (bits.keys[:, 6:] > 0).all()


def test_many_tokens_of_many_layers_are_not_counted() -> None:
    card, tokens, layers = make_card(Uniform(4), (6,), joined=True), 200_000, 500
    segment = msgspec.structs.replace(
        card.manifest.segments[0], end=tokens, sizes=[0] * layers, first=None
    )
    manifest = msgspec.structs.replace(
        card.manifest, layers=[Layer("full", 1, 1, 1)] * layers, segments=[segment]
    )
    assert token_bits(CacheCard(manifest, card.tensors)) is None
