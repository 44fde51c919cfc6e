"""One matrix for all codecs: a new codec adds one line to `CODECS_UNDER_TEST`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.codecs import Kivi, Uniform
from benchmarks.codecs.affine import pack, unpack
from qkvshare.card import CodecRecord
from qkvshare.card.errors import CardFormatError, CardVersionError, CodecError
from qkvshare.codecs import (
    BitMap,
    Codec,
    LayerBits,
    LayerKV,
    Packed,
    Raw,
    Shape,
    Tiered,
    empty,
    find_codec,
    from_record,
    packed_torch,
)
from qkvshare.codecs.layers import RotatedKV
from qkvshare.codecs.packed_layout import MEAN_TOKENS
from qkvshare.codecs.packed_torch import mean_of
from qkvshare.kernels.rotation import rotate

from ..cards import encode

# codec, and the largest error it may make, in units of the spread of the values
CODECS_UNDER_TEST: list[tuple[Codec, float]] = [
    (Raw(), 0.0),
    (Uniform(8), 0.02),
    (Uniform(4), 0.25),
    (Uniform(3), 0.5),
    (Uniform(2), 1.2),
    (Kivi(8), 0.02),
    (Kivi(4), 0.25),
    (Kivi(2), 1.2),
    (Packed(), 0.0),  # bounded below, by width
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

shapes = st.builds(
    Shape,
    kv_heads=st.integers(1, 5),
    tokens=st.integers(1, 40),
    head_dim=st.sampled_from([8, 64, 80, 96, 128]),
    v_head_dim=st.sampled_from([8, 64, 80]),
)


def random_layers(shape: Shape, count: int, dtype: torch.dtype, seed: int) -> list[LayerKV]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LayerKV(
            torch.randn(shape.keys, generator=generator).to(dtype),
            torch.randn(shape.values, generator=generator).to(dtype),
        )
        for _ in range(count)
    ]


def random_bits(codec: Codec, shape: Shape, count: int, seed: int) -> BitMap | None:
    """Any bit map at all, for codecs that take one."""
    if not isinstance(codec, Tiered):
        return None
    generator = torch.Generator().manual_seed(seed)
    tiers = torch.tensor(codec.tiers, dtype=torch.uint8)
    grid = (shape.kv_heads, shape.tokens)
    draw = lambda: tiers[torch.randint(len(tiers), grid, generator=generator)]  # noqa: E731
    return [LayerBits(draw(), draw()) for _ in range(count)]


def require_rows(
    x: torch.Tensor, y: torch.Tensor, bits: torch.Tensor, center: torch.Tensor | float = 0.0
) -> None:
    """Every row is where it was, as exact as its width; a misplaced one is off by its own norm."""
    norm = (x.float() - center).norm(dim=-1)
    error = (x.float() - y.float()).norm(dim=-1) / norm
    # A row without bits is the mean, in the output's number format.
    assert (
        (y.float() - center)[bits == 0].abs() <= (0.02 if isinstance(center, torch.Tensor) else 0)
    ).all()
    assert (error[bits == 8] < 0.07).all()
    assert (error[(bits >= 4) & (bits < 8)] < 0.4).all()
    assert (error < 1.4).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codec", "bound"), CODECS_UNDER_TEST, ids=str)
@settings(max_examples=25)
@given(shape=shapes, seed=st.integers(0, 99))
def test_round_trip(
    codec: Codec, bound: float, dtype: torch.dtype, shape: Shape, seed: int
) -> None:
    layers = random_layers(shape, 2, dtype, seed)
    bits = random_bits(codec, shape, 2, seed)
    blobs = list(encode(codec, layers, bits))
    assert all(blob.dtype == np.uint8 and blob.ndim == 1 for blob in blobs)
    again = list(from_record(codec.record()).decode(blobs, empty([shape, shape], dtype)))
    for before, after in zip(layers, again, strict=True):
        assert after.keys.shape == shape.keys
        assert after.values.shape == shape.values
        assert after.keys.dtype == after.values.dtype == dtype
        for x, y in ((before.keys, after.keys), (before.values, after.values)):
            if bits is not None:
                continue  # row by row, below
            limit = bound + (0 if bound == 0 else 0.02)  # the output's own rounding
            assert ((x - y).abs() <= limit).all() or (x - y).abs().max() <= limit * x.abs().max()
    for number, layer in enumerate(bits or []):
        before, after = layers[number], again[number]
        whole = before.keys.float()
        center = mean_of(whole)[0] if shape.tokens >= MEAN_TOKENS else 0.0
        require_rows(before.keys, after.keys, layer.keys, center)
        require_rows(before.values, after.values, layer.values)
    sizes = codec.parts(shape, blobs[0].nbytes)
    assert sum(sizes.values()) == blobs[0].nbytes
    assert min(sizes.values()) >= 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("codec", "bound"), CODECS_UNDER_TEST, ids=str)
@pytest.mark.parametrize("shape", [Shape(1, 5, 64, 64), Shape(3, 70, 64, 80)], ids=str)
def test_decoded_into_the_middle_of_a_cache(
    codec: Codec, bound: float, dtype: torch.dtype, shape: Shape
) -> None:
    """What lies before and behind stays as it is."""
    layers, end = random_layers(shape, 2, dtype, 0), 4 + shape.tokens
    blobs = list(encode(codec, layers, random_bits(codec, shape, 2, 0)))
    longer = Shape(shape.kv_heads, end + 9, shape.head_dim, shape.v_head_dim)
    rooms = list(empty([longer] * 2, dtype))
    for room in rooms:
        room.keys.fill_(7)
        room.values.fill_(7)
    into = [LayerKV(room.keys[:, 4:end], room.values[:, 4:end]) for room in rooms]
    plain = codec.decode(blobs, empty([shape] * 2, dtype))
    for one, two, there, room in zip(plain, codec.decode(blobs, into), into, rooms, strict=True):
        assert two is there
        for without, part in ((one.keys, room.keys), (one.values, room.values)):
            assert torch.equal(without, part[:, 4:end])
            assert (part[:, :4] == 7).all()
            assert (part[:, end:] == 7).all()


@pytest.mark.parametrize(("codec", "bound"), CODECS_UNDER_TEST, ids=str)
def test_order_of_tokens_does_not_matter(codec: Codec, bound: float) -> None:
    # Fewer than have a mean: a sum of floats depends on the order.
    shape = Shape(3, MEAN_TOKENS - 1, 64, 64)
    (layer,) = random_layers(shape, 1, torch.float32, 0)
    order = torch.randperm(MEAN_TOKENS - 1, generator=torch.Generator().manual_seed(0))
    mixed = LayerKV(layer.keys[:, order], layer.values[:, order])
    bits = random_bits(codec, shape, 1, 0)
    moved = bits and [LayerBits(at.keys[:, order], at.values[:, order]) for at in bits]
    (one,) = codec.decode(encode(codec, [layer], bits), empty([shape], torch.float32))
    (two,) = codec.decode(encode(codec, [mixed], moved), empty([shape], torch.float32))
    assert torch.equal(one.keys[:, order], two.keys)
    assert torch.equal(one.values[:, order], two.values)


@pytest.mark.parametrize(("codec", "bound"), CODECS_UNDER_TEST, ids=str)
def test_decode_is_the_same_on_any_number_of_threads(codec: Codec, bound: float) -> None:
    shape = Shape(3, 700, 64, 64)
    layers = random_layers(shape, 1, torch.float32, 0)
    (blob,) = encode(codec, layers, random_bits(codec, shape, 1, 0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        (one,) = codec.decode([blob], empty([shape], torch.float32))
    finally:
        torch.set_num_threads(threads)
    (two,) = codec.decode([blob], empty([shape], torch.float32))
    assert torch.equal(one.keys, two.keys)


@pytest.mark.parametrize(("codec", "bound"), CODECS_UNDER_TEST, ids=str)
@pytest.mark.parametrize("change", [-1, 1])
def test_blob_of_the_wrong_size(codec: Codec, bound: float, change: int) -> None:
    shape = Shape(2, 9, 64, 64)
    layers = random_layers(shape, 1, torch.float32, 0)
    (blob,) = encode(codec, layers, random_bits(codec, shape, 1, 0))
    wrong = np.resize(blob, blob.nbytes + change)
    with pytest.raises(CardFormatError, match="bytes, its shape needs"):
        list(codec.decode([wrong], empty([shape], torch.float32)))


def test_uniform_error_is_half_a_step() -> None:
    shape = Shape(1, 50, 64, 64)
    (layer,) = random_layers(shape, 1, torch.float32, 0)
    for bits in (2, 3, 4, 8):
        codec = Uniform(bits)
        (back,) = codec.decode(codec.encode([layer]), empty([shape], torch.float32))
        spread = layer.keys.amax(-1, keepdim=True) - layer.keys.amin(-1, keepdim=True)
        half = spread / (2**bits - 1) / 2
        # the float16 rounding of minimum and step shifts the grid by a little
        assert ((layer.keys - back.keys).abs() <= half * 1.1 + 5e-3).all()
    assert codec.parts(shape, 0)["scales"] == 2 * 50 * 4


def test_uniform_constant_rows() -> None:
    shape = Shape(1, 3, 64, 64)
    layer = LayerKV(torch.zeros(shape.keys), torch.full(shape.values, 3.0))
    (back,) = Uniform(2).decode(Uniform(2).encode([layer]), empty([shape], torch.float32))
    assert torch.equal(back.keys, layer.keys)
    assert torch.equal(back.values, layer.values)


@given(
    bits=st.integers(1, 8),
    rows=st.integers(0, 5),
    eights=st.integers(0, 20),
    seed=st.integers(0, 999),
)
def test_pack_is_a_little_endian_bit_stream(bits: int, rows: int, eights: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 8 * eights), dtype=np.uint8)
    packed = pack(torch.from_numpy(codes), bits)
    assert packed.shape == (rows, bits * eights)
    assert torch.equal(unpack(packed, bits), torch.from_numpy(codes))
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    expected = np.packbits(stream.reshape(rows, 8 * eights * bits), axis=-1, bitorder="little")
    assert np.array_equal(packed.numpy(), expected)


def test_unknown_codecs_and_parameters() -> None:
    known = "kivi, packed, raw, transform, uniform"
    with pytest.raises(CodecError, match=f"no codec 'gzip'; known: {known}"):
        find_codec("gzip")
    with pytest.raises(CardVersionError, match="'uniform' version 9"):
        from_record(CodecRecord(name="uniform", version=9, parameters={"bits": 4}))
    bad: list[dict[str, Any]] = [{}, {"bits": 4, "more": 1}, {"bits": "4"}, {"bits": 4.5}]
    for parameters in bad:
        with pytest.raises(CardFormatError, match="parameters"):
            from_record(CodecRecord(name="uniform", version=1, parameters=parameters))
    with pytest.raises(CodecError, match="no width of 7 bits"):
        from_record(CodecRecord(name="uniform", version=1, parameters={"bits": 7}))


def test_third_party_codecs_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        value = "package.module:Thing"

        def __init__(self, thing: Any) -> None:
            self.load = lambda: thing

    for thing, accepted in ((Uniform, True), (Shape, False), ("text", False)):
        found = [Point(thing)]
        monkeypatch.setattr("qkvshare.registry.entry_points", lambda found=found, **_: found)
        if accepted:
            assert find_codec("uniform") is Uniform
        else:
            with pytest.raises(CodecError, match="package.module:Thing is not a dataclass"):
                find_codec("uniform")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0, 100])
def test_uniform_bytes_are_those_of_the_specification(bits: int, offset: int) -> None:
    """A second implementation, from docs/cachecard.md, in plain numpy."""
    shape = Shape(kv_heads=3, tokens=7, head_dim=48, v_head_dim=40)
    (layer,) = random_layers(shape, 1, torch.float32, 0)
    layer = LayerKV(layer.keys + offset, layer.values)
    expected = []
    for part in (layer.keys, layer.values):
        rows = part.numpy().transpose(1, 0, 2).reshape(7, -1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 64)), mode="edge")
        groups = rows.reshape(7, -1, 64)
        low = groups.min(-1).astype(np.float16)
        span = groups.max(-1) - low.astype(np.float32)
        step = (span / np.float32(2**bits - 1)).astype(np.float16)
        codes = (groups - low[..., None].astype(np.float32)) / step[..., None].astype(np.float32)
        codes = np.clip(np.rint(codes), 0, 2**bits - 1).astype(np.uint8)
        codes = codes.reshape(7, -1)[:, : -(-part.shape[0] * part.shape[2] // 8) * 8]
        stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
        expected += [low.tobytes(), step.tobytes()]
        expected += [np.packbits(stream.reshape(-1), bitorder="little").tobytes()]
    (blob,) = Uniform(bits).encode([layer])
    assert blob.tobytes() == b"".join(expected)


@pytest.mark.parametrize("bits", Packed.tiers)
def test_packed_error_is_that_of_its_width(bits: int) -> None:
    """Least squared error of Gaussian numbers at each width, and keys' means for free."""
    codec, shape = Packed(), Shape(3, 2000, 64, 80)
    (layer,) = random_layers(shape, 1, torch.float32, 0)
    layer = LayerKV(layer.keys + 10 * torch.randn(3, 1, 64), layer.values)
    every = LayerBits(*(torch.full((3, 2000), bits, dtype=torch.uint8) for _ in range(2)))
    (blob,) = codec.encode([layer], [every])
    assert 8 * (blob.nbytes - codec.overhead(shape)) == 3 * 2000 * (64 + 80) * bits
    (back,) = codec.decode([blob], empty([shape], torch.float32))
    energy, expected = codec.energies([layer])[0], codec.distortion[codec.tiers.index(bits)]
    for x, y, energies in (
        (layer.keys, back.keys, energy.keys),
        (layer.values, back.values, energy.values),
    ):
        found = ((x - y).square().mean() / energies.mean()).item()
        assert found == pytest.approx(expected, rel=0.15)


