"""Cards with states whose digests are all right, and which somebody made to do harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace

from qkvshare import CacheCard, Packed
from qkvshare.card import StateTensor
from qkvshare.card.container import blob_name
from qkvshare.card.digest import digest_bytes
from qkvshare.card.errors import CardFormatError
from qkvshare.card.geometry import state_nbytes
from qkvshare.codecs.states import decode_states, encode_states

from ..cards import LAYERS, STATES, WINDOWS, edit_manifest, make_card, random_state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_card(Packed(), states=True, state_bits=8).save(tmp_path / "card")


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("states"),
        lambda m: m["states"].pop(),
        lambda m: m["states"].reverse(),
        lambda m: m["states"].append(m["states"][-1]),
        lambda m: m["states"][0].update(kind="memory"),
        lambda m: m["states"][0].update(shape=[]),
        lambda m: m["states"][0].update(shape=[0, 4]),
        lambda m: m["states"][0].update(shape=[2**20] * 8),
        lambda m: m["states"][0].update(shape=[6, 5]),
        lambda m: m["states"][0].update(dtype="float64"),
        lambda m: m["states"][0].update(layer=-1),
        lambda m: m["segments"][0].update(state_bits=4),
        lambda m: m["segments"][0].update(state_bits=5),
        lambda m: m["segments"][0].pop("state_bits"),
        lambda m: m["segments"][0]["blobs"].pop(),
    ],
)
def test_a_header_that_breaks_a_rule(path: Path, edit: Callable[[Any], Any]) -> None:
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        CacheCard.load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("states"),
        lambda m: (m.pop("states"), m["segments"][0].pop("state_bits")),
        lambda m: m["states"].clear(),
        lambda m: m["states"].pop(),
        lambda m: m.pop("layers"),
        lambda m: m["segments"][0].update(state_bits=4),
        lambda m: m["segments"][0].update(first=[0]),
        lambda m: m["segments"][0].update(sizes=[]),
        lambda m: m["segments"][0].update(sizes=[1]),
        lambda m: m["segments"][0]["blobs"].clear(),
        lambda m: m["segments"][0]["blobs"].append(m["segments"][0]["blobs"][0]),
        lambda m: m["layers"].append({"kind": "full", "kv_heads": 1, "head_dim": 1}),
    ],
)
def test_a_header_of_states_alone_that_breaks_a_rule(
    tmp_path: Path, edit: Callable[[Any], Any]
) -> None:
    card = make_card(states=True, state_bits=8, geometry=[])
    path = card.save(tmp_path / "card")
    CacheCard.load(path).verify()
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        CacheCard.load(path)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["states"][0].pop("every"),
        lambda m: m["states"][0].update(every=0),
        lambda m: m["states"][0].update(every=1),
        lambda m: m["states"][0].update(every=-4),
        lambda m: m["states"][0].update(every=2),
        lambda m: m["states"][0].update(every=2**20),
        lambda m: m["states"][0].update(every=2**21),
        lambda m: m["states"][0].update(every=4.0),
        lambda m: m["states"][0].update(shape=[]),
        lambda m: m["states"][0].update(shape=[1, 8, 2]),
        lambda m: m["states"][0].update(shape=[2**20] * 8),
        lambda m: m["states"][0].update(kind="conv"),
        lambda m: m["states"][0].update(kind="open", index=1),
        lambda m: m["states"][0].update(name="compressed_kv"),
        lambda m: m["states"][1].update(every=5),
        lambda m: m["states"][2].update(every=4),
        lambda m: m["states"].pop(1),
    ],
)
def test_a_header_of_windows_that_breaks_a_rule(
    tmp_path: Path, edit: Callable[[Any], Any], joined: bool
) -> None:
    card = make_card(states=True, state_bits=8, joined=joined, kept=WINDOWS)
    path = card.save(tmp_path / "card")
    CacheCard.load(path).verify()
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        CacheCard.load(path)


@pytest.mark.parametrize("state_bits", [None, 8, 4])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 6, 9])
def test_the_number_of_entries_is_that_of_the_tokens(tokens: int, state_bits: Any) -> None:
    card = make_card(states=True, state_bits=state_bits, runs=(tokens, 3), kept=WINDOWS)
    card.verify()
    for number, segment in enumerate(card.manifest.segments):
        states, read = card.manifest.snapshot(segment), max(1, segment.end - 1)
        assert [at.shape for at in states] == [[read // 4, 8], [read % 4, 3], [4, 3]]
        blob = card.state_blob(number)
        found = decode_states(blob, states, state_bits)
        assert [[*at.shape] for at in found] == [at.shape for at in states]
        for wrong in (blob[:-1], np.append(blob, blob[:1])):
            with pytest.raises(CardFormatError, match=r"bytes, expected"):
                decode_states(wrong, states, state_bits)


@pytest.mark.parametrize("state_bits", [None, 8])
@pytest.mark.parametrize("state", [0, 1, 2])
def test_windows_that_are_no_numbers(state: int, state_bits: Any) -> None:
    card = make_card(states=True, state_bits=state_bits, runs=(8,), kept=WINDOWS)
    states = card.manifest.snapshot(card.manifest.segments[0])
    blob = card.state_blob(0).copy()
    at = state_nbytes(states[:state], state_bits)
    blob[at : at + 4] = 0x7F
    with pytest.raises(CardFormatError, match=r"not finite"):
        decode_states(blob, states, state_bits)


def test_a_card_of_nothing(tmp_path: Path) -> None:
    card = make_card(geometry=[], states=True)
    nothing = replace(card.manifest, states=[])
    path = CacheCard(nothing, card.tensors).save(tmp_path / "card")
    with pytest.raises(CardFormatError, match=r"neither layers nor states"):
        CacheCard.load(path)


@pytest.mark.parametrize("joined", [False, True])
def test_states_alone_are_cut_and_joined(joined: bool, tmp_path: Path) -> None:
    card = make_card(Packed(), joined=joined, states=True, state_bits=8, geometry=[])
    for made in (
        card,
        card.compact(),
        card.compact().compact(),
        card.head(6),
        card.salted("1" * 64),
    ):
        again = CacheCard.load(made.save(tmp_path / "card"))
        again.verify()
        last = len(again.manifest.segments) - 1
        assert again.state_bytes == (last + 1) * state_nbytes(STATES, 8)
        assert again.state_blob(last).nbytes == state_nbytes(STATES, 8)
    thin = card.without(card.head(6))
    assert thin.thin == 1
    assert thin.whole(card).digest == card.digest


@pytest.mark.parametrize("state_bits", [None, 8, 4])
def test_sizes_of_joined_blobs(tmp_path: Path, state_bits: Any) -> None:
    card = make_card(Packed(), joined=True, states=True, state_bits=state_bits)
    path = card.save(tmp_path / "card")
    CacheCard.load(path).verify()

    def edit(manifest: Any) -> None:
        sizes = manifest["segments"][0]["sizes"]
        sizes[0], sizes[-1] = sizes[0] + 1, sizes[-1] - 1

    edit_manifest(path, edit)
    with pytest.raises(CardFormatError, match=r"bytes of states"):
        CacheCard.load(path)


def test_states_of_a_card_without_them(tmp_path: Path) -> None:
    path = make_card(Packed()).save(tmp_path / "card")
    edit_manifest(path, lambda m: m["segments"][0].update(state_bits=8))
    with pytest.raises(CardFormatError, match=r"has no states"):
        CacheCard.load(path)


@pytest.mark.parametrize("state_bits", [None, 8, 4])
@pytest.mark.parametrize(("state", "number"), [(0, 0x7F), (1, 0x7F), (3, 0x7F), (2, 0xFF)])
def test_bytes_that_stand_for_no_numbers(state_bits: Any, state: int, number: int) -> None:
    """NaN, infinity, numbers beyond all bounds, ids that no vocabulary has."""
    card = make_card(states=True, state_bits=state_bits, runs=(6,))
    blob = card.state_blob(0).copy()
    at = state_nbytes(STATES[:state], state_bits)
    blob[at : at + 8] = number
    name, segment = blob_name(len(LAYERS), 0), card.manifest.segments[0]
    blobs = [*segment.blobs[:-1], digest_bytes(blob, None)]
    manifest = replace(card.manifest, segments=[replace(segment, blobs=blobs)])
    forged = CacheCard(manifest, {**card.tensors, name: blob})
    with pytest.raises(CardFormatError, match=r"states|token ids"):
        forged.verify()


def test_a_blob_of_another_length() -> None:
    with pytest.raises(CardFormatError, match=r"has 3 bytes"):
        decode_states(np.zeros(3, np.uint8), STATES, None)


def test_states_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    made = [random_state(state, generator) for state in STATES]
    found = decode_states(encode_states(made, STATES, None), STATES, None)
    for one, other in zip(found, made, strict=True):
        assert torch.equal(one, other)


@given(
    arrays(np.float32, (3, 5), elements=st.floats(-(2.0**30), 2.0**30, width=32)),
    st.sampled_from([4, 8]),
)
def test_rounding_errs_by_half_a_step(numbers: Any, bits: Any) -> None:
    state = StateTensor(0, "recurrent", 0, [3, 5], "float32")
    tensor = torch.from_numpy(numbers)
    (found,) = decode_states(encode_states([tensor], [state], bits), [state], bits)
    # Scales have 8 bits, so the largest number may lie half a percent outside.
    step = tensor.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    allowed = (0.5 + 0.004 * (2 ** (bits - 1) - 1)) * step * 1.01
    assert ((found - tensor).abs() <= allowed + 1e-37).all()
