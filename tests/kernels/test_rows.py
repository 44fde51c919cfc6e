"""The row kernels: C++ gives the bits of the reference, and both those of the specification."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkvshare.codecs.packed_torch import encode_part
from qkvshare.kernels import reference
from qkvshare.kernels.decode import add, decode_parts, widths
from qkvshare.kernels.encode import Source, encode, measure
from qkvshare.kernels.levels import DISTORTION, TIERS, UNIT, levels, thresholds
from qkvshare.kernels.native import dct_span, native, span
from qkvshare.kernels.parts import Part
from qkvshare.kernels.rotation import mix, power_of_two, rotate, rotate_pairs

DIMS = [8, 16, 20, 64, 80, 96, 128, 256]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_rows(heads: int, tokens: int, dim: int, seed: int, tier: int | None = None) -> tuple:
    """Rows, their bytes, both tables of scales and a mean; a row's scale fits its size."""
    generator = torch.Generator().manual_seed(seed)
    root = math.sqrt(power_of_two(dim))
    units = torch.exp2((torch.arange(32) - 20) / 3)
    scale = torch.randint(0, 32, (heads * tokens,), generator=generator)
    tiers = torch.randint(0, 8, (heads * tokens,), generator=generator)
    tiers = tiers if tier is None else torch.full_like(tiers, tier)
    rows = torch.randn(heads * tokens, dim, generator=generator) * units[scale, None]
    mean = torch.randn(heads, dim, generator=generator)
    return (
        rows,
        (tiers | scale << 3).to(torch.uint8),
        256 / (units * root),
        units / 256 / root,
        mean,
    )


def size_of(info: Tensor, dim: int) -> int:
    return sum(TIERS[byte & 7] for byte in info.tolist()) * reference.eights(dim) // 8


