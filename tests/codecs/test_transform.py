"""The transform codec on made-up layers: what it promises of quality, size and exactness."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkvshare.card.digest import digest_bytes
from qkvshare.card.errors import CardFormatError, CodecError, ProfileError
from qkvshare.codecs import LayerKV, Shape, Transform, empty, from_record
from qkvshare.codecs.streams import COARSEST, FINEST, _read_exponents, _write_exponents
from qkvshare.profile import Profile

from ..profiles import DIM, HEADS, made_up_layers, made_up_profile

TOKENS = 700  # two chunks
PROFILE = made_up_profile()
SHAPES = [Shape(HEADS, TOKENS, DIM, DIM)] * 3


def codec(finer: int = 0, refinements: int = 0, profile: Profile = PROFILE) -> Transform:
    made = replace(Transform.of(profile), refinements=refinements)
    return made.at(made.basis.reference - finer)


def error(before: list[LayerKV], after: list[LayerKV]) -> float:
    pairs = zip(before, after, strict=True)
    return max(
        (x - y).abs().max().item()
        for one, other in pairs
        for x, y in ((one.keys, other.keys), (one.values, other.values))
    )


def spread(before: list[LayerKV], after: list[LayerKV]) -> float:
    """Root mean square of the error."""
    pairs = zip(before, after, strict=True)
    squares = [
        (x - y).square().mean().item()
        for one, other in pairs
        for x, y in ((one.keys, other.keys), (one.values, other.values))
    ]
    return float(np.mean(squares)) ** 0.5


def round_trip(
    finer: int, layers: list[LayerKV], profile: Profile = PROFILE
) -> tuple[int, list[LayerKV]]:
    made = codec(finer, profile=profile)
    blobs = list(made.encode(layers))
    shapes = [Shape(HEADS, layers[0].keys.shape[1], DIM, DIM)] * len(layers)
    again = from_record(made.record())
    return sum(map(len, blobs)), list(again.decode(blobs, empty(shapes, torch.float32)))


def test_each_octave_halves_the_error_for_a_bit_more() -> None:
    layers = made_up_layers(3, TOKENS)
    sizes, errors = zip(
        *(
            (size, error(layers, out))
            for size, out in (round_trip(64 * o, layers) for o in range(4))
        ),
        strict=True,
    )
    for number in range(3):
        assert 0.35 < errors[number + 1] / errors[number] < 0.65
        more = 8 * (sizes[number + 1] - sizes[number]) / (3 * 2 * TOKENS * HEADS * DIM)
        assert 0.6 < more < 1.4


def test_a_token_far_outside_costs_bits_not_quality() -> None:
    layers = made_up_layers(3, TOKENS)
    plain, before = round_trip(64, layers)
    for layer in layers:
        layer.keys[:, 100] *= 1000
        layer.values[:, 100] -= 500
    size, out = round_trip(64, layers)
    assert size < plain + 2000
    rest = [token for token in range(TOKENS) if token != 100]
    for one, other, old in zip(layers, out, before, strict=True):
        assert torch.equal(other.keys[:, rest], old.keys[:, rest])
        scale = one.keys[:, 100].abs().max()
        assert (one.keys[:, 100] - other.keys[:, 100]).abs().max() < 1e-3 * scale
        assert (one.values[:, 100] - other.values[:, 100]).abs().max() < 1.0


def test_a_large_constant_costs_nothing() -> None:
    """Predictions are made in bfloat16, whose numbers near 1000 are 4 apart."""
    plain, before = round_trip(128, made_up_layers(3, TOKENS))
    layers = made_up_layers(3, TOKENS, shift=1000)
    size, after = round_trip(128, layers, made_up_profile(shift=1000))
    assert size < 1.03 * plain
    assert spread(layers, after) < 1.05 * spread(made_up_layers(3, TOKENS), before)


def test_a_finer_step_for_one_token_is_for_that_token() -> None:
    layers, made = made_up_layers(3, TOKENS), codec()
    exponents = [np.zeros(TOKENS, np.int32) for _ in layers]
    plain = list(made.decode(list(made.encode(layers)), empty(SHAPES, torch.float32)))
    for own in exponents:
        own[5] = -16
    blobs = list(made.encode(layers, exponents=exponents))
    for one, other, old in zip(
        layers, made.decode(blobs, empty(SHAPES, torch.float32)), plain, strict=True
    ):
        fine = (one.keys[:, 5] - other.keys[:, 5]).abs().max()
        assert fine < 0.3 * (one.keys[:, 5] - old.keys[:, 5]).abs().max()
        assert torch.equal(other.keys[:, 6:], old.keys[:, 6:])


def decoded(made: Transform, blobs: list) -> list[LayerKV]:
    return list(made.decode(blobs, empty(SHAPES, torch.float32)))


def test_each_refinement_halves_the_error_for_about_a_bit() -> None:
    layers, made = made_up_layers(3, TOKENS), codec(refinements=2)
    blobs = list(made.encode(layers))
    errors, sizes = [], []
    for keep in range(3):
        cut = [made.drop(blob, shape, keep) for blob, shape in zip(blobs, SHAPES, strict=True)]
        errors.append(spread(layers, decoded(made, cut)))
        sizes.append(sum(map(len, cut)))
    for number in range(2):
        assert 0.35 < errors[number + 1] / errors[number] < 0.65
        more = 8 * (sizes[number + 1] - sizes[number]) / (3 * 2 * TOKENS * HEADS * DIM)
        assert 0.6 < more < 1.4
    levels = [made.level_bytes(blob, shape) for blob, shape in zip(blobs, SHAPES, strict=True)]
    assert sizes == [
        sum(map(len, blobs)) - sum(sum(level[keep:]) for level in levels) for keep in range(3)
    ]


def test_what_is_dropped_changes_no_other_number() -> None:
    layers, made = made_up_layers(3, TOKENS), codec(refinements=1)
    blobs = list(made.encode(layers))
    whole = decoded(made, blobs)
    blobs[1] = made.drop(blobs[1], SHAPES[1], 0)
    cut = decoded(made, blobs)
    base = decoded(codec(), list(codec().encode(layers)))
    for part in ("keys", "values"):
        for number, expected in ((0, whole), (1, base), (2, whole)):
            found = getattr(cut[number], part)
            assert torch.equal(found, getattr(expected[number], part))
        assert not torch.equal(getattr(base[0], part), getattr(whole[0], part))


def test_refinements_of_a_number_far_outside() -> None:
    layers, made = made_up_layers(3, 40), codec(refinements=1)
    layers[0].keys[:, 7] = 1e6
    blobs, shapes = list(made.encode(layers)), [Shape(HEADS, 40, DIM, DIM)] * 3
    out = list(made.decode(blobs, empty(shapes, torch.float32)))
    assert (out[0].keys[:, 7] - 1e6).abs().max() < 1e3
    assert error(layers[1:], out[1:]) < error(layers[1:], list(codec().decode(
        list(codec().encode(layers)), empty(shapes, torch.float32)))[1:])  # fmt: skip


@pytest.mark.parametrize("refinements", [-1, 5])
def test_refinements_that_cannot_be_are_refused(refinements: int) -> None:
    made = codec(refinements=refinements)
    with pytest.raises(CodecError, match="refinements"):
        list(made.encode(made_up_layers(3, 5)))
    with pytest.raises(CardFormatError, match="refinements"):
        list(made.decode([], empty(SHAPES, torch.float32)))


def test_half_precision_is_rounded_once() -> None:
    layers, made = made_up_layers(3, 40), codec()
    blobs, shapes = list(made.encode(layers)), [Shape(HEADS, 40, DIM, DIM)] * 3
    whole = made.decode(blobs, empty(shapes, torch.float32))
    for one, half in zip(whole, made.decode(blobs, empty(shapes, torch.bfloat16)), strict=True):
        assert torch.equal(one.keys.bfloat16(), half.keys)


SCRIPT = """
import sys
import torch
from tests.codecs.test_transform import SHAPES, TOKENS, codec
from tests.profiles import made_up_layers
from qkvshare.codecs import empty
from qkvshare.card.digest import digest_bytes
torch.set_num_threads(int(sys.argv[1]))
made = codec(32, refinements=1)
blobs = list(made.encode(made_up_layers(3, TOKENS)))
out = [p.contiguous().numpy().tobytes() for l in made.decode(blobs, empty(SHAPES, torch.float32))
       for p in (l.keys, l.values)]