def test_packed_never_clips_at_eight_bits() -> None:
    """A row with all of its energy in one direction of the rotated basis."""
    codec, shape = Packed(), Shape(1, 3, 64, 64)
    spike = torch.zeros(shape.values)
    spike[0, 1, 5] = 100.0
    layer = LayerKV(torch.zeros(shape.keys), rotate(spike) / 64)
    every = [LayerBits(*(torch.full((1, 3), 8, dtype=torch.uint8) for _ in range(2)))]
    (back,) = codec.decode(codec.encode([layer], every), empty([shape], torch.float32))
    assert (rotate(back.values) - spike).abs().max() < 1.0
    assert back.keys.abs().max() < 1e-20


def test_packed_needs_a_bit_map() -> None:
    with pytest.raises(CodecError, match="needs a bit map"):
        list(Packed().encode(random_layers(Shape(1, 3, 8, 8), 1, torch.float32, 0)))


@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("kind", ["keys", "values"])
@pytest.mark.parametrize(
    ("bits", "tokens", "said"), [(7, 9, "7 bits"), (9, 9, "9 bits"), (4, 8, r"\(2, 8\) rows")]
)
def test_packed_refuses_maps_that_are_none_of_its_own(
    bits: int, tokens: int, said: str, kind: str, as_list: bool
) -> None:
    """A foreign allocator's, of which kernels would make bytes that nobody can read."""
    layers: Any = random_layers(Shape(2, 9, 64, 64), 1, torch.float32, 0)
    maps = {at: torch.full((2, 9), 4, dtype=torch.uint8) for at in ("keys", "values")}
    maps[kind] = maps[kind][:, :tokens].clone()
    maps[kind][1, 3] = bits
    with pytest.raises(CodecError, match=f"{said}.*{kind}"):
        list(Packed().encode(layers if as_list else iter(layers), [LayerBits(**maps)]))