@pytest.fixture(params=native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute as a processor that can no more."""
    native.use(request.param)
    yield
    native.use(native.isas()[-1])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("tier", [None, *range(8)])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (3, 32), (2, 45)])
def test_kernels_equal_the_reference(dim: int, tier: int | None, heads: int, tokens: int) -> None:
    compare(dim, tier, heads, tokens, DTYPES)


def compare(
    dim: int,
    tier: int | None,
    heads: int,
    tokens: int,
    dtypes: Sequence[torch.dtype],
    decode: Callable[[Sequence[Part]], None] = decode_parts,
    rounded: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to,
) -> None:
    """A decoder against the reference: numbers to the last bit, and no more."""
    rows, info, inverse, scales, mean = random_rows(heads, tokens, dim, dim, tier)
    codes = reference.encode_rows(rows, info, inverse)
    assert len(codes) == size_of(info, dim)
    back = reference.decode_rows(codes, info, scales, mean, dim)
    for dtype in dtypes:
        for before, behind in ((0, 0), (2, 5)):
            room = torch.full((heads, before + tokens + behind, dim), 7.0, dtype=dtype)
            out = room[:, before : before + tokens]
            decode([Part(codes, info, scales, out, mean)])
            assert torch.equal(out.flatten(0, 1), rounded(back, dtype))
            assert (room[:, :before] == 7).all()
            assert (room[:, before + tokens :] == 7).all()


def encoded(rows: Tensor, widths: Tensor) -> tuple[bytes, bytes]:
    """What C++ and torch make of ``rows [heads, tokens, dim]``."""
    size = int(widths.sum()) * reference.eights(rows.shape[2]) // 8
    out = np.full(2 + widths.numel() + size, 7, np.uint8)
    encode([Source(rows, None, None, out, widths)])
    return out.tobytes(), torch.cat(encode_part(rows, widths)).numpy().tobytes()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("tier", [None, *range(8)])
@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (3, 32), (2, 45)])
def test_codes_equal_those_of_torch(dim: int, tier: int | None, heads: int, tokens: int) -> None:
    rows, info, *_ = random_rows(heads, tokens, dim, dim, tier)
    widths = torch.tensor(TIERS, dtype=torch.uint8)[info.int() & 7].view(heads, tokens)
    found, expected = encoded(rows.view(heads, tokens, dim), widths)
    assert found == expected


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dim", [8, 64, 80, 128, 256, 512])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_several_layers_at_once(dim: int, dtype: torch.dtype) -> None:
    """Keys turned on the way, values without a mean, of any length, and nothing beside them."""
    parts, expected = [], []
    for seed, tokens in enumerate((33, 33, 0, 1, 70)):
        rows, info, inverse, scales, mean = random_rows(2, tokens, dim, seed)
        codes = reference.encode_rows(rows, info, inverse)
        keys = seed % 2 == 0
        angle = torch.randn(tokens, dim // 2, generator=torch.Generator().manual_seed(seed))
        turn = (angle.cos(), angle.sin()) if keys else None
        room = torch.full((2, tokens + 3, dim), 7.0, dtype=dtype)
        own = mean if keys else torch.zeros_like(mean)
        back = reference.decode_rows(codes, info, scales, own, dim).view(2, tokens, dim)
        expected.append(back if turn is None else rotate_pairs(back, *turn))
        added = own if keys else None
        parts.append(Part(codes, info, scales, room[:, 1 : 1 + tokens], added, turn))
    decode_parts(parts)
    for part, right in zip(parts, expected, strict=True):
        assert torch.equal(part.numbers, right.to(dtype))
        assert part.numbers._base is not None
        assert (part.numbers._base[:, [0, -2, -1]] == 7).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", TIERS[1:])
def test_numbers_on_thresholds_get_the_codes_of_torch(bits: int) -> None:
    """On a threshold exactly, just beside it, and far outside."""
    at = thresholds(bits)
    beside = [np.nextafter(at, np.float32(side), dtype=np.float32) for side in (-1e9, 1e9)]
    wanted = torch.from_numpy(np.concatenate([at, *beside]))
    # The other 15 numbers make the row's scale that of its levels, to a part of its step.
    other = ((16 * UNIT**2 - wanted.double().square()) / 15).sqrt().floor().float()
    rotated = torch.cat([wanted[:, None], other[:, None].expand(-1, 15)], 1)
    # Thresholds are halves of whole numbers: there and back again they stay what they are.
    rows = reference.hadamard(rotated) / 16
    assert torch.equal(rotate(rows)[: len(at)], rotated[: len(at)])
    rows = torch.cat([rows / 64, torch.full((1, 16), 1e30), torch.full((1, 16), -0.0)])[None]
    for some in (rows[:, :-2], rows):
        found, expected = encoded(some, torch.full(some.shape[:2], bits, dtype=torch.uint8))
        assert found == expected
        if some is not rows:
            info = np.frombuffer(found[2 : 2 + some.shape[1]], np.uint8)
            assert found[:2] == b"\0\0"
            assert (info == (TIERS.index(bits) | 31 << 3)).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dim", [32, 64, 128, 192, 256])
@pytest.mark.parametrize("tier", range(1, 8))
def test_codes_that_no_encoder_writes(dim: int, tier: int) -> None:
    """A forger's rows may have the largest level everywhere: a sum of 64 does not fit 16 bits."""
    info, size = torch.full((3,), tier | 9 << 3, dtype=torch.uint8), dim * TIERS[tier] // 8
    scales, mean = torch.rand(32), torch.randn(1, dim)
    for byte in (0, 255):
        codes = torch.full((3 * size,), byte, dtype=torch.uint8)
        out = torch.empty(1, 3, dim)
        decode_parts([Part(codes, info, scales, out, mean)])
        assert torch.equal(out[0], reference.decode_rows(codes, info, scales, mean, dim))


@pytest.mark.usefixtures("isa")
def test_numbers_that_are_none_are_encoded_all_the_same() -> None:
    """Callers refuse them afterwards: their mean squares say so."""
    numbers = torch.randn(2, 5, 64)
    numbers[0, 1, 3], numbers[1, 2, 4] = torch.inf, torch.nan
    wide = torch.full((2, 5), 8, dtype=torch.uint8)
    mean, out = np.zeros(2 * 68, np.uint8), np.zeros(2 + 10 + 10 * 64, np.uint8)
    encode([Source(numbers, None, mean, out, wide)])
    squares = np.zeros(10, np.float32)
    measure([Source(numbers, None, mean, squares)])
    assert not np.isfinite(squares).all()


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 4),
    tokens=st.integers(0, 90),
    seed=st.integers(0, 9999),
    dim=st.sampled_from([8, 64, 80]),
)
def test_any_bit_map_comes_back(heads: int, tokens: int, seed: int, dim: int) -> None:
    """As far from the rows as its width allows, whatever lies beside it."""
    rows, info, inverse, scales, mean = random_rows(heads, tokens, dim, seed)
    codes = reference.encode_rows(rows, info, inverse)
    back, with_mean = torch.empty(2, heads, tokens, dim)
    decode_parts([Part(codes, info, scales, back), Part(codes, info, scales, with_mean, mean)])
    back, with_mean = back.flatten(0, 1), with_mean.flatten(0, 1)
    shifted = back.view(heads, tokens, dim) + mean[:, None]
    assert torch.equal(with_mean, shifted.view(-1, dim))
    unit = scales[(info >> 3).int()] * 256 * math.sqrt(power_of_two(dim))
    for row in range(heads * tokens):
        tier = int(info[row]) & 7
        error = (rows[row] - back[row]).square().mean().sqrt() / unit[row]
        # Of few numbers some lie far out, where the outermost level ends.
        assert error < 3.0 * DISTORTION[tier] ** 0.5 + (0.2 if tier == 7 else 1.0)


