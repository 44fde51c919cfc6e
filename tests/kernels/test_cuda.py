"""The Triton kernels: in Triton's interpreter, the bits of the reference; for GPUs, they compile.

Triton decides when it is imported whether it interprets, so these tests are run by a process of
their own: the first test starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.evals.handoff import Setting, read_context
from benchmarks.timing.staged import CardStaged
from qkvshare.codecs import LayerKV, Packed, Shape
from qkvshare.kernels import cuda, reference
from tests.cards import every_width
from tests.conftest import greedy, some_ids, tiny_model
from tests.kernels.test_rows import DTYPES, compare, random_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = pytest.mark.skipif(not cuda.has_triton(), reason="triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by the test of the interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


@pytest.mark.slow
@compiled
@pytest.mark.parametrize(
    "chosen", ["not nightly", pytest.param("nightly", marks=pytest.mark.nightly)]
)
def test_the_kernels_in_tritons_interpreter(chosen: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-m", chosen, "-p", "no:cacheprovider", "-v"]
    done = subprocess.run([*command, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def cut(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """As the interpreter makes a number format of float32: bfloat16 is cut off, where a GPU rounds
    to nearest."""
    if dtype != torch.bfloat16:
        return numbers.to(dtype)
    return (numbers.view(torch.int32) & -65536).view(torch.float32).to(dtype)


FAST: list[Any] = [
    (64, None, 2, 45, [torch.float32]),
    (128, None, 1, 10, [torch.bfloat16]),
    (64, 4, 1, 70, [torch.bfloat16]),
    (64, None, 2, 0, [torch.float32]),
]
SLOW: list[Any] = [
    *((dim, None, 2, 45, DTYPES) for dim in cuda.DIMS),
    *((64, tier, 1, 40, [torch.bfloat16]) for tier in range(8)),
    (128, 3, 1, 1, DTYPES),
    (64, None, 2, 600, [torch.float32]),  # more than a chunk of rows
]
CASES = FAST + [pytest.param(*case, marks=pytest.mark.nightly) for case in SLOW]


@interpreted
@pytest.mark.parametrize(("dim", "tier", "heads", "tokens", "dtypes"), CASES)
def test_kernels_equal_the_reference(
    dim: int, tier: int | None, heads: int, tokens: int, dtypes: list[torch.dtype]
) -> None:
    from qkvshare.kernels.cuda_decode import decode_parts

    assert cuda.fits(dim)
    compare(dim, tier, heads, tokens, dtypes, decode_parts, cut)


def make_part(
    heads: int, tokens: int, dim: int, seed: int, keys: bool, dtype: torch.dtype,
    tier: int | None = None,
) -> Any:  # fmt: skip
    """Of random rows; keys have a mean and are rotated."""
    from qkvshare.kernels.parts import Part

    rows, info, inverse, scales, mean = random_rows(heads, tokens, dim, seed, tier)
    codes, numbers = reference.encode_rows(rows, info, inverse), torch.empty(heads, tokens, dim)
    if not keys:
        return Part(codes, info, scales, numbers.to(dtype))
    angles = torch.randn(tokens, dim // 2, generator=torch.Generator().manual_seed(seed))
    return Part(codes, info, scales, numbers.to(dtype), mean, (angles.cos(), angles.sin()))


def decoded(part: Any) -> Tensor:
    """By the reference, in float32: ``[heads, tokens, dim]``."""
    heads, _, dim = part.numbers.shape
    mean = torch.zeros(heads, dim) if part.mean is None else part.mean
    rows = reference.decode_rows(part.codes, part.info, part.scales, mean, dim)
    one, two = rows.view(part.numbers.shape).chunk(2, -1)
    if part.angles is None:
        return torch.cat([one, two], -1)
    cos, sin = part.angles
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


@interpreted
def test_parts_of_several_layers_at_once() -> None:
    """Of different length, kind and format, as a model with sliding layers has them."""
    from qkvshare.kernels.cuda_decode import decode_parts

    parts = [
        make_part(2, 20, 64, 1, True, torch.float32),
        make_part(2, 20, 64, 2, False, torch.float32),
        make_part(2, 5, 64, 3, True, torch.float32),
        make_part(2, 5, 128, 4, True, torch.float16),
        make_part(2, 0, 64, 5, False, torch.float32),
    ]
    decode_parts(parts)
    for part in parts:
        assert torch.equal(part.numbers, decoded(part).to(part.numbers.dtype))
    decode_parts([])
    with pytest.raises(ValueError, match="rows of 80 numbers"):
        decode_parts([make_part(1, 2, 80, 4, True, torch.float32)])


@dataclass(frozen=True)
class Rotated(LayerKV):
    """Keys to be rotated on the way."""

    by: tuple[Tensor, Tensor] | None

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        return self.by


@interpreted
@pytest.mark.parametrize("tokens", [5, 20])  # without a mean, and with
def test_layers_of_packed(tokens: int) -> None:
    """As the decoder for processors, keys rotated on the way."""
    from qkvshare.codecs.copies import Copies
    from qkvshare.codecs.packed_cuda import decode_job
    from qkvshare.codecs.packed_layout import PackedLayout

    generator, codec = torch.Generator().manual_seed(0), Packed()
    layers = [LayerKV(*torch.randn(2, 2, tokens, 64, generator=generator).add(3)) for _ in range(2)]
    angle = torch.randn(tokens, 32, generator=generator)
    cos, sin = angle.cos(), angle.sin()
    job, expected = [], []
    for blob in codec.encode(layers, every_width(codec, layers)):
        to = LayerKV(*torch.empty(2, 2, tokens, 64))
        list(codec.decode([blob], [to]))
        one, two = to.keys.chunk(2, -1)
        keys = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
        expected.append(LayerKV(keys, to.values))
        there = Rotated(*torch.empty(2, 2, tokens, 64), (cos, sin))
        job.append((PackedLayout.of(blob, there.shape), blob, there))
    decode_job(job, Copies(torch.device("cpu")))
    for (_, _, found), at in zip(job, expected, strict=True):
        assert torch.equal(found.keys, at.keys)
        assert torch.equal(found.values, at.values)


@interpreted
def test_a_card_whose_codes_are_on_the_gpu(tmp_path: Path) -> None:
    """The numbers that `inject` makes, and so the same tokens."""
    llama, ids, new = tiny_model(head_dim=64), some_ids(20), some_ids(3, seed=1)
    route = CardStaged(llama, np.array(ids, np.int32), new, tmp_path, Setting(Packed(), 12.0))
    state = read_context(llama, ids, [route.setting])
    route.prepare(state)
    route.ready(state)
    staged = route.arguments()
    expected = route.card.inputs(llama, new=new)
    for mine, theirs in zip(
        staged["past_key_values"].layers, expected["past_key_values"].layers, strict=True
    ):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)
    assert greedy(llama, **staged) == greedy(llama, **expected)


@interpreted
@pytest.mark.parametrize("dim", [64, pytest.param(128, marks=pytest.mark.nightly)])
def test_codes_that_begin_anywhere(dim: int) -> None:
    """Words are read of full blocks that lie at a multiple of 16 bytes; else bytes. One width, of
    two planes, so that there are full blocks."""
    from qkvshare.kernels.cuda_decode import decode_parts

    part = make_part(1, 70, dim, 1, True, torch.float32, tier=5)
    room = torch.empty(len(part.codes) + 32, dtype=torch.uint8)
    for shift in (0, 1):
        start = -room.data_ptr() % 16 + shift
        moved = room[start : start + len(part.codes)].copy_(part.codes)
        assert moved.data_ptr() % 16 == shift
        here = replace(part, codes=moved, numbers=torch.empty_like(part.numbers))
        decode_parts([here])
        assert torch.equal(here.numbers, decoded(part))


KINDS = {"i64": "*i64", "i32": "*i32", "f32": "*fp32", "f16": "*fp16", "u8": "*u8", "n": "i32"}


def compile_for(arch: int, function: Any, pointers: str, **constants: Any) -> str:
    """The machine code's PTX of a kernel; ``pointers`` are the kinds of its first arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    given = pointers.split()
    assert names[len(given) :] == list(constants)
    signature = dict(zip(names, (KINDS[kind] for kind in given), strict=False))
    signature |= dict.fromkeys(constants, "constexpr")
    indices = {(names.index(name),): value for name, value in constants.items()}
    # As of tensors that torch has made.
    kept = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(given) if kind != "n"}
    source = ASTSource(fn=function, signature=signature, constexprs=indices, attrs=kept)
    options = {"enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert made.asm["cubin"]
    return str(made.asm["ptx"])


def compile_decode(arch: int, dim: int, number: Any, aligned: int) -> str:
    from qkvshare.kernels import cuda_decode

    return compile_for(
        arch, cuda_decode._decode, "i64 i32 i64 i32 f16 n n", NUMBER=number, DIM=dim, G=dim // 2,
        H=max(64, dim // 2), ROTATED=True, SHIFTED=True, ALIGNED=aligned, BLOCK=reference.BLOCK,
    )  # fmt: skip


@compiled
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dim", [64, 128])
def test_decoding_compiles_without_a_gpu(dim: int, arch: int) -> None:
    """What the interpreter accepts the compiler may not. Sums are exact only without fused ones."""
    import triton.language as tl

    ptx = compile_decode(arch, dim, tl.bfloat16, 16)
    assert "mma" in ptx
    assert "st.global.v4" in ptx
    assert "fma.rn" not in ptx


@compiled
@pytest.mark.nightly
def test_all_kernels_compile_without_a_gpu() -> None:
    import triton.language as tl

    from qkvshare.kernels import cuda_order

    compile_for(90, cuda_order._count, "i64 i32", CHUNK=1024)
    block = reference.BLOCK
    compile_for(90, cuda_order._order, "i64 i32 i32 i64 i32 n", CHUNK=1024, BLOCK=block)
    for dim in cuda.DIMS:
        for number, aligned in ((tl.float32, 16), (tl.float16, 1)):
            compile_decode(90, dim, number, aligned)


@compiled
def test_the_package_does_not_import_triton() -> None:
    """Nor the compiler of torch that would: it takes seconds, and is needed on a GPU only."""
    script = (
        "import sys, torch, qkvshare\n"
        "from qkvshare.codecs import Packed, Shape\n"
        "assert Packed.decodes_on(torch.device('cuda'), Shape(1, 1, 64, 64))\n"
        "assert not {'triton', 'torch._inductor'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@compiled
def test_the_processor_decodes_what_the_kernels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of another dim, and all where Triton is not installed."""
    gpu = torch.device("cuda")
    assert Packed.decodes_on(gpu, Shape(1, 1, 128, 128))
    assert not Packed.decodes_on(gpu, Shape(1, 1, 128, 80))
    monkeypatch.setattr(cuda, "has_triton", lambda: False)
    assert not Packed.decodes_on(gpu, Shape(1, 1, 128, 128))