print(digest_bytes(b"".join(b.tobytes() for b in blobs)), digest_bytes(b"".join(out)))
"""


@pytest.mark.slow
def test_the_same_bits_in_every_process_and_with_any_threads() -> None:
    root = Path(__file__).parents[2]
    said = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(threads)],
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout
        for threads in (1, 2, 3)
    }  # fmt: skip
    assert len(said) == 1


@settings(max_examples=50)
@given(st.lists(st.integers(FINEST, COARSEST), min_size=1, max_size=300))
def test_exponents_come_back(exponents: list[int]) -> None:
    own = np.array(exponents, np.int32)
    assert (_read_exponents(_write_exponents(own), len(own)) == own).all()


@settings(max_examples=80)
@given(at=st.integers(0, 10**6), change=st.integers(1, 255))
def test_damage_is_found_or_harmless(at: int, change: int) -> None:
    shape, made = Shape(HEADS, 30, DIM, DIM), codec(refinements=at % 2)
    layers = made_up_layers(3, 30)
    blobs = [blob.copy() for blob in made.encode(layers)]
    blob = blobs[at % 3]
    blob[at % len(blob)] ^= change
    with suppress(CardFormatError):
        out = list(made.decode(blobs, empty([shape] * 3, torch.float32)))
        assert all(part.keys.shape == shape.keys for part in out)


@pytest.mark.parametrize("keep", [0, 3, 20, -1])
def test_a_cut_layer_is_refused(keep: int) -> None:
    made = codec()
    blobs = list(made.encode(made_up_layers(3, 30)))
    blobs[1] = blobs[1][:keep]
    with pytest.raises(CardFormatError, match="damaged or was assembled"):
        list(made.decode(blobs, empty([Shape(HEADS, 30, DIM, DIM)] * 3, torch.float32)))


def test_another_geometry_is_refused() -> None:
    made = codec()
    blobs = list(made.encode(made_up_layers(3, 30)))
    with pytest.raises(CardFormatError, match="the profile has 3"):
        list(made.decode(blobs[:2], empty([Shape(HEADS, 30, DIM, DIM)] * 2, torch.float32)))
    with pytest.raises(CardFormatError, match="columns in layer 0"):
        list(made.decode(blobs, empty([Shape(HEADS, 30, DIM, 2 * DIM)] * 3, torch.float32)))


def test_a_profile_that_is_not_at_hand_is_named() -> None:
    with pytest.raises(ProfileError, match="not at hand"):
        list(Transform("0" * 64, 0).decode([], empty([], torch.float32)))
    with pytest.raises(ProfileError, match="has no basis"):
        Transform.of(Profile("1" * 64, {})).basis  # noqa: B018
    with pytest.raises(CodecError, match="needs a step"):
        list(Transform.of(PROFILE).encode(made_up_layers(3, 5)))


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "p")
    again = Profile.load(tmp_path / "p")
    assert again.digest == PROFILE.digest
    assert digest_bytes(b"") != PROFILE.digest