@pytest.mark.parametrize("n", [8, 36, 48, 64, 80, 96, 128, 256])
def test_rotation_is_orthogonal(n: int) -> None:
    matrix = rotate(torch.eye(n)) / math.sqrt(power_of_two(n))
    assert torch.allclose(matrix @ matrix.T, torch.eye(n), atol=1e-5)
    back = mix(reference.hadamard(matrix), inverse=True) / math.sqrt(power_of_two(n))
    assert torch.allclose(back, torch.eye(n), atol=1e-5)
    odd = n // power_of_two(n)
    spread = 1.0 if odd == 1 else 2**0.5  # a DCT's largest entry
    assert matrix.abs().max() <= spread / n**0.5 + 1e-5


def test_levels_are_close_to_those_of_max() -> None:
    """Least squared errors of Max, "Quantizing for minimum distortion" (1960), table I."""
    best = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 5: 0.002499}
    x = np.linspace(-6, 6, 200_001)
    weight = np.exp(-x * x / 2)
    for bits, allowed in zip(best, (0.001, 0.001, 0.002, 0.018, 0.06), strict=True):
        nearest = levels(bits)[np.searchsorted(thresholds(bits), 256 * x)] / 256
        found = ((x - nearest) ** 2 * weight).sum() / weight.sum()
        assert found == pytest.approx(DISTORTION[TIERS.index(bits)], rel=1e-3)
        assert best[bits] * 0.999 < found < best[bits] * (1 + allowed)


@pytest.mark.parametrize("bits", TIERS[1:])
def test_levels_ascend_and_mirror(bits: int) -> None:
    at = levels(bits).astype(int)
    assert (np.diff(at) > 0).all()
    assert np.abs(at + at[::-1]).max() <= 1  # halves are rounded up on either side


