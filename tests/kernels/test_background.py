"""Parts that two threads decode while they are found: the same numbers, whoever comes when."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from qkvshare.kernels import reference
from qkvshare.kernels.background import BackgroundDecoder
from qkvshare.kernels.parts import Part

from .test_rows import random_rows

COUNT = 40


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def some_parts(dim: int, dtype: torch.dtype, count: int = COUNT) -> tuple[list[Part], list[Tensor]]:
    """And what is right."""
    parts, right = [], []
    for seed in range(count):
        tokens = 50 * (seed % 3)
        rows, info, inverse, scales, mean = random_rows(2, tokens, dim, seed)
        codes = reference.encode_rows(rows, info, inverse)
        room = torch.full((2, tokens, dim), 7.0, dtype=dtype)
        parts.append(Part(codes, info, scales, room, mean))
        back = reference.decode_rows(codes, info, scales, mean, dim)
        right.append(back.view(2, tokens, dim).to(dtype))
    return parts, right


def decode(
    parts: list[Part], beforehand: int = 1 << 20, between: Callable[[int], None] = lambda _: None
) -> None:
    with BackgroundDecoder(len(parts), beforehand) as decoder:
        for n, part in enumerate(parts):
            decoder.add([part])
            between(n)


def same(parts: list[Part], right: list[Tensor]) -> bool:
    return all(torch.equal(p.numbers, r) for p, r in zip(parts, right, strict=True))


@pytest.mark.parametrize("beforehand", [0, 10_000, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 80, 512])
def test_all_are_decoded(dim: int, dtype: torch.dtype, beforehand: int) -> None:
    """Of dims and formats that the second thread takes, and others."""
    parts, right = some_parts(dim, dtype, 7 if dim == 512 else COUNT)
    decode(parts, beforehand)
    assert same(parts, right)


def test_of_several_dims() -> None:
    """As heads whose values are shorter than their keys."""
    keys, values = some_parts(64, torch.float32), some_parts(128, torch.float32)
    both = [part for pair in zip(keys[0], values[0], strict=True) for part in pair]
    with BackgroundDecoder(len(both), 1 << 20) as decoder:
        for part in both:
            decoder.add([part])
    assert same(*keys)
    assert same(*values)


def test_parts_that_come_slowly() -> None:
    """The second thread sleeps until there is more."""
    parts, right = some_parts(64, torch.float32)
    decode(parts, 1 << 30, lambda n: time.sleep(0.05 if n % 10 == 0 else 0))
    assert same(parts, right)


def test_alone_where_torch_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts, right = some_parts(64, torch.float32)

    def none_waits(n: int) -> None:
        assert all(torch.equal(parts[at].numbers, right[at]) for at in range(n + 1))

    decode(parts, 1 << 30, none_waits)


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkvshare.kernels.background.native", None)
    monkeypatch.setattr("qkvshare.kernels.decode.fits", lambda dim: False)
    parts, right = some_parts(64, torch.float32, 5)
    decode(parts)
    assert same(parts, right)


def test_the_second_thread_decodes_while_the_first_is_busy() -> None:
    parts, right = some_parts(64, torch.float32)

    def busy(n: int) -> None:
        if n == COUNT - 1:
            until = time.monotonic() + 60
            while not same(parts, right) and time.monotonic() < until:
                time.sleep(0.001)
            assert same(parts, right)  # before the block ends, where the first one helps

    decode(parts, 1 << 30, busy)


def test_after_an_error_nobody_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had not begun is not begun, and what had is waited for."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts, _ = some_parts(64, torch.float32)
    decoder = BackgroundDecoder(len(parts), 1 << 30)
    decoder._beforehand = 1 << 30
    decoder.add(parts)
    decoder.__exit__(KeyError, KeyError("damaged"), None)
    line = decoder._line
    assert line is not None
    line.decode()  # it is closed
    assert all((part.numbers == 7).all() for part in parts)


def test_after_an_error_the_second_thread_has_ended() -> None:
    parts, _ = some_parts(64, torch.float32)
    with suppress(KeyError), BackgroundDecoder(COUNT, 1 << 30) as decoder:
        decoder.add(parts)
        raise KeyError("damaged")
    before = [part.numbers.clone() for part in parts]
    time.sleep(0.05)
    assert same(parts, before)


def test_what_goes_wrong_on_the_second_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts, _ = some_parts(64, torch.float32, 2)
    decoder = BackgroundDecoder(len(parts), 1 << 30)
    decoder._beforehand = 1 << 30
    decoder.add(parts)
    line, info = decoder._line, parts[1].info
    assert line is not None
    assert isinstance(info, Tensor)
    info.fill_(7)  # it asks for more codes than there are
    line.start()
    while line.waiting:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="changed while it was decoded"):
        decoder.__exit__(None, None, None)


def test_memory_of_codes_goes_when_they_are_decoded() -> None:
    parts, right = some_parts(64, torch.float32)
    numbers, held = [part.numbers for part in parts], [weakref.ref(part) for part in parts]
    parts.reverse()
    with BackgroundDecoder(COUNT, 10_000) as decoder:
        while parts:
            decoder.add([parts.pop()])
            kept = sum(one() is not None for one in held) - len(parts)
            # Of 50 tokens or more; the one just added, and one that each thread is at.
            assert kept <= 10_000 // (2 * 50 * 64) + COUNT // 3 + 3
    assert all(map(torch.equal, numbers, right))