@pytest.mark.parametrize("exponent", [-301, 385, 32767])
def test_packed_refuses_exponents_of_no_float32(exponent: int) -> None:
    codec, shape = Packed(), Shape(1, 3, 64, 64)
    (blob,) = codec.encode(
        random_layers(shape, 1, torch.float32, 0), random_bits(codec, shape, 1, 0)
    )
    blob[:2] = np.frombuffer(np.int16(exponent).tobytes(), np.uint8)
    with pytest.raises(CardFormatError, match=f"exponent {exponent}, expected -300 to 384"):
        list(codec.decode([blob], empty([shape], torch.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "dim"), [(1, 8), (7, 64), (45, 80), (300, 96), (64, 256)])
def test_packed_kernels_give_what_torch_does(tokens: int, dim: int, dtype: torch.dtype) -> None:
    """Whole layers, from where a cache has them: as by torch, of keys that were turned back."""
    draw = torch.Generator().manual_seed(dim)
    cos, sin = torch.rand(2, tokens, dim // 2, generator=draw)
    # A head's tokens are a part of a longer cache.
    room = torch.randn(2, 3, tokens + 5, dim, generator=draw).to(dtype)
    layers: list[LayerKV] = [
        RotatedKV(room[0, :, 2 : tokens + 2], room[1, :, 5:], (cos, sin)),
        LayerKV(room[1, :, 5:], room[0, :, :tokens]),
    ]
    widths = torch.tensor(Packed.tiers, dtype=torch.uint8)
    bits = [LayerBits(*widths[torch.randint(0, 8, (2, 3, tokens), generator=draw)]) for _ in layers]
    codec = Packed()
    for at_once in (layers, iter(layers)):
        for blob, layer, own in zip(codec.encode(at_once, bits), layers, bits, strict=True):
            parts = packed_torch.encode(layer, own)
            assert blob.tobytes() == torch.cat(parts).numpy().tobytes()
    for energy, layer in zip(codec.energies(layers), layers, strict=True):
        expected = packed_torch.energy(layer)
        torch.testing.assert_close(energy.keys, expected.keys)
        torch.testing.assert_close(energy.values, expected.values)