def part(dim: int = 64, tokens: int = 40) -> dict[str, Any]:
    """What fits together: arguments of `Part`."""
    rows, info, inverse, scales, mean = random_rows(2, tokens, dim, 0)
    codes = reference.encode_rows(rows, info, inverse)
    room = torch.full((2, tokens, dim), 7.0)
    turn = torch.ones(tokens, dim // 2), torch.zeros(tokens, dim // 2)
    return dict(codes=codes, info=info, scales=scales, numbers=room, mean=mean, angles=turn)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("codes", lambda at: at[:-1]),
        ("codes", lambda at: at[:0]),
        ("info", lambda at: at[:-1]),
        ("info", lambda at: at.fill_(7)),
        ("scales", lambda at: at[:-1]),
        ("mean", lambda at: at[:1]),
        ("angles", lambda at: (at[0][:-1], at[1])),
        ("angles", lambda at: (at[0], at[1][:, :-1].contiguous())),
        ("numbers", lambda at: at.as_strided((2, 40, 64), (100, 64, 1))),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(name: str, changed: Any) -> None:
    """Before anything is written."""
    given = part()
    numbers = given["numbers"]
    given[name] = changed(given[name])
    with pytest.raises(ValueError, match="."):
        decode_parts([Part(**given)])
    assert (numbers == 7).all()


def test_bytes_that_change_meanwhile_reach_no_memory_beside_them() -> None:
    """A card's file belongs to others; what it says was counted before."""
    given = part()
    codes, info = given["codes"].clone(), given["info"]
    line = native.Line(1)
    one = Part(**given)
    add(line, one)
    info.fill_(7)  # more codes than there are
    line.decode()
    with pytest.raises(RuntimeError, match="changed while it was decoded"):
        line.close()
    assert torch.equal(given["codes"], codes)


def test_encoders_refuse_what_does_not_fit() -> None:
    out = np.full(2 + 5 + 5 * 32, 7, np.uint8)
    turn = torch.ones(5, 32), torch.zeros(5, 32)
    widths = torch.full((1, 5), 4, dtype=torch.uint8)
    source = Source(torch.randn(1, 5, 64), turn, np.zeros(68, np.uint8), out, widths)
    good = source.row()
    native.encode([good], 1)
    assert not (out == 7).all()
    flat, short, (where, size) = [*good[0], *good[1:]], torch.ones(4, 32), good[0][0]
    for at, bad in ((0, (where + 1, size)), (0, (where, size - 1)), (2, -1), (2, 2),
                    (3, 4), (3, 1 << 41), (5, 512), (5, 80),
                    (6, (0, 0)), (6, span(short)), (7, span(short)), (8, dct_span(80)),
                    (9, np.zeros(67, np.uint8)), (10, span(widths[:, 1:])),
                    (11, out[1:])):  # fmt: skip
        out.fill(7)
        changed = [*flat[:at], bad, *flat[at + 1 :]]
        with pytest.raises(ValueError, match="."):
            native.encode([(tuple(changed[:9]), *changed[9:])], 1)
        assert (out == 7).all()
    numbers, wide = torch.randn(1, 5, 64), torch.full((1, 5), 7, dtype=torch.uint8)
    bytes_ = np.full(2 + 5 + 5 * 56, 7, np.uint8)
    with pytest.raises(ValueError, match="no tier has this width"):
        encode([Source(numbers, None, None, bytes_, wide)])
    with pytest.raises(ValueError, match="codes have another size"):
        encode([Source(numbers, None, None, bytes_[1:], wide.fill_(4))])
    with pytest.raises(ValueError, match="mean square"):
        measure([Source(numbers, None, None, np.zeros(4, np.float32))])
    assert (bytes_ == 7).all()


def test_many_heads_without_tokens_take_no_time() -> None:
    none, heads = (0, 0), 1 << 39
    line = native.Line(1)
    numbers = none, False, heads, 0, 0, 64, none, none, dct_span(64)
    line.add(numbers, none, none, span(torch.ones(32)), none, ())
    line.decode()
    line.close()
    native.rotate(numbers)
    out = np.zeros(2, np.uint8)
    native.encode([(numbers, none, none, out)], 1)
    assert out.any()  # the least exponent


def test_widths_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    info = torch.randint(0, 256, (1000,), dtype=torch.uint8).numpy()
    found = widths(info)
    monkeypatch.setattr("qkvshare.kernels.decode.native", None)
    assert widths(info) == found == sum(TIERS[byte & 7] for byte in info.tolist())
