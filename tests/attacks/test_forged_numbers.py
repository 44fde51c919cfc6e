"""Cards whose digests are right and whose scales are not: refused, not decoded to NaN."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard, Raw, capture
from qkvshare.card.container import blob_name
from qkvshare.card.digest import digest_bytes
from qkvshare.card.errors import CardFormatError
from qkvshare.codecs import Codec, LayerBits, LayerKV, Packed, Shape, Transform, empty
from qkvshare.codecs.finite import MOST
from qkvshare.profile import Profile

from ..cards import encode
from ..conftest import some_ids
from .target import GOLDEN

TOKENS, DIM = 9, 8
SHAPE = Shape(2, TOKENS, DIM, DIM)
NAN, INFINITY = float("nan"), float("inf")
KEYS = 2 * TOKENS * DIM  # numbers
Edit = Callable[[Any], None]


def layer(dim: int = DIM) -> LayerKV:
    draw = torch.Generator().manual_seed(0)
    return LayerKV(*(torch.randn(2, TOKENS, dim, generator=draw) for _ in "kv"))


def encoded(codec: Codec, of: LayerKV, dtype: torch.dtype = torch.float32) -> Any:
    bits = LayerBits(*(torch.full((2, TOKENS), 4, dtype=torch.uint8) for _ in "kv"))
    given = LayerKV(of.keys.to(dtype), of.values.to(dtype))
    (blob,) = encode(codec, [given], [bits])
    return blob.copy()


def put(form: str, at: int, value: float) -> Edit:
    """Write one number into a blob, ``at`` bytes from its start, or end."""

    def edit(blob: Any) -> None:
        raw = np.frombuffer(struct.pack(form, value), np.uint8)
        start = at % len(blob)
        blob[start : start + len(raw)] = raw

    return edit


# Where a part of ``packed`` begins: its exponent, then 18 bytes of rows, then codes of 4 bits.
MEAN = 2 * (4 + DIM)
VALUES = MEAN + 2 + 18 + 18 * DIM // 2

FORGED: list[tuple[str, Codec, torch.dtype, Edit]] = [
    *(
        (f"raw {value}", Raw(), torch.float32, put("<f", at, value))
        for value in (NAN, INFINITY, -INFINITY, 2e12, -2e12)
        for at in (0, -4)
    ),
    ("raw half", Raw(), torch.float16, lambda blob: blob[:2].__setitem__(1, 0x7C)),
    ("raw bfloat", Raw(), torch.bfloat16, lambda blob: blob[:2].__setitem__(slice(2), 0xFF)),
    *(
        (f"{codec.name} {value} at {at}", codec, dtype, put("<e", at, value))
        for codec in (Uniform(4), Kivi(4))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for value in (NAN, INFINITY, -INFINITY)
        for at in (0, 2)
    ),
    ("uniform step too large for half", Uniform(8), torch.float16, put("<e", 2 * TOKENS, 65504.0)),
    *(
        (f"packed mean {value}", Packed(), torch.float32, put("<f", at, value))
        for value in (NAN, INFINITY, -INFINITY, 3e38, -2 * MOST)
        for at in (0, 4)
    ),
    *(
        (f"packed exponent {top} at {at}", Packed(), dtype, put("<h", at, top))
        for dtype, top in (
            (torch.float32, 384),
            (torch.float32, 140),
            (torch.bfloat16, 384),
            (torch.float16, 60),
        )
        for at in (MEAN, VALUES)
    ),
]


@pytest.mark.parametrize(
    ("codec", "dtype", "edit"), [f[1:] for f in FORGED], ids=[f[0] for f in FORGED]
)
def test_blob_that_stands_for_no_numbers(codec: Codec, dtype: torch.dtype, edit: Edit) -> None:
    blob = encoded(codec, layer(), dtype)
    list(codec.decode([blob], empty([SHAPE], dtype)))
    codec.check([blob], [SHAPE], dtype)
    edit(blob)
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        list(codec.decode([blob], empty([SHAPE], dtype)))
    # A list is decoded by two threads.
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        list(codec.decode([blob], list(empty([SHAPE], dtype))))
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        codec.check([blob], [SHAPE], dtype)


def test_packed_by_the_reference() -> None:
    """Rows of more than 256 numbers have no kernel."""
    shape = Shape(2, TOKENS, 512, 512)
    blob = encoded(Packed(), layer(512))
    put("<h", 2 * (4 + 512), 384)(blob)
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        list(Packed().decode([blob], empty([shape], torch.float32)))


def test_large_exponent_that_no_row_uses() -> None:
    """It is the numbers that count."""
    blob = encoded(Packed(), layer())
    rows = blob[MEAN + 2 : MEAN + 20]
    put("<h", MEAN, 135)(blob)
    rows &= 7
    (found,) = Packed().decode([blob], empty([SHAPE], torch.float32))
    assert found.keys.isfinite().all()


@pytest.mark.parametrize("size", [900.0, 20_000.0])
def test_numbers_near_the_end_of_half_precision_are_taken(size: float) -> None:
    of = LayerKV(*(part.sign() * size for part in (layer().keys, layer().values)))
    for codec in (Raw(), Uniform(8), Packed()):
        blob = encoded(codec, of, torch.float16)
        (found,) = codec.decode([blob], empty([SHAPE], torch.float16))
        assert found.keys.isfinite().all()
        assert found.keys.abs().max() > size / 2


def test_transform_whose_numbers_grow_beyond_bounds() -> None:
    """Escapes at the coarsest step, through a predictor that makes them larger."""
    good = Profile.load(GOLDEN / "transform.safetensors")
    arrays = {name: array.copy() for name, array in good.arrays.items()}
    for name, array in arrays.items():
        if name.endswith((".back", ".predictor")):
            array[:] = 60_000
    codec = Transform.of(Profile(good.weights, arrays)).at(2560)
    plain = Transform.of(good).at(2560)
    big = LayerKV(*(torch.full((2, TOKENS, 8), 1e20) for _ in "kv"))
    blobs = list(plain.encode([big] * 2))
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        list(codec.decode(blobs, empty([SHAPE] * 2, torch.float32)))


@pytest.mark.parametrize("how", ["model", "codes", "bfloat16"])
@pytest.mark.parametrize("what", ["mean", "exponent"])
def test_forged_card_is_refused_before_the_model_reads_it(llama: Any, how: Any, what: str) -> None:
    card = capture(llama, None, some_ids(130), codec=Packed())
    changed = {name: array.copy() for name, array in card.verified().items()}
    blob = changed[blob_name(1, 0)]
    edit = put("<f", 0, NAN) if what == "mean" else put("<h", MEAN, 384)
    edit(blob)
    segment = card.manifest.segments[0]
    blobs = [digest_bytes(changed[blob_name(n, 0)]) for n in range(3)]
    manifest = replace(card.manifest, segments=[replace(segment, blobs=blobs)])
    forged = CacheCard(manifest, changed)
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        forged.inputs(llama, new=[5], kv_format=how)
    with pytest.raises(CardFormatError, match="numbers that are not finite"):
        forged.verify()
